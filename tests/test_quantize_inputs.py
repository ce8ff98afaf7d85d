"""What `quantize` is asked for, before anything is made: what is told of how samples are read, and of what is lost."""

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from small_files import file

from edgekd.errors import UsageError
from edgekd.explain.inputs import of_files
from edgekd.explain.trial import Bench
from edgekd.measure import opening, rolled
from edgekd.quantization.diagnosis.signal_to_noise import Agreement, Compared
from edgekd.run import quantize_file
from edgekd.run.quantize_inputs import Asked, checked
from edgekd.samples.read import read
from edgekd.samples.signature import of_model
from edgekd.samples.source import Source
from edgekd.verbs.explain import explain
from edgekd.verbs.quantize import quantize


def saved(path, nodes, inputs, outputs, **constants):
    values = [[(name, T.FLOAT, dims) for name, dims in side.items()] for side in (inputs, outputs)]
    return file(path, nodes, *values, **{n: np.float32(a) for n, a in constants.items()})


@pytest.mark.parametrize(
    "dims, constant, axes, told",
    [
        (["n", 3], None, {}, ""),
        (["t", "n", 3], None, {}, "x axis"),
        (["t", "n", 3], None, {"x": 1}, ""),
        ([2, "n", 3], None, {}, "x axis 1"),
        (["n", 3], [3], {}, "x axis 0, c the same for all"),
        (["n", 3], [3], {"c": None}, "x axis 0;"),
    ],
)
def test_axes_that_nobody_named_are_told_where_others_could_be_meant(tmp_path, dims, constant, axes, told):
    nodes = [("MatMul", ["x", "w"], ["a"]), ("Add", ["a", "b" if constant is None else "c"], ["y"])]
    inputs = {"x": dims} | ({} if constant is None else {"c": constant})
    path = saved(tmp_path / "m.onnx", nodes, inputs, {"y": dims}, w=np.eye(3), b=np.zeros(3))
    arrays = {"x": np.ones([40 if d == "n" else 2 if isinstance(d, str) else d for d in dims], np.float32)}
    arrays |= {} if constant is None else {"c": np.ones(constant, np.float32)}
    np.savez(tmp_path / "d.npz", **arrays)
    note = checked(Asked(path, Source(tmp_path / "d.npz", axes), tmp_path / "q.onnx", "host")).note
    assert told in note and ("samples are taken along" in note) == bool(told)


