"""Models that take one step and their state: unrolled in training, exported as a step, scored over sequences."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgekd
from edgekd.data import checks, columns
from edgekd.measure import jobs
from edgekd.models import sequences, streams, taps
from edgekd.quantization.torch_graph import cells
from edgekd.records import Run
from edgekd.run import feeds
from edgekd.runtimes.onnxruntime import load, ort
from edgekd.samples.rows import Samples
from edgekd.stages import quantize as quantizing
from edgekd.stages.export import Export
from edgekd.stages.quantize import Quantize

LENGTHS = (5, 2, 7, 3, 7, 1, 4, 2)
EACH = edgekd.classes(4, axis=2, ignore_index=-100)


class Cell(nn.Module):
    """A GRU cell."""

    def __init__(self, width=6):
        super().__init__()
        self.cell, self.head, self.state_shapes = nn.GRUCell(3, width), nn.Linear(width, 4), {"h": (width,)}

    def forward(self, x, h):
        h = self.cell(x, h)
        return self.head(h), h


class Two(nn.Module):
    """An LSTM cell, whose states are two."""

    def __init__(self):
        super().__init__()
        self.cell, self.head, self.state_shapes = nn.LSTMCell(3, 6), nn.Linear(6, 4), {"h": (6,), "c": (6,)}

    def forward(self, x, h, c):
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c


class Ring(nn.Module):
    """A causal convolution over the frame and the 3 before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.state_shapes = nn.Conv1d(3, 8, 4), nn.Linear(8, 4), {"h": (3, 3)}

    def forward(self, x, past):
        frames = torch.cat([past, x[:, :, None]], 2)
        return self.head(torch.relu(self.conv(frames))[:, :, 0]), frames[:, :, 1:]


class Layer(nn.Module):
    """A GRU layer that is given one step: it stays in float."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head, self.state_shapes = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 4), {"h": (1, 6)}

    def forward(self, x, h):
        steps, h = self.rnn(x[:, None], h.transpose(0, 1).contiguous())
        return self.head(steps[:, 0]), h.transpose(0, 1)


class Whole(nn.Module):
    """An ordinary model of whole sequences."""

    def __init__(self, every=True):
        super().__init__()
        self.rnn, self.head, self.every = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 4), every

    def forward(self, inputs):
        steps = self.head(self.rnn(inputs["x"])[0])
        return steps if self.every else sequences.last(steps, inputs["lengths"])


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, 3)).astype("float32") for length in LENGTHS]


def task(student=Cell, every=True, states=None, **more):
    x, y = samples(), np.arange(8) % 4
    y = [np.full(len(a), c) for a, c in zip(x, y, strict=True)] if every else y
    data = edgekd.arrays(x, y, samples(1), y, x_validation=samples(2), y_validation=y)
    outputs = {"tag": EACH if every else edgekd.classes(4)}
    metric = edgekd.pixel_accuracy(EACH) if every else edgekd.top1()
    own = {"outputs": outputs, "metrics": (metric,), "inputs": ("x",), "lengths": {"x": "lengths"}, "data": data}
    stream = edgekd.streaming(states or {"h_out": "h"}, last_step=not every)
    own |= {"models": {"teacher": lambda: Whole(every), "student": student}, "stream": stream, **more}
    return edgekd.Task(name="streams", version="1", **own)


BOTH = {"h_out": "h", "c_out": "c"}
KINDS = {"cell": (Cell, None), "two": (Two, BOTH), "ring": (Ring, None), "layer": (Layer, None)}


class TestTraining:
    def test_a_cell_goes_through_sequences_as_the_layer_does(self):
        torch.manual_seed(0)
        net, layer, x = Cell(), nn.GRU(3, 6, batch_first=True), torch.randn(5, 9, 3)
        layer.load_state_dict({f"{name}_l0": value for name, value in net.cell.state_dict().items()})
        given = task(lengths={})
        found, wanted = given.call(net, x), net.head(layer(x)[0])
        assert torch.allclose(found, wanted, atol=1e-6)
        both = [torch.autograd.grad(z.square().sum(), net.head.weight)[0] for z in (found, wanted)]
        assert torch.allclose(*both, atol=1e-4)

    def test_a_ring_of_frames_is_a_causal_convolution(self):
        torch.manual_seed(0)
        net, x = Ring(), torch.randn(2, 9, 3)
        wanted = net.head(torch.relu(net.conv(nn.functional.pad(x.transpose(1, 2), (3, 0)))).transpose(1, 2))
        assert torch.allclose(task(Ring, lengths={}).call(net, x), wanted, atol=1e-6)

    @pytest.mark.parametrize("every", [True, False])
    def test_a_filled_batch_gives_each_sequence_what_it_gives_alone(self, every):
        torch.manual_seed(0)
        given, net = task(every=every), Cell()
        held = columns.load(given, "train")
        whole = given.call(net, columns.take(held, np.arange(8)).inputs)
        for i, length in enumerate(LENGTHS):
            alone = given.call(net, columns.take(held, np.array([i])).inputs)[0]
            assert torch.allclose(whole[i, :length] if every else whole[i], alone, atol=1e-6)

    def test_layers_are_tapped_at_every_step(self):
        given, net, x = task(lengths={}), Cell(), torch.randn(2, 9, 3)
        look = taps.watch(net, ["cell", "head"])
        for _ in range(2):
            answer = given.call(net, x)
            found = look()
            assert found["cell"].shape == (2, 9, 6) and torch.equal(found["head"], answer)

    def test_calibration_sees_no_step_behind_an_end(self):
        net = Cell().eval()
        given = task()
        stream, held = streams.of(given, net), columns.load(given, "train")
        graph = lambda *feed: net(*feed)
        rows = list(quantizing.calibration(held, 8, lambda inputs: quantizing.steps(stream, graph, inputs)))
        assert sum(len(feed["x"]) for feed in rows) == sum(LENGTHS) and not rows[0]["h"].any() and rows[1]["h"].any()
        assert all(feed["x"].abs().sum(1).bool().all() and len(feed["h"]) == len(feed["x"]) for feed in rows)


class TestTask:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("every", [True, False])
    def test_is_checked(self, kind, every):
        student, states = KINDS[kind]
        assert checks.check(task(student, every, states)) == []

    @pytest.mark.parametrize(
        "more, text",
        [
            ({"stream": {"h_out": "h"}}, "is a dict"),
            ({"stream": edgekd.streaming({})}, "names no state"),
            ({"stream": edgekd.streaming({"h_out": "x"})}, "'x' is a name of two things"),
            ({"stream": edgekd.streaming({"a": "h", "b": "h"})}, "two outputs go to h"),
            ({"stream": edgekd.streaming({"h_out": "state"})}, "is of h"),
            ({"models": {"teacher": Whole, "student": Whole}}, "has `state_shapes`"),
        ],
    )
    def test_what_is_wrong_is_told(self, more, text):
        assert any(text in p.message for p in checks.check(task(**more)))

    def test_a_step_must_give_its_states(self):
        one = type("One", (Cell,), {"forward": lambda self, x, h: self.head(self.cell(x, h))})
        wide = type("Wide", (Cell,), {"forward": lambda self, x, h: (self.head(h), torch.cat([h, h], 1))})
        assert any("not (answer, h_out)" in p.message for p in checks.check(task(one)))
        assert any("h_out of shape [2, 12]" in p.message for p in checks.check(task(wide)))


@pytest.mark.parametrize("kind, states", [(nn.GRUCell, 1), (nn.LSTMCell, 2), (nn.RNNCell, 1)])
def test_a_cell_written_out_computes_the_same(kind, states):
    torch.manual_seed(0)
    cell, x, h = kind(3, 5), torch.randn(4, 3), [torch.randn(4, 5) for _ in range(states)]
    given = h[0] if states == 1 else tuple(h)
    with cells.written_out():
        found = cell(x, given)
    wanted = cell(x, given)
    for a, b in zip(*((r,) if states == 1 else r for r in (found, wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: (task, the float model, artifact of its file, artifact of its int8 file)}"""
    found = {}
    for kind, (student, states) in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = _made(task(student, True, states), folder)
    return found


