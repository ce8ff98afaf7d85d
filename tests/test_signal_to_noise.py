"""How outputs of an int8 file are compared with the float file's, where they are no usual scores."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.metrics import suiting, top1
from edgekd.probes import Subject, measure
from edgekd.quantization.diagnosis import noise as by_layer
from edgekd.quantization.diagnosis.signal_to_noise import compare, files, noise
from edgekd.quantization.qdq.compare import compare as simulation
from edgekd.samples.rows import Samples
from edgekd.verbs.quantize import quantize

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)).astype(np.float32)
W = RNG.normal(size=(6, 1)).astype(np.float32)


def saved(path, nodes, output, **constants):
    kind, shape = output
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("y", kind, shape)], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("probability", [False, True])
def test_a_single_output_says_yes_or_no(tmp_path, probability):
    z = (X @ W).ravel()
    labels = (z + RNG.normal(size=60) > 0).astype(np.int64)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z" if probability else "y"])]
    nodes += [helper.make_node("Sigmoid", ["z"], ["y"])] if probability else []
    a, b = (
        saved(tmp_path / f"{name}.onnx", nodes, (TensorProto.FLOAT, ["n", 1]), w=w)
        for name, w in (("a", W), ("b", W[::-1].copy()))
    )
    found = files(a, b, Samples({"x": X}, labels=labels))
    others = (X @ W[::-1]).ravel()
    assert found.right == pytest.approx([((s > 0) == labels).mean() for s in (z, others)])
    assert files(a, b, Samples({"x": X}, labels=labels + 1)).right is None  # no yes and no
    outputs = (1 / (1 + np.exp(-z)) if probability else z)[:, None]
    metric = suiting(labels)
    assert metric.value(metric.records(outputs, labels)) == pytest.approx(100 * found.right[0])
    theirs = (1 / (1 + np.exp(-others)) if probability else others)[:, None]
    told = {m.name: m.value for m in measure(Subject(outputs=outputs, labels=labels, teacher=theirs, metrics=[metric]))}
    assert told["agreement"] == pytest.approx(100 * ((z > 0) == (others > 0)).mean())
    assert told["ece"] == pytest.approx(
        {m.name: m.value for m in measure(Subject(outputs=np.stack([0 * z, z], 1), labels=labels))}["ece"], abs=1e-4
    )
    gained = by_layer._gained([theirs], [outputs], labels)[0]
    assert gained == pytest.approx(100 * (found.right[0] - found.right[1]))


def test_the_metric_of_a_task_takes_logits():
    assert top1().records(np.array([[0.2], [0.7]]), np.array([1, 1])).tolist() == [1, 1]


def test_samples_that_are_all_alike_are_no_noise_of_rounding():
    plain = np.repeat(RNG.normal(size=(1, 5)).astype(np.float32), 40, 0)
    int8 = plain * np.float32(1.001)
    (row,) = compare("y", plain, int8)
    assert row.snr_db == pytest.approx(60, abs=0.1)  # as of one sample
    assert compare("y", plain[:1], int8[:1])[0].snr_db == pytest.approx(row.snr_db, abs=0.1)


def test_an_output_that_is_not_finite_has_no_figure():
    plain = np.full((5, 3), np.nan, np.float32)
    (row,) = compare("y", plain, plain)
    assert (row.snr_db, row.answers) == (None, 0)
    assert str(row) == "y: greatest value the same in 0.00 %, float's output is not finite in 5 of 5 samples"
    some = RNG.normal(size=(5, 3)).astype(np.float32)
    some[1] = np.nan
    (row,) = compare("y", some, some)
    assert (row.answers, row.broken, row.samples) == (0.8, 1, 5) and row.snr_db == pytest.approx(120)
    masked = np.where(np.arange(3) == 2, -np.inf, some[[0, 2, 3]])
    assert compare("y", masked, masked)[0].broken == 0  # a mask is no fault
    assert by_layer.noise([some], [some]) == pytest.approx(1e-12)


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0])
def test_signal_to_noise_does_not_depend_on_the_unit(size):
    plain, int8 = RNG.normal(size=(2, 30, 4)).astype(np.float32) * np.float32(size)
    signal = np.square(plain.astype(float) - plain.mean(0)).mean(1)
    signal = np.maximum(signal, np.median(signal))
    wanted = (np.square(plain.astype(float) - int8).mean(1) / signal).mean()
    assert noise(plain, int8) == pytest.approx(wanted, rel=1e-4)


def test_points_of_nonzero_are_compared_one_by_one(tmp_path):
    nodes = [helper.make_node("Greater", ["x", "t"], ["g"]), helper.make_node("NonZero", ["g"], ["y"])]
    a, b = (saved(tmp_path / f"{t}.onnx", nodes, (TensorProto.INT64, [2, "m"]), t=np.float32(t)) for t in (0.0, 0.3))
    (row,) = files(a, b, Samples({"x": X})).agreements
    # the second file's points are among the first's, sample by sample; a sample weighs as many points as it has
    counts = [((x > 0).sum(), (x > 0.3).sum()) for x in X]
    wanted = np.average(
        [few / max(many, 1) if many else 1 for many, few in counts], weights=[m or 1 for m, _ in counts]
    )
    assert row.equal == pytest.approx(wanted)


def rest(path, kind):
    """A file of two products with an output that is its input, a constant, or text."""
    value = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes.append(helper.make_node("MatMul", ["r", "w2"], ["y"]))
    outputs, texts = [value("y", TensorProto.FLOAT, ["n", 5])], []
    if kind == "input":
        outputs.append(value("x", TensorProto.FLOAT, ["n", 6]))
    if kind == "constant":
        nodes.append(helper.make_node("Identity", ["w2"], ["c"]))
        outputs.append(value("c", TensorProto.FLOAT, [16, 5]))
    if kind == "text":
        texts = [helper.make_tensor("names", TensorProto.STRING, [5], [b"a", b"b", b"c", b"d", b"e"])]
        nodes += [helper.make_node("ArgMax", ["y"], ["k"], axis=1, keepdims=0)]
        nodes += [helper.make_node("Gather", ["names", "k"], ["t"])]
        outputs.append(value("t", TensorProto.STRING, ["n"]))
    tensors = [
        numpy_helper.from_array(RNG.normal(size=s).astype(np.float32), n) for n, s in (("w", (6, 16)), ("w2", (16, 5)))
    ]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, ["n", 6])], outputs, [*tensors, *texts])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("kind", ["input", "constant", "text"])
def test_a_file_is_simulated_whatever_else_it_gives_out(tmp_path, kind):
    rest(tmp_path / "m.onnx", kind)
    np.savez(tmp_path / "d.npz", x=X)
    made = quantize(tmp_path / "m.onnx", data=tmp_path / "d.npz", out=tmp_path / "q.onnx", slower_int8=True)
    assert made.differ == 0 and not [n for n in made.notes if "simulation" in n]
    assert len(simulation(tmp_path / "q.onnx", {"x": X})) > 2
