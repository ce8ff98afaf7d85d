"""Outputs with a blank: strings of symbols whose places are not known, over samples of one length and of several."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgekd
from edgekd import outputs
from edgekd.data import checks, columns
from edgekd.errors import UsageError
from edgekd.losses.cross_entropy import cross_entropy
from edgekd.losses.ctc import ctc
from edgekd.metrics.strings import decoded
from edgekd.probes import Subject, quality
from edgekd.records import Artifact, Batch, Run, Signals
from edgekd.run import feeds
from edgekd.stages.answer import Answer
from edgekd.teachers.cached import cached
from edgekd.training.positions import rows_of

NOTES = edgekd.classes(4, axis=1, blank=0)
LENGTHS = (9, 6, 7, 12)
LABELS = ([1, 2], [3, 3], [2], [1, 2, 3])


class Net(nn.Module):
    """Scores [n, 4, T / stride], of which a step sees itself alone: filled steps change nothing."""

    def __init__(self, stride=1):
        super().__init__()
        self.net = nn.Conv1d(3, 4, 1, stride)

    def forward(self, inputs):
        return self.net(inputs["x"].transpose(1, 2))


def samples(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, 3)).astype("float32") for length in LENGTHS]


def task(stride=1, labels=LABELS, output=NOTES, **more):
    labels = [np.array(label) for label in labels]
    splits = edgekd.arrays(samples(0), labels, samples(1), labels, x_validation=samples(2), y_validation=labels)
    own = {"inputs": ("x",), "lengths": {"x": "lengths"}, "outputs": {"notes": output}}
    own |= {"models": {name: lambda: Net(stride) for name in ("teacher", "student")}, **more}
    metrics = (edgekd.character_error_rate(output),)
    return edgekd.Task(name="strings", version="1", data=splits, metrics=metrics, **own)


def frames_of(lengths, labels):
    """A batch of frames as a term gets it."""
    parts = torch.cat([torch.arange(n) for n in lengths])
    wide = nn.utils.rnn.pad_sequence([torch.tensor(label) for label in labels], True, -1)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Batch(None, wide[index], index, torch.ones(len(index)), part=parts, blank=0)


class TestTheLoss:
    def test_is_the_sum_over_all_paths(self):
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        p = z.softmax(-1).numpy()
        squeezed = lambda path: [c for c, _ in itertools.groupby(path) if c]
        paths = [path for path in itertools.product(range(3), repeat=4) if squeezed(path) == [1, 1]]
        want = -np.log(sum(np.prod([p[t, c] for t, c in enumerate(path)]) for path in paths)) / 4
        found = ctc(Signals(z), None, frames_of([4], [[1, 1]]))
        assert len(paths) == 5 and found.numpy() == pytest.approx(np.full(4, want), abs=1e-6)

    def test_of_several_samples_is_that_of_each(self):
        z = torch.randn(sum(LENGTHS), 4, generator=torch.Generator().manual_seed(1))
        found = ctc(Signals(z), None, frames_of(LENGTHS, LABELS))
        ends = np.cumsum((0, *LENGTHS))
        for start, stop, label in zip(ends, ends[1:], LABELS, strict=False):
            own = F.ctc_loss(
                z[start:stop, None].log_softmax(-1),
                torch.tensor([label]),
                [stop - start],
                [len(label)],
                reduction="sum",
            )
            assert found[start:stop].sum().item() == pytest.approx(own.item(), abs=1e-4)

    def test_refuses_what_is_no_string(self):
        z, batch = torch.zeros(3, 4), frames_of([3], [[2, 2]])
        assert ctc(Signals(z), None, batch).isfinite().all()
        with pytest.raises(UsageError, match="2 frames can't give a label that needs 3: .* a blank between equal ones"):
            ctc(Signals(z[:2]), None, frames_of([2], [[2, 2]]))
        with pytest.raises(UsageError, match="labels are strings\n  hint: `ctc` learns strings"):
            cross_entropy(Signals(z), None, batch)
        batch.blank = None
        with pytest.raises(UsageError, match="takes an output with a blank"):
            ctc(Signals(z), None, batch)


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_are_the_frames_of_each_sample(stride):
    """In value and gradient as if each sample were alone; answers with room for longer samples are cut."""
    given, net = task(stride), Net(stride)
    loaded = columns.load(given, "train")
    assert loaded.stepwise and loaded.strings and loaded.labels.tolist()[1] == [3, 3, -1]
    total = 0.0
    for i in range(4):
        one = columns.take(loaded, np.array([i]))
        z = net(one.inputs)
        counted = one.labels[one.labels >= 0][None]
        total = total + F.ctc_loss(
            z.permute(2, 0, 1).log_softmax(-1), counted, [z.shape[2]], [counted.shape[1]], reduction="sum"
        )
    want = torch.autograd.grad(total, list(net.parameters()))
    batch = columns.take(loaded, np.arange(4))
    seen = Signals(net(batch.inputs))
    rows = rows_of(NOTES, batch, seen)
    counts = [-(-n // stride) for n in LENGTHS]
    assert len(rows.flat.index) == sum(counts) and rows.flat.part.tolist() == [t for n in counts for t in range(n)]
    loss = ctc(rows.of(seen), None, rows.flat).sum()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(loss, list(net.parameters())), want, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    roomy = F.pad(seen.output, (0, 5))
    assert torch.equal(rows.of(Signals(roomy)).output, rows.of(seen).output)
    labels = F.pad(seen.output.argmax(1), (0, 5))
    assert torch.equal(rows.of(Signals(None, label=labels)).label, rows.of(seen).output.argmax(-1))


def test_samples_of_one_length_have_all_frames():
    rows = rows_of(
        NOTES, Batch(None, torch.tensor([[1, -1]] * 2), torch.arange(2), torch.ones(2)), Signals(torch.zeros(2, 4, 5))
    )
    assert len(rows.flat.index) == 10 and rows.keep is None and rows.flat.blank == 0
    assert rows.flat.labels.tolist() == [[1, -1]] * 10


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shows", ["logits", "label", "top"])
def test_cached_answers_are_the_teachers(tmp_path, stride, shows, monkeypatch):
    from edgekd.models import saved

    given, net = task(stride), Net(stride).eval()
    loaded = columns.load(given, "train")
    monkeypatch.setattr(saved, "load", lambda model, task: net)
    run = Run(given, 0, 1, tmp_path, tmp_path, lambda split: loaded)
    made = Answer(batch=3, shows=shows, top=4)(None, run, teacher=("teacher",))
    read = cached(Artifact("k", "logits", {}, {}, "answer", {}, 0, made.facts, tmp_path), 4, 1, NOTES)
    for index in ([1, 2], [3, 0], [1]):
        batch = columns.take(loaded, np.array(index))
        seen = Signals(net(batch.inputs))
        rows = rows_of(NOTES, batch, seen)
        own, kept = rows.of(seen).output, rows.of(read(batch))
        if shows == "label":
            assert torch.equal(kept.label.long(), own.argmax(-1))
        else:
            assert torch.allclose(kept.output.log_softmax(-1), own.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_answers_of_files_end_with_blanks(stride):
    given, net = task(stride), Net(stride).eval()
    held = [columns.load(given, split) for split in ("validation", "test")]
    alone = [net(columns.take(c, np.array([i])).inputs).detach().numpy() for c in held for i in range(4)]
    flat = np.concatenate([z[0].T for z in alone])  # as the worker joins outputs of different length
    found = [part["notes"] for part in feeds.answered(given, {"notes": flat}, *held)]
    for part, own in zip(found, (alone[:4], alone[4:]), strict=True):
        assert part.shape == (4, 4, -(-12 // stride))
        strings = decoded(NOTES, part, np.zeros((4, 1)), 0)
        assert strings == [decoded(NOTES, z, np.zeros((1, 1)), 0)[0] for z in own]
    labels = columns.load(given, "test").labels
    own = {"outputs": found[1], "teacher": found[1] * 2, "labels": labels, "output": NOTES}
    told = quality.measure(Subject(**own, metrics=given.metrics, split="test"))
    figures = {m.name: m for m in told if m}
    assert figures["agreement"].value == 100 and figures["kl_to_teacher"].value > 0
    assert "worst_class_drop" not in figures and figures["character_error_rate"].n == 4


def test_frames_of_samples():
    lengths = np.array([1, 7, 8, 12])
    assert outputs.frames(lengths, 12, 12).tolist() == [1, 7, 8, 12]
    assert outputs.frames(lengths, 12, 6).tolist() == [1, 4, 4, 6]
    assert outputs.frames(lengths, 12, 4).tolist() == [1, 3, 3, 4]
    with pytest.raises(ValueError, match="12 steps give 13 frames"):
        outputs.frames(lengths, 12, 13)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "labels, message",
        [
            ([[1, 0], [3], [2], [1]], "1 symbols of labels are the blank, 0"),
            ([[1, -1, 2], [3], [2], [1]], "1 labels have -1 before their end"),
            ([[1, 5], [3], [2], [1]], "outside 0 to 3, the first is 5"),
            ([1, 2, 3, 1], "labels have shape [4], and the output has a blank: they are strings"),
        ],
    )
    def test_labels(self, labels, message):
        found = checks.check(task(labels=labels, output=edgekd.classes(4, axis=1, blank=0)))
        assert any(message in p.message for p in found), found

    def test_outputs(self):
        assert not checks.check(task())
        assert not checks.check(task(2))
        pooled = lambda: nn.Sequential(Net(), nn.AdaptiveAvgPool1d(13))
        given = task(models=dict.fromkeys(("teacher", "student"), pooled))
        assert any("give 13 frames, not one for each" in p.message for p in checks.check(given))

    def test_too_few_frames_in_any_split(self):
        found = checks.check(task(2, labels=[[1, 2], [3, 3, 3], [2], [1, 2, 3]]))
        assert [p.place for p in found] == [f"task strings: data({n!r})" for n in ("train", "validation", "test")]
        assert "1 of 4 samples have too few frames for their labels" in found[0].message
        assert "sample 1 has 3, and needs 5" in found[0].message

    @pytest.mark.parametrize("given", [{"blank": 4}, {"blank": -1}, {"blank": 2, "ignore_index": 2}])
    def test_declarations(self, given):
        with pytest.raises(ValueError, match="is not one of the classes, or is the label that does not count"):
            edgekd.classes(4, **given)


def test_what_it_is_decides_keys_only_where_it_is_said():
    assert edgekd.classes(4, axis=2, ignore_index=-1).deciding == "classes 2 -1"
    assert edgekd.classes(4, axis=2, blank=0).deciding == "classes 2 -1 0"


def test_strides_over_open_steps_are_exported(tmp_path):
    """torch.export asks for three steps at least; the file runs at any length."""
    import onnxruntime

    from edgekd.formats import onnx as form
    from edgekd.quantization.torch_graph.capture import capture

    class Strided(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv1d(3, 5, 5, 2, 2), nn.ReLU(), nn.Conv1d(5, 4, 1))

    net, example = Strided().eval(), {"x": torch.randn(2, 9, 3), "lengths": torch.tensor([9, 9])}
    graph = capture(net, example, None, {"x": "lengths"})
    form.export(graph, None, example, tmp_path / "m.onnx", inputs=("x", "lengths"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for steps in (1, 4, 13):
        x = torch.randn(1, steps, 3)
        want = net({"x": x, "lengths": torch.tensor([steps])}).detach().numpy()
        fed = {i.name: {"x": x.numpy(), "lengths": np.array([steps])}[i.name] for i in session.get_inputs()}
        assert want.shape[2] == -(-steps // 2) and np.allclose(session.run(None, fed)[0], want, atol=1e-5)
