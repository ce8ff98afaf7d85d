"""What grows with the number of operators stays linear: four times as many take some four times as long, in this
process's own time."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.probes import memory, static
from edgekd.quantization.onnx_graph import normalize
from edgekd.quantization.qdq import graph, operands, simulate
from edgekd.quantization.qdq.pairing import pair

info = helper.make_tensor_value_info


def chain(layers):
    """Products with 4 x 4 bytes, one behind the other, in grids: four operators each."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(v, n) for n, v in (("s", np.float32(0.1)), ("z", np.uint8(0)), ("zi", np.int8(0)))
    ]
    nodes, last = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])], "q"
    for i in range(layers):
        tensors.append(numpy_helper.from_array(rng.integers(-9, 9, (4, 4)).astype(np.int8), f"w{i}"))
        nodes += [
            helper.make_node("DequantizeLinear", [last, "s", "z"], [f"d{i}"]),
            helper.make_node("DequantizeLinear", [f"w{i}", "s", "zi"], [f"v{i}"]),
            helper.make_node("MatMul", [f"d{i}", f"v{i}"], [f"a{i}"], name=f"m{i}"),
            helper.make_node("QuantizeLinear", [f"a{i}", "s", "z"], [f"q{i}"]),
        ]
        last = f"q{i}"
    nodes.append(helper.make_node("DequantizeLinear", [last, "s", "z"], ["y"]))
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", 4])], [info("y", TensorProto.FLOAT, ["n", 4])], tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def moved(layers):
    """Views of quantized values, one behind the other."""
    tensors = [numpy_helper.from_array(v, n) for n, v in (("s", np.float32(0.1)), ("z", np.uint8(0)))]
    tensors.append(numpy_helper.from_array(np.array([-1, 4]), "shape"))
    nodes, last = [], "x"
    for i in range(layers):
        nodes += [
            helper.make_node("QuantizeLinear", [last, "s", "z"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"]),
            helper.make_node("Reshape", [f"d{i}", "shape"], [f"r{i}"]),
        ]
        last = f"r{i}"
    ends = [info("x", TensorProto.FLOAT, ["n", 4])], [info(last, TensorProto.FLOAT, ["n", 4])]
    made = helper.make_graph(nodes, "g", *ends, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def linear(layers):
    """Float layers over sequences, each a product, a bias and an activation."""
    rng, tensors, nodes, last = np.random.default_rng(0), [], [], "x"
    for i in range(layers):
        tensors += [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{name}{i}")
            for name, shape in (("w", (4, 4)), ("b", 4))
        ]
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"a{i}"]),
            helper.make_node("Add", [f"a{i}", f"b{i}"], [f"c{i}"]),
            helper.make_node("Tanh", [f"c{i}"], [f"t{i}"]),
        ]
        last = f"t{i}"
    ends = [info("x", TensorProto.FLOAT, ["n", 3, 4])], [info(last, TensorProto.FLOAT, ["n", 3, 4])]
    made = helper.make_graph(nodes, "g", *ends, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def buffers(count):
    """Values of many sizes, each alive for three operators."""
    return [memory.Buffer(f"b{i}", 64 * (1 + i % 7), i, i + 2) for i in range(count)]


WORK = {
    "counted": (chain, lambda model: static.macs(model), 500),
    "planned": (chain, lambda model: memory.plan(memory.planned(model, static.known(model))), 500),
    "placed": (buffers, memory.plan, 2000),
    "simulated": (chain, simulate.read, 500),
    "live": (buffers, memory.live, 4000),
    "read": (chain, operands.read, 500),
    "traced": (moved, lambda model: graph.of(model).origin("r0"), 1000),
    "paired": (moved, lambda model: pair(model, model), 1000),
    "normalized": (linear, normalize.normalized, 150),
}


@pytest.mark.parametrize("what", WORK)
def test_four_times_as_many_take_less_than_nine_times_as_long(what):
    make, work, count = WORK[what]
    best = []
    for size in (count, 4 * count):
        given, taken = make(size), []
        for _ in range(3):
            begun = time.process_time()
            work(given)
            taken.append(time.process_time() - begun)
        best.append(min(taken))
    assert best[1] < 9 * max(best[0], 1e-3), best


def test_a_plan_of_buffers_that_never_meet_uses_the_same_bytes_again():
    found = [memory.Buffer(f"b{i}", 64, 2 * i, 2 * i + 1) for i in range(3000)]
    assert set(memory.plan(found).values()) == {0} and memory.live(found) == 64
    together = [memory.Buffer(f"b{i}", 64, 0, 9) for i in range(50)]
    assert sorted(memory.plan(together).values()) == [64 * i for i in range(50)] and memory.live(together) == 3200


def test_a_file_of_many_operators_is_read_as_any_other(tmp_path):
    model = chain(1500)
    onnx.save(model, tmp_path / "big.onnx")
    assert len(simulate.read(static.read(tmp_path / "big.onnx")).kernels) == 1500
