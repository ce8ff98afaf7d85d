"""Samples of different length: held, batched, trained, calibrated, exported and scored as if each were alone."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgekd
from edgekd.data import checks, columns, epochs, ragged
from edgekd.errors import UsageError
from edgekd.formats import onnx as form
from edgekd.measure import jobs
from edgekd.models import sequences
from edgekd.quantization import example_of
from edgekd.quantization.torch_graph.capture import capture
from edgekd.records import Artifact, Run
from edgekd.run import evaluate, feeds, sanity_check
from edgekd.runtimes.onnxruntime import ort
from edgekd.samples.rows import WHOLE
from edgekd.stages.answer import Answer
from edgekd.stages.quantize import calibration
from edgekd.teachers.cached import cached
from edgekd.training.agreement import Agreement
from edgekd.training.supervision import check_ensemble

LENGTHS = (5, 2, 7, 3, 7, 1, 4, 2)
STEPS = edgekd.classes(4, axis=2, ignore_index=-100)


class Net(nn.Module):
    def __init__(self, every=False):
        super().__init__()
        self.rnn = nn.GRU(3, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.head, self.every = nn.Linear(12, 4), every

    def forward(self, inputs):
        steps = sequences.run(self.rnn, inputs["x"], inputs["lengths"])
        if self.every:
            return self.head(steps)
        both = sequences.mean(steps, inputs["lengths"]) + sequences.last(steps, inputs["lengths"])
        return self.head(both)


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, 3)).astype("float32") for length in LENGTHS]


def task(every=False, **more):
    x, y = samples(), np.arange(8) % 4
    y = [np.full(len(a), c) for a, c in zip(x, y, strict=True)] if every else y
    splits = edgekd.arrays(x, y, samples(1), y, x_validation=samples(2), y_validation=y)
    given = {"outputs": {"tag": STEPS}, "metrics": (edgekd.pixel_accuracy(STEPS),)} if every else {}
    given |= {} if every else {"classes": 4, "metrics": (edgekd.top1(),)}
    models = {name: lambda: Net(every) for name in ("teacher", "student")}
    own = {"inputs": ("x",), "lengths": {"x": "lengths"}, **given, **more}
    return edgekd.Task(name="lengths", version="1", models=models, data=splits, **own)


class TestRagged:
    def test_is_one_array_and_offsets(self):
        found = ragged.of(samples())
        assert (found.flat.shape, found.offsets.tolist()) == ((31, 3), [0, 5, 7, 14, 17, 24, 25, 29, 31])
        assert (found.shape, len(found), found.ndim, found.dtype) == ((8, 7, 3), 8, 3, np.float32)
        assert all(np.array_equal(found[i], a) for i, a in enumerate(samples())) and len(found[-1]) == 2
        some = found[[1, 3]]
        assert some.shape == (2, 3, 3) and not some[0, 2].any() and np.array_equal(some[1], samples()[3])
        assert found.select([3, 0]).offsets.tolist() == [0, 3, 8]

    def test_differs_in_the_first_axis_alone(self):
        with pytest.raises(ValueError, match="first axis"):
            ragged.of([np.zeros((2, 3)), np.zeros((2, 4))])
        with pytest.raises(UsageError, match="x_train"):
            edgekd.arrays([np.zeros((2, 3)), np.zeros((3, 4))], [0, 1], samples(), np.zeros(8, int))


class TestTask:
    @pytest.mark.parametrize("every", [False, True])
    def test_is_checked(self, every):
        assert checks.check(task(every)) == []

    def test_its_lengths_must_have_a_name(self):
        with pytest.raises(UsageError, match="differ in length") as error:
            columns.load(task(lengths={}), "train")
        assert 'lengths={"x": "lengths"}' in error.value.problems[0].hint
        assert any("differ in length" in p.message for p in checks.check(task(lengths={})))

    def test_labels_of_steps_need_one_that_does_not_count(self):
        with pytest.raises(UsageError, match="none is said not to count"):
            columns.load(task(True, outputs={"tag": edgekd.classes(4, axis=2)}), "train")

    def test_a_sample_without_steps_is_refused(self):
        x = [*samples()[:7], np.zeros((0, 3), "float32")]
        data = edgekd.arrays(x, np.arange(8) % 4, samples(1), np.arange(8) % 4, validation=0.25)
        assert any("has no steps" in p.message for p in checks.check(dataclasses.replace(task(), data=data)))

    @pytest.mark.parametrize("outputs", [("tag",), {"tag": edgekd.embeddings()}, {"tag": edgekd.raw()}])
    def test_outputs_of_steps_need_labels_of_steps(self, outputs):
        x, metric = samples(), edgekd.Metric("m", "", "lower", lambda z, y: np.zeros(len(z)), lambda found: 0.0)
        data = edgekd.arrays(x, None, samples(1), None, x_validation=samples(2))
        given = dataclasses.replace(task(True, outputs=outputs, metrics=(metric,)), data=data)
        told = checks.check(given)
        assert len(told) == 2 and all("no label says which steps count" in p.message for p in told)
        assert checks.check(dataclasses.replace(given, models=task().models)) == []
        alike = edgekd.arrays(*(None if a is None else [s[:1] for s in a] for a in (x, None, x, None)), validation=0.25)
        assert all("no label" not in p.message for p in checks.check(dataclasses.replace(given, data=alike)))

    def test_samples_one_by_one_are_the_same(self):
        by_array = columns.load(task(), "train")
        listed = {s: list(task().data(s)) for s in ("train", "validation", "test")}
        one_by_one = columns.load(_listed(listed), "train")
        assert one_by_one.digest == by_array.digest and one_by_one.lengths.tolist() == list(LENGTHS)


def _listed(listed):
    return dataclasses.replace(task(), data=listed.__getitem__)


class TestBatches:
    def test_are_filled_to_their_longest(self):
        batch = columns.take(columns.load(task(True), "train"), np.array([1, 3]))
        assert batch.inputs["x"].shape == (2, 3, 3) and batch.inputs["lengths"].tolist() == [2, 3]
        assert batch.labels.tolist() == [[1, 1, -100], [3, 3, 3]] and batch.steps == 3

    def test_some_of_a_split_are_filled_to_their_longest(self):
        some = columns.some(columns.load(task(True), "train"), np.array([1, 3, 6]))
        assert some.labels.tolist() == [[1, 1, *[-100] * 2], [3, 3, 3, -100], [2] * 4]
        answered = {"tag": np.ones((9, 4))}
        assert feeds.answered(task(True), answered, some)[0]["tag"].shape[:2] == some.labels.shape

    def test_of_an_epoch_are_near_in_length_and_hold_every_sample_once(self):
        lengths = np.random.default_rng(0).integers(5, 100, 1000)
        rows = epochs.order(3, 1, 1000)
        parts = epochs.grouped(rows, lengths, 16, 3, 1)
        assert sorted(np.concatenate(parts)) == list(range(1000)) and [len(p) for p in parts].count(16) == 62
        filled = lambda parts: sum(len(p) * lengths[p].max() for p in parts) / lengths.sum()
        assert filled(parts) < 1.15 < 1.6 < filled([rows[a : a + 16] for a in range(0, 1000, 16)])
        again = epochs.grouped(epochs.order(3, 1, 1000), lengths, 16, 3, 1)
        assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
        other = epochs.grouped(epochs.order(3, 2, 1000), lengths, 16, 3, 2)
        assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))

    def test_outside_training_are_never_filled(self):
        held = columns.load(task(), "train")
        for inputs in (*calibration(held, 8), *(b.inputs for b in columns.batches(held, 4))):
            assert set(inputs["lengths"].tolist()) == {inputs["x"].shape[1]}
        assert sum(len(i["x"]) for i in calibration(held, 8)) == 8
        assert np.concatenate([b.index for b in columns.batches(held, 4)]).tolist() == list(range(8))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_run_is_what_packing_gives(kind, both):
    torch.manual_seed(0)
    rnn = kind(3, 5, num_layers=2, batch_first=True, bidirectional=both)
    lengths = torch.tensor([4, 1, 6])
    given = torch.randn(3, 6, 3)
    packed = nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first=True, enforce_sorted=False)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(rnn(packed)[0], batch_first=True)
    found = sequences.run(rnn, given, lengths)
    assert torch.allclose(found, wanted, atol=1e-6)
    weights = torch.randn_like(wanted)
    grads = [torch.autograd.grad((y * weights).sum(), list(rnn.parameters())) for y in (found, wanted)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("every", [False, True])
def test_a_batch_gives_each_sample_what_it_gives_alone(every):
    torch.manual_seed(0)
    net, held = Net(every), columns.load(task(every), "train")
    loss = lambda b: F.cross_entropy(
        net(b.inputs).flatten(0, -2), b.labels.flatten(), ignore_index=-100, reduction="sum"
    )
    whole = columns.take(held, np.arange(8))
    alone = [columns.take(held, np.array([i])) for i in range(8)]
    for i, one in enumerate(alone):
        own = net(whole.inputs)[i]
        assert torch.allclose(own[: LENGTHS[i]] if every else own, net(one.inputs)[0], atol=1e-6)
    together = torch.autograd.grad(loss(whole), list(net.parameters()))
    apart = torch.autograd.grad(sum(loss(one) for one in alone), list(net.parameters()))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("every", [False, True])
def test_file_takes_filled_batches_and_samples_alone(tmp_path, every):
    torch.manual_seed(0)
    given, net = task(every), Net(every).eval()
    held, path = columns.load(given, "test"), tmp_path / "model.onnx"
    example = example_of(held)
    graph = capture(net, example, None, given.lengths)
    form.export(graph, None, example, path, inputs=("x", "lengths"))
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", "steps", 3]
    session = ort.InferenceSession(str(path))
    filled = session.run(None, {"x": held.inputs["x"][:], "lengths": held.lengths})[0]
    one_by_one = feeds.of(given, held)
    assert set(one_by_one.axes.values()) == {WHOLE}
    assert one_by_one.shapes == {"x": (1, 7, 3), "lengths": (1,)}
    answered = jobs.score(path, one_by_one, folder=tmp_path / "job")
    (found,) = feeds.answered(given, answered, held)
    assert found["output"].shape == ((8, 7, 4) if every else (8, 4))
    for i, length in enumerate(LENGTHS):
        part = (i, slice(0, length)) if every else i
        assert np.allclose(found["output"][part], filled[part], atol=1e-6)
        assert not every or not found["output"][i, length:].any()


def test_two_splits_are_told_apart():
    given = task(True)
    held = [columns.load(given, s) for s in ("validation", "test")]
    flat = np.arange(62.0)[:, None] * np.ones(4)
    first, second = (part["tag"] for part in feeds.answered(given, {"tag": flat}, *held))
    assert first[1, :3, 0].tolist() == [5, 6, 0] and second[0, :6, 0].tolist() == [31, 32, 33, 34, 35, 0]


def test_splits_of_one_length_each_are_told_apart():
    given = task(True)
    listed = {s: list(given.data(s)) for s in ("train", "validation", "test")}
    for split, length in (("validation", 4), ("test", 2)):
        long = [s for s in listed[split] if len(s.label) >= length]
        listed[split] = [dataclasses.replace(s, inputs=s.inputs[:length], label=s.label[:length]) for s in long]
    given = dataclasses.replace(given, data=listed.__getitem__)
    held = [columns.load(given, s) for s in ("validation", "test")]
    flat = np.arange(4.0 * 4 + 7 * 2)[:, None] * np.ones(4)
    first, second = (part["tag"] for part in feeds.answered(given, {"tag": flat}, *held))
    assert first[..., 0].tolist() == np.arange(16).reshape(4, 4).tolist()
    assert second[..., 0].tolist() == np.arange(16, 30).reshape(7, 2).tolist()
    of_samples = {"tag": np.ones((8, 7, 4))}  # as of samples of one length
    (found,) = feeds.answered(task(True), of_samples, columns.load(task(True), "test"))
    assert found["tag"].shape == (8, 7, 4)


@pytest.mark.parametrize("axis", [1, 2])
def test_metrics_are_tried_with_as_many_steps_as_labels_have(axis, monkeypatch):
    output = edgekd.classes(4, axis=axis, ignore_index=-100)
    given = task(True, outputs={"tag": output}, metrics=(edgekd.pixel_accuracy(output),))
    few = {"validation": {"tag": np.zeros((2, 3, 4) if axis == 2 else (2, 4, 3), np.float32)}}
    monkeypatch.setattr(evaluate, "answers", lambda *_: (few, None))
    resolved = SimpleNamespace(task=given, data=lambda split: columns.load(given, split))
    plan = SimpleNamespace(points=[SimpleNamespace(export="made", deployment=None)])
    assert sanity_check._metrics(resolved, resolved, plan, {"made": None}, None) == []


class Across(Net):
    """Its classes come before the steps: [n, 4, T]."""

    def forward(self, inputs):
        return super().forward(inputs).transpose(1, 2)


@pytest.mark.parametrize("every, axis", [(False, 1), (True, 2), (True, -1), (True, 1), (True, -2)])
def test_cached_answers_are_the_teachers(tmp_path, every, axis, monkeypatch):
    from edgekd.models import saved

    torch.manual_seed(0)
    net = (Across if every and axis in (1, -2) else Net)(every).eval()
    given = task(every, **({"outputs": {"tag": edgekd.classes(4, axis=axis, ignore_index=-100)}} if every else {}))
    held = columns.load(given, "train")
    monkeypatch.setattr(saved, "load", lambda model, task: net)
    run = Run(given, 0, 1, tmp_path, tmp_path, lambda split: held)
    made = Answer(batch=3)(None, run, teacher=("teacher",))
    kept = Artifact("k", "logits", {}, {}, "answer", {}, 0, made.facts, tmp_path)
    batch = columns.take(held, np.array([1, 3, 5]))
    found, wanted = cached(kept, 8, 1, given.output)(batch).output, net(batch.inputs)
    assert found.shape == wanted.shape
    if every and axis in (1, -2):
        found, wanted = found.transpose(1, 2), wanted.transpose(1, 2)
    own = sequences.mask(batch.inputs["x"], batch.inputs["lengths"]) if every else slice(None)
    assert torch.allclose(found[own], wanted[own], atol=1e-6)


@pytest.mark.parametrize("net, axis", [(Net, 2), (Across, 1)])
def test_an_ensemble_is_checked_with_samples_of_any_length(net, axis):
    output = edgekd.classes(4, axis=axis, ignore_index=-100)
    held = columns.load(task(True, outputs={"tag": output}), "train")
    answer = net(True)(columns.take(held, np.array([1, 5])).inputs)
    assert check_ensemble(None, {"a": "logits", "b": "logits"}, answer, held, output) == []


def test_a_schedule_follows_the_agreement_over_all_steps(tmp_path):
    torch.manual_seed(0)
    given, net = task(True), Net(True)
    held = columns.load(given, "validation")
    theirs = np.random.default_rng(0).integers(0, 4, (1, 8, 7), np.int32)
    np.save(tmp_path / "labels.npy", theirs)
    found = Agreement({"t": Artifact("k", "logits", {}, {}, "answer", {}, 0, {}, tmp_path)}, held)
    found.look(net, given.call, output=given.output)
    with torch.no_grad():
        own = [net(columns.take(held, np.array([i])).inputs)[0].argmax(-1).numpy() for i in range(8)]
    equal = sum((a == theirs[0, i, : len(a)]).sum() for i, a in enumerate(own))
    assert 0 < equal < 31 and found.now() == {"t": equal / 31, "": equal / 31}