@pytest.mark.parametrize("data", [None, "random"])
def test_what_random_samples_can_not_have_is_refused(tmp_path, data):
    path = saved(tmp_path / "m.onnx", [("Relu", ["x"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})
    signature = of_model(onnx.load(path))
    with pytest.raises(UsageError, match="--preprocess"):
        read(Source(data, preprocess="imagenet"), signature)
    with pytest.raises(UsageError, match="--preprocess"):
        opening.shapes(path, Source(data, preprocess="imagenet"), None)
    with pytest.raises(UsageError, match="z is not an input"):
        read(Source(data, {"z": 1}), signature)


@pytest.mark.parametrize("allowed, told", [(None, True), ("1 pt", False)])
def test_what_was_asked_for_is_no_advice(allowed, told):
    given = SimpleNamespace(note="one\ntwo", samples=100, allowed=allowed, compared=SimpleNamespace(labels=None))
    *others, note = quantize_file._notes(given, Compared((Agreement("y", 3.0),), 9))
    assert others == ["one", "two"], "each in a line of its own"
    assert "`edgekd explain`" in note and ("--max-drop" in note) == told


def test_a_file_that_is_tried_goes_on_with_its_own_states(tmp_path):
    """h grows by x; in the other file it is half of that."""
    dims = {"x": [1, 3], "h": [1, 3]}, {"y": [1, 3], "hn": [1, 3]}
    nodes = [("Add", ["x", "h"], ["y"]), ("Mul", ["y", "s"], ["hn"])]
    whole, half = (saved(tmp_path / f"{i}.onnx", nodes, *dims, s=s) for i, s in enumerate((1.0, 0.5)))
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x)
    steps = opening.given(whole, Source(tmp_path / "s.npz", states={"h": "hn"}), None, tmp_path, None).samples
    there = SimpleNamespace(place=tmp_path, numbers=itertools.count())
    found = Bench.answers(there, half, SimpleNamespace(inputs=steps))["y"]
    session, wanted = onnxruntime.InferenceSession(half), []
    for sequence in x:
        state = np.zeros((1, 3), np.float32)
        for step in sequence:
            y, state = session.run(None, {"x": step[None], "h": state})
            wanted.append(y[0])
    assert np.array_equal(found, wanted)


def test_a_sequence_is_an_output_that_is_not_compared(tmp_path):
    path = saved(tmp_path / "m.onnx", [("MatMul", ["x", "w"], ["m"])], {"x": ["n", 8]}, {}, w=np.eye(8))
    model = onnx.load(path)
    model.graph.node.append(h.make_node("SplitToSequence", ["m"], ["y"], axis=1))
    model.graph.output.append(h.make_tensor_sequence_value_info("y", T.FLOAT, None))
    onnx.save(model, path)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    made = quantize(path, data=tmp_path / "d.npz", out=tmp_path / "q.onnx", slower_int8=True)
    assert made.differ == 0 and any("output y: it holds no rows of numbers" in note for note in made.notes)


@pytest.mark.parametrize("kind", [T.STRING, T.BFLOAT16])
def test_inputs_that_are_no_numbers_are_told(tmp_path, kind):
    path = file(tmp_path / "m.onnx", [("Identity", ["x"], ["y"])], [("x", kind, ["n", 3])], [("y", kind, ["n", 3])])
    np.savez(tmp_path / "d.npz", x=np.ones((40, 3), np.float32))
    with pytest.raises(UsageError, match="the input x of the model is not a tensor of numbers"):
        read(Source(tmp_path / "d.npz"), of_model(onnx.load(path)))


def test_a_model_without_inputs_has_no_random_samples(tmp_path):
    path = saved(tmp_path / "m.onnx", [("Relu", ["c"], ["y"])], {}, {"y": [3]}, c=np.ones(3))
    with pytest.raises(UsageError, match="takes no input"):
        read(Source(), of_model(onnx.load(path)))


def test_the_axis_that_is_named_is_that_of_outputs_too(tmp_path):
    dims = {"x": ["t", "n", 8]}, {"y": ["t", "n", 4]}
    path = saved(tmp_path / "m.onnx", [("MatMul", ["x", "w"], ["y"])], *dims, w=np.eye(8, 4))
    x = np.random.default_rng(0).normal(size=(5, 40, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    samples = read(Source(tmp_path / "d.npz", {"x": 1}), of_model(onnx.load(path))).samples
    assert len(samples) == 40 and samples.answers == {"y": 1}
    found = rolled.score(path, samples, tmp_path)["y"]
    assert np.array_equal(found, x.transpose(1, 0, 2)[..., :4])


@pytest.mark.parametrize("count", [43, 68, 131])
def test_explain_takes_whole_batches(tmp_path, count):
    """Of a file that takes three at once; from 64 on every other batch judges."""
    dims = {"x": [3, 8]}, {"y": [3, 4]}
    rng = np.random.default_rng(0)
    path = saved(tmp_path / "m.onnx", [("MatMul", ["x", "w"], ["y"])], *dims, w=rng.normal(size=(8, 4)))
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(count, 8)).astype(np.float32), labels=rng.integers(0, 4, count))
    quantize(path, data=tmp_path / "d.npz", out=tmp_path / "q.onnx", slower_int8=True)
    subject = of_files(tmp_path / "q.onnx", path, Source(tmp_path / "d.npz"), "host", tmp_path)
    parts = subject.looked, subject.judged, subject.looked.first(32)
    assert all(len(p) % 3 == 0 and len(p) == len(p.labels) for p in parts) and len(parts[2]) == min(30, len(parts[0]))
    assert "dB" in explain(tmp_path / "q.onnx", plain=path, data=tmp_path / "d.npz").text