def _made(given, folder):
    from edgekd.models import saved
    from edgekd.records import Artifact

    held = {split: columns.load(given, split) for split in ("train", "validation", "test")}
    net = saved.create(given, "student", 0).eval()
    made = []
    source = None
    for name, stage in (("float", None), ("onnx", Export()), ("int8", Quantize(mode="ptq")), ("onnx8", Export())):
        place = folder / name
        place.mkdir()
        run = Run(given, 0, 1, place, place, held.__getitem__)
        if stage is None:
            saved.save(place, net, model="student")
            form, facts = "torch", {}
        else:
            from_ = made[-1] if name != "int8" else made[0]
            result = stage(from_, run)
            form, facts = result.form, result.facts
        source = Artifact(name, form, {"weights.safetensors": "0"}, {}, name, {}, 0, facts, place)
        made.append(source)
    return given, net, made[1], made[3]


def _driven(path, x, shapes):
    """[T, 4] answers of a file in onnxruntime alone, with the states that it gives."""
    session = ort.InferenceSession(str(path))
    names = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["edgekd.state"])
    state, answers = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}, []
    outputs = [o.name for o in session.get_outputs()]
    for frame in x:
        made = dict(zip(outputs, session.run(None, {"x": frame[None], **state}), strict=True))
        answers.append(made["tag"][0])
        state = {name: made[output] for name, output in names.items()}
    return np.stack(answers)


@pytest.mark.parametrize("kind", KINDS)
class TestFile:
    def test_takes_a_step_and_its_states(self, made, kind):
        given, net, plain, int8 = made[kind]
        for artifact in (plain, int8):
            graph = onnx.load(artifact.folder / "model.onnx").graph
            shapes = [
                (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
                for v in (*graph.input, *graph.output)
            ]
            states = [(name, ["batch", *shape]) for name, shape in net.state_shapes.items()]
            outputs = [(output, ["batch", *net.state_shapes[n]]) for output, n in given.stream.states.items()]
            assert shapes == [("x", ["batch", 3]), *states, ("tag", ["batch", 4]), *outputs]

    def test_its_answers_are_those_of_the_whole_sequence(self, made, kind):
        given, net, plain, int8 = made[kind]
        held = columns.load(given, "test")
        with torch.no_grad():
            wanted = given.call(net, columns.take(held, np.arange(8)).inputs).numpy()
        for i, x in enumerate(samples(1)):
            found = _driven(plain.folder / "model.onnx", x, net.state_shapes)
            assert np.allclose(found, wanted[i, : len(x)], atol=1e-5)
        assert int8.facts["equality"]["equal"] > 0.95 and int8.facts["equality"]["most_steps"] <= 3

    def test_is_scored_over_sequences(self, made, kind, tmp_path):
        given, net, plain, int8 = made[kind]
        held = [columns.load(given, split) for split in ("validation", "test")]
        for name, artifact in (("plain", plain), ("int8", int8)):
            path, stream = artifact.folder / "model.onnx", streams.of_fact(artifact.facts)
            assert stream == streams.of(given, net) and stream.bytes == artifact.facts["stream"]["bytes"]
            steps = feeds.of(given, *held, stream=stream)
            assert len(steps) == 2 * sum(LENGTHS) and steps.begins.sum() == 16
            answered = jobs.score(path, steps, folder=tmp_path / name)
            parts = feeds.answered(given, answered, *held, stream=stream)
            for seed, part in zip((2, 1), parts, strict=True):
                assert part["tag"].shape == (8, 7, 4)
                for i, x in enumerate(samples(seed)):
                    found = part["tag"][i]
                    assert np.allclose(found[: len(x)], _driven(path, x, net.state_shapes), atol=1e-5)
                    assert not found[len(x) :].any()


def test_the_last_answers_of_sequences_are_taken():
    given = task(every=False)
    held = columns.load(given, "test")
    stream = streams.of(given, Cell())
    flat = {"tag": np.arange(31.0)[:, None] * np.ones(4), "h_out": np.zeros((31, 6))}
    (found,) = feeds.answered(given, flat, held, stream=stream)
    assert found["tag"][:, 0].tolist() == [4, 6, 13, 16, 23, 24, 28, 30]


def test_states_that_no_integer_layer_makes_stay_in_float(made):
    graph = onnx.load(made["layer"][3].folder / "model.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    node = makers["h_out"]
    while node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
        node = makers[node.input[0]]
    assert node.op_type == "GRU"
    cell = onnx.load(made["cell"][3].folder / "model.onnx").graph
    assert {n.op_type for n in cell.node} & {"GRU"} == set() and sum(n.op_type == "Gemm" for n in cell.node) == 3


def test_batches_of_sequences_answer_as_each_alone(tmp_path, made):
    given, _, plain, _ = made["cell"]
    held = columns.load(given, "test")
    steps = feeds.of(given, held, stream=streams.of_fact(plain.facts))
    together = jobs.score(plain.folder / "model.onnx", steps, folder=tmp_path / "a")
    ends = np.cumsum((0, *LENGTHS))
    for i, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
        alone = jobs.score(plain.folder / "model.onnx", steps.take(slice(start, stop)), folder=tmp_path / f"b{i}")
        assert np.allclose(alone["tag"], together["tag"][start:stop], atol=1e-6)
        if i == 2:
            break


def test_a_step_is_timed_with_the_states_of_the_one_before(made):
    from edgekd.runtimes import worker

    infer = load(str(made["cell"][2].folder / "model.onnx"), 1)
    arrays = worker._Steps.__new__(worker._Steps)
    dict.__init__(arrays)
    arrays.states, arrays.begins = {"h": "h_out"}, np.array([True, False, False, True])
    rng = np.random.default_rng(0)
    zero = np.zeros((1, 6), np.float32)
    given = [{"x": rng.normal(size=(1, 3)).astype("float32"), "h": zero} for _ in range(4)]
    feeds_ = worker._rolled(infer, arrays, [dict(feed) for feed in given])
    assert np.array_equal(feeds_[1]["h"], infer(feeds_[0])["h_out"]) and not feeds_[3]["h"].any()
    assert np.array_equal(feeds_[2]["h"], infer(feeds_[1])["h_out"]) and feeds_[2]["h"].any()


def test_what_lacks_a_state_is_told(tmp_path, made):
    steps = Samples(
        {"x": np.zeros((3, 3), np.float32)}, states={"other": "h_out"}, begins=np.array([True, False, False])
    )
    with pytest.raises(edgekd.RunFailed, match="has x"):
        jobs.score(made["cell"][2].folder / "model.onnx", steps, folder=tmp_path)


def test_a_task_without_a_stream_keeps_its_keys():
    from edgekd.run import passed

    plain = task(stream=None, models={"teacher": Whole, "student": Whole})
    names = passed.of_task(plain, lambda split: columns.load(plain, split))[2]
    assert len(names) == 8
    other = dataclasses.replace(plain, stream=edgekd.streaming({"h_out": "h"}))
    assert len(passed.of_task(other, lambda split: columns.load(other, split))[2]) == 9
