"""Probes: counts by hand, an oracle for the memory plan, formulas of fidelity."""

import itertools
import json

import numpy as np
import onnx
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

import edgekd
from edgekd import intervals
from edgekd.decisions import budget
from edgekd.errors import RunFailed, UsageError
from edgekd.measure import operators, trace
from edgekd.metrics import mean_error, top1
from edgekd.probes import Subject, _classes, ece, measure, memory, quality, static
from edgekd.probes.memory import Buffer
from edgekd.records import Candidate, Metric


def model(nodes, shapes, constants, dtype=T.FLOAT):
    """A checked model. shapes: {"in:name" or "out:name": shape}."""
    given = [h.make_tensor_value_info(n[3:], dtype, s) for n, s in shapes.items() if n.startswith("in:")]
    made = [h.make_tensor_value_info(n[4:], dtype, s) for n, s in shapes.items() if n.startswith("out:")]
    graph = h.make_graph(nodes, "g", given, made, [nh.from_array(np.asarray(a), n) for n, a in constants.items()])
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def laid_out(made):
    """The buffers of a model at batch 1."""
    return memory.planned(made, static.known(made))


def f(*shape):
    return np.zeros(shape, np.float32)


def network():
    """Convolution 1 -> 16 and 16 -> 16 of 3x3 on 8x8 with Relu6, global pool, Gemm to 10."""
    nodes = [
        h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        h.make_node("Clip", ["a", "low", "high"], ["b"]),
        h.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        h.make_node("Relu", ["c"], ["d"]),
        h.make_node("GlobalAveragePool", ["d"], ["e"]),
        h.make_node("Reshape", ["e", "shape"], ["f"]),
        h.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    constants = {"w1": f(16, 1, 3, 3), "w2": f(16, 16, 3, 3), "w3": f(10, 16), "b3": f(10)}
    constants |= {"low": np.float32(0), "high": np.float32(6), "shape": np.array([-1, 16])}
    return model(nodes, {"in:x": ["batch", 1, 8, 8], "out:y": ["batch", 10]}, constants)


def quantized():
    """The same network between quantize and dequantize, weights as int8."""
    nodes, constants = [], {"s": np.float32(0.05), "z": np.uint8(128)}

    def site(value, name):
        nodes.append(h.make_node("QuantizeLinear", [value, "s", "z"], [name + "_q"]))
        nodes.append(h.make_node("DequantizeLinear", [name + "_q", "s", "z"], [name]))

    def weight(name, *shape):
        constants.update({name + "_i": np.ones(shape, np.int8), name + "_z": np.zeros(shape[0], np.int8)})
        constants[name + "_s"] = np.full(shape[0], 0.1, np.float32)
        nodes.append(h.make_node("DequantizeLinear", [name + "_i", name + "_s", name + "_z"], [name], axis=0))

    site("x", "x0")
    weight("w1", 16, 1, 3, 3)
    nodes.extend([h.make_node("Conv", ["x0", "w1"], ["a"], pads=[1] * 4), h.make_node("Relu", ["a"], ["b"])])
    site("b", "b0")
    weight("w2", 16, 16, 3, 3)
    nodes.append(h.make_node("Conv", ["b0", "w2"], ["c"], pads=[1] * 4))
    site("c", "c0")
    nodes.append(h.make_node("Add", ["b0", "c0"], ["d"]))
    site("d", "d0")
    nodes.append(h.make_node("GlobalAveragePool", ["d0"], ["e"]))
    site("e", "e0")
    nodes.append(h.make_node("Flatten", ["e0"], ["f"]))
    weight("w3", 10, 16)
    nodes.append(h.make_node("Gemm", ["f", "w3"], ["g"], transB=1))
    site("g", "y")
    return model(nodes, {"in:x": ["batch", 1, 8, 8], "out:y": ["batch", 10]}, constants)


MACS = 64 * 16 * 9 + 64 * 16 * 16 * 9 + 160


def one(kind, inputs, output, constants, **attributes):
    """A model of one operator on the graph inputs, then the constants."""
    node = h.make_node(kind, [*inputs, *constants], ["y"], **attributes)
    return model([node], {**{f"in:{n}": s for n, s in inputs.items()}, "out:y": output}, constants)


COUNTED = {
    "grouped": (
        one("Conv", {"x": ["n", 8, 5, 5]}, ["n", 8, 5, 5], {"w": f(8, 2, 3, 3)}, group=4, pads=[1] * 4),
        25 * 8 * 18,
    ),
    "strided": (one("Conv", {"x": ["n", 3, 9, 9]}, ["n", 4, 4, 4], {"w": f(4, 3, 3, 3)}, strides=[2, 2]), 16 * 4 * 27),
    # every one of 6 x 25 inputs meets 4 output channels x 2 x 2 taps
    "transposed": (
        one("ConvTranspose", {"x": ["n", 6, 5, 5]}, ["n", 4, 10, 10], {"w": f(6, 4, 2, 2)}, strides=[2, 2]),
        2400,
    ),
    "gemm, A transposed": (one("Gemm", {"x": [1, 7]}, [7, 3], {"w": f(1, 3)}, transA=1), 7 * 1 * 3),
    # every one of 2 x 3 rows meets 4 columns of 2
    "einsum": (one("Einsum", {"x": ["n", 3, 2]}, ["n", 3, 4], {"w": f(2, 4)}, equation="bij,jk->bik"), 24),
    "two activations": (one("MatMul", {"x": ["n", 4, 5, 6], "z": ["n", 4, 6, 7]}, ["n", 4, 5, 7], {}), 4 * 5 * 6 * 7),
}


@pytest.mark.parametrize("name", COUNTED)
def test_macs_of_one_operator(name):
    made, expected = COUNTED[name]
    assert static.macs(made) == (expected, ())


def test_macs_of_integer_operators():
    scale, zero = np.float32(1), np.uint8(0)
    nodes = [
        h.make_node("QLinearConv", ["x", "s", "z", "w", "s", "zw", "s", "z"], ["a"]),
        h.make_node("Flatten", ["a"], ["b"]),
    ]
    nodes.append(h.make_node("QLinearMatMul", ["b", "s", "z", "v", "s", "zw", "s", "z"], ["y"]))
    constants = {
        "s": scale,
        "z": zero,
        "zw": np.int8(0),
        "w": np.ones((4, 3, 3, 3), np.int8),
        "v": np.ones((64, 5), np.int8),
    }
    made = model(nodes, {"in:x": ["n", 3, 6, 6], "out:y": ["n", 5]}, constants, T.UINT8)
    assert static.macs(made) == (16 * 4 * 27 + 64 * 5, ())
    assert static.parameters(made) == 4 * 27 + 64 * 5


def test_both_forms_of_a_network_have_the_same_counts():
    assert static.macs(network())[0] == static.macs(quantized())[0] == MACS
    assert static.parameters(network()) == 16 * 9 + 16 * 16 * 9 + 160 + 10  # not the limits of the Clip, nor the shape
    assert static.parameters(quantized()) == 16 * 9 + 16 * 16 * 9 + 160  # not the scales


def test_static_measurements_are_exact(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    found = {m.name: m for m in measure(Subject(file=path))}
    assert (
        found["file_bytes"].value == path.stat().st_size
        and found["macs"].value == MACS
        and found["parameters"].value == 2618
    )
    assert all(m.origin == "counted" and m.low == m.value == m.high for m in found.values())


def test_what_is_not_counted_is_said(tmp_path):
    """It is left out of the sum, which is then no figure that a budget passes by."""
    made = one("Einsum", {"x": [1, 3, 2]}, [1, 3, 4], {"w": f(2, 4), "v": f(4, 4)}, equation="bij,jk,kl->bil")
    onnx.save(made, tmp_path / "m.onnx")
    found = next(m for m in measure(Subject(file=tmp_path / "m.onnx")) if m.name == "macs")
    assert found.note == "not counted: Einsum"
    subject = Candidate("c", "c", 0, (), (), "onnx", None, "", (found,))
    for rule in ("max 1 M", "min 0"):
        (check,) = budget.judge(budget.rules({"any": {"macs": rule}}, "host"), subject, target="host")
        assert check.verdict == "inconclusive" and "Einsum" in check.reason


def test_an_operator_of_which_nothing_is_known_is_not_counted_as_nothing():
    nodes = [h.make_node("MatMul", ["x", "w"], ["a"]), h.make_node("Mixer", ["a"], ["y"], domain="own")]
    value = lambda name: h.make_tensor_value_info(name, T.FLOAT, ["n", 4])
    graph = h.make_graph(nodes, "g", [value("x")], [value("y")], [nh.from_array(f(4, 4), "w")])
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 20), h.make_opsetid("own", 1)])
    assert static.macs(made) == (16, ("Mixer",))


@pytest.mark.parametrize("kind, gates", [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers_are_the_products_of_their_steps(kind, gates, both):
    # 3 steps of 2 inputs, 4 states: each gate of each direction takes 4 x (2 + 4) a step
    n = 1 + both
    way = {"hidden_size": 4, "direction": "bidirectional" if both else "forward"}
    nodes = [
        h.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        h.make_node(kind, ["t", "w", "r"], ["", "y"], **way),
    ]
    made = model(nodes, {"in:x": ["n", 3, 2], "out:y": [n, "n", 4]}, {"w": f(n, 4 * gates, 2), "r": f(n, 4 * gates, 4)})
    assert static.macs(made) == (3 * n * gates * 4 * (2 + 4), ())


def test_constant_nodes_hold_parameters_too():
    nodes = [h.make_node("Constant", [], ["w"], value=nh.from_array(f(8, 4))), h.make_node("MatMul", ["x", "w"], ["y"])]
    made = model(nodes, {"in:x": ["n", 8], "out:y": ["n", 4]}, {})
    assert static.parameters(made) == 32 and static.macs(made)[0] == 32


def test_what_open_dimensions_hide_is_missing_and_named(tmp_path):
    made = one("Conv", {"x": ["n", 3, "height", "width"]}, ["n", 4, "h", "w"], {"w": f(4, 3, 3, 3)})
    onnx.save(made, tmp_path / "m.onnx")
    found = {m.name: m for m in measure(Subject(file=tmp_path / "m.onnx"))}
    assert {"file_bytes", "parameters"} <= found.keys() and found.keys().isdisjoint({"macs", "activation_bytes"})
    assert "the shape of `x` can't be found" in found["parameters"].note
    subject = Candidate("c", "c", 0, (), (), "onnx", None, "", tuple(found.values()))
    (check,) = budget.judge(budget.rules({"any": {"macs": "max 1 M"}}, "host"), subject, target="host")
    assert check.verdict == "inconclusive" and "the shape of `x` can't be found" in check.reason
    with pytest.raises(UsageError, match="the shape of `x` can't be found"):
        static.node_macs(made)


def test_files_that_are_no_models_are_refused(tmp_path):
    path, good = tmp_path / "m.onnx", network().SerializeToString()
    for data in (b"", b"hello", good[: len(good) // 2], np.random.default_rng(0).bytes(5000), good[:10]):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="not an ONNX file|not a valid ONNX file"):
            static.read(path)
    with pytest.raises(UsageError, match="No such file"):
        static.read(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="can't be read"):
        static.read(tmp_path)


def test_damaged_models_end_in_an_error_of_use_or_in_figures(tmp_path):
    generator, refused = np.random.default_rng(0), 0
    for data in (network().SerializeToString(), quantized().SerializeToString()):
        for _ in range(80):
            damaged = bytearray(data)
            for _ in range(generator.integers(1, 4)):
                # names, types and shapes stand at the end
                damaged[-generator.integers(1, 600)] = generator.integers(0, 256)
            (tmp_path / "m.onnx").write_bytes(damaged)
            try:
                measure(Subject(file=tmp_path / "m.onnx"))
            except UsageError:
                refused += 1
    assert refused > 40


def foreign(kind, inputs, outputs, shape, domain="other", **given):
    """A model of one operator that the checker doesn't look at, by its domain, before a Relu."""
    nodes = [h.make_node(kind, inputs, outputs, domain=domain, **given), h.make_node("Relu", ["x"], ["y"])]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, shape)],
        [h.make_tensor_value_info("y", T.FLOAT, shape)],
        [nh.from_array(f(4, 4), "w")],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(domain, 1)])


@pytest.mark.parametrize(
    "made",
    [
        foreign("Conv", ["x"], ["u"], ["n", 4]), foreign("Conv", ["x", "w"], [], ["n", 4]),
        foreign("Reshape", [], ["u"], ["n", 4]),
        foreign("MatMulNBits", ["x", "w", "w"], ["u"], ["n", 4], "com.microsoft"),
        foreign("QLinearConv", ["x", "w"], ["u"], ["n", 4]),
        foreign("MatMulNBits", ["x", "w"], ["u"], ["n", 4], "com.microsoft", K=4, N=4),
    ],
)  # fmt: skip
def test_operators_that_nobody_checked_are_refused(tmp_path, made):
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UsageError, match="is not a valid ONNX file"):
        static.read(tmp_path / "m.onnx")


@pytest.mark.parametrize("shape", [["n", -5], ["n", 2**62, 2**62], ["n", *[2**62] * 20]])
def test_shapes_that_no_memory_holds_are_refused(tmp_path, shape):
    onnx.save(foreign("Relu", ["x"], ["u"], shape), tmp_path / "m.onnx")
    for count in (static.measure, memory.measure):
        with pytest.raises(UsageError, match="fits in no memory"):
            list(count(Subject(file=tmp_path / "m.onnx")))


@pytest.mark.parametrize("kind", ["Relu", "Identity"])
def test_a_long_chain_in_a_quantized_network_is_planned(kind):
    """As deep as a stack is not."""
    ends = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["v0"]),
    ]
    chain = [h.make_node(kind, [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]
    last = [
        h.make_node("QuantizeLinear", ["v3000", "s", "z"], ["r"]),
        h.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    parameters = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)}
    made = model([*ends, *chain, *last], {"in:x": ["n", 4], "out:y": ["n", 4]}, parameters)
    assert laid_out(made)


def test_data_outside_is_found_inside_of_subgraphs(tmp_path):
    tensor = nh.from_array(f(2), "hidden")
    tensor.data_location = T.EXTERNAL
    tensor.external_data.add(key="location", value="x.bin")
    branch = h.make_graph(
        [h.make_node("Identity", ["hidden"], ["o"])], "b", [], [h.make_tensor_value_info("o", T.FLOAT, [2])], [tensor]
    )
    graph = h.make_graph(
        [h.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], "g",
        [h.make_tensor_value_info("c", T.BOOL, [])], [h.make_tensor_value_info("y", T.FLOAT, [2])],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(h.make_model(graph).SerializeToString())
    with pytest.raises(UsageError, match="hidden"):
        static.read(path)


# ---------------------------------------------------------------- memory


def test_activations_of_the_network_by_hand():
    """fp32: the two 16 x 8 x 8 maps of the second convolution, 4096 B each; Clip and Relu work in place, Reshape is a
    view."""
    found = laid_out(network())
    assert {b.name: b.size for b in found} == {"x": 256, "a": 4096, "c": 4096, "e": 64, "y": 40}
    assert memory.live(found) == memory.arena(found, memory.plan(found)) == 8192


def test_activations_of_the_quantized_network_by_hand():
    """int8: at the addition three maps of 1024 B live; dequantized values are never written. The input is given, and
    the output wanted, in float."""
    found = laid_out(quantized())
    assert sorted(b.size for b in found) == sorted([256, 64, 1024, 1024, 1024, 16, 10, 40])
    assert memory.live(found) == memory.arena(found, memory.plan(found)) == 3072


def test_a_float_island_in_a_quantized_network_is_paid_for_in_float():
    """Nothing quantizes the result of Erf again, so no integer runtime computes it: its input is dequantized into
    memory."""
    constants = {"s": np.float32(0.05), "z": np.uint8(0)}
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        h.make_node("Erf", ["d"], ["e"]),
        h.make_node("Neg", ["e"], ["y"]),
    ]
    found = {b.name: b.size for b in laid_out(model(nodes, {"in:x": ["n", 100], "out:y": ["n", 100]}, constants))}
    assert found == {"x": 400, "q": 100, "d": 400, "e": 400, "y": 400}


def test_what_is_computed_at_loading_needs_no_shape_to_be_planned(tmp_path):
    nodes = [h.make_node("Compress", ["all", "some"], ["slope"]), h.make_node("PRelu", ["x", "slope"], ["y"])]
    constants = {"all": f(3), "some": np.array([True, False, False])}
    onnx.save(model(nodes, {"in:x": ["n", 8], "out:y": ["n", 8]}, constants), tmp_path / "m.onnx")
    found = {m.name: m for m in measure(Subject(file=tmp_path / "m.onnx"))}
    assert found["activation_bytes"].value == 64 and found["file_bytes"].note == ""


def test_a_branch_that_reads_an_input_is_not_computed_at_loading():
    branch = lambda name, kind: h.make_graph(
        [h.make_node(kind, ["x"], [name])], name, [], [h.make_tensor_value_info(name, T.FLOAT, ["n", 8])]
    )
    nodes = [
        h.make_node("If", ["yes"], ["a"], then_branch=branch("t", "Exp"), else_branch=branch("e", "Neg")),
        h.make_node("Exp", ["a"], ["y"]),
    ]
    made = model(nodes, {"in:x": ["n", 8], "out:y": ["n", 8]}, {"yes": np.array(True)})
    assert {b.name for b in laid_out(made)} == {"x", "a", "y"}


def test_a_value_that_is_read_again_is_not_overwritten_in_place():
    nodes = [h.make_node("Neg", ["x"], ["a"]), h.make_node("Relu", ["a"], ["b"]), h.make_node("Add", ["a", "b"], ["y"])]
    found = {b.name: b.size for b in laid_out(model(nodes, {"in:x": ["n", 100], "out:y": ["n", 100]}, {}))}
    assert found == {"x": 400, "a": 400, "b": 400, "y": 400}


def test_graph_outputs_live_to_the_end():
    nodes = [
        h.make_node("Neg", ["x"], ["y"]),
        h.make_node("Neg", ["y"], ["a"]),
        h.make_node("Exp", ["a"], ["b"]),
        h.make_node("Neg", ["b"], ["z"]),
    ]
    found = {b.name: b for b in laid_out(model(nodes, {"in:x": ["n", 4], "out:y": ["n", 4], "out:z": ["n", 4]}, {}))}
    assert (found["y"].first, found["y"].last) == (0, 3) and (found["a"].first, found["a"].last) == (1, 2)


def test_greedy_by_size_by_hand():
    """Largest first (a, b at 0 and 32 for both live at 1), then c beside b, and d in the gap under b once a is dead."""
    found = [Buffer("a", 32, 0, 1), Buffer("b", 32, 1, 3), Buffer("c", 16, 2, 3), Buffer("d", 16, 3, 3)]
    assert memory.plan(found) == {"a": 0, "b": 32, "c": 0, "d": 16}
    assert memory.arena(found, memory.plan(found)) == 64 == memory.live(found)


def test_sizes_are_rounded_up_to_the_alignment():
    found = [Buffer("a", 1, 0, 1), Buffer("b", 17, 0, 1)]
    assert memory.plan(found) == {"b": 0, "a": 32} and memory.arena(found, memory.plan(found)) == 48


buffer_lists = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6)


def best(found):
    """The least arena of all plans: first fit in every order reaches the optimum (an optimal plan's own order is among
    them)."""
    least = None
    for order in itertools.permutations(found):
        placed, top = [], 0
        for b in order:
            offset = 0
            for o, other in sorted((o, x) for o, x in placed if x.first <= b.last and b.first <= x.last):
                if o - offset >= b.size:
                    break
                offset = max(offset, o + other.size)
            placed.append((offset, b))
            top = max(top, offset + b.size)
        least = top if least is None else min(least, top)
    return least


@settings(max_examples=150, deadline=None)
@given(buffer_lists)
def test_a_plan_overlaps_nothing_and_lies_between_the_bounds(raw):
    Ordered = type("Ordered", (Buffer,), {"__lt__": lambda a, b: a.name < b.name})
    found = [Ordered(str(i), 16 * size, first, first + length) for i, (size, first, length) in enumerate(raw)]
    offsets = memory.plan(found)
    for a, b in itertools.combinations(found, 2):
        together = a.first <= b.last and b.first <= a.last
        assert (
            not together or offsets[a.name] + a.size <= offsets[b.name] or offsets[b.name] + b.size <= offsets[a.name]
        )
    planned, optimum = memory.arena(found, offsets), best(found)
    assert memory.live(found) <= optimum <= planned <= sum(b.size for b in found)
    assert planned <= 2 * optimum


def test_memory_measurement_says_the_bound(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    (found,) = memory.measure(Subject(file=tmp_path / "m.onnx"))
    assert (found.name, found.value, found.low, found.high) == ("activation_bytes", 8192, 8192, 8192)
    assert (found.origin, found.note) == ("counted", "live set 8192 B")


# ---------------------------------------------------------------- quality

Y = np.random.default_rng(0).integers(0, 5, 400)
TEACHER = np.random.default_rng(1).normal(size=(400, 5)) + 4 * np.eye(5)[Y]
STUDENT = TEACHER + np.random.default_rng(2).normal(size=(400, 5))


def by_name(outputs, labels, metrics, teacher=None):
    given = {"outputs": outputs, "labels": labels, "metrics": metrics, "teacher": teacher, "split": "test"}
    return {m.name: m for m in measure(Subject(**given))}


def plain_ece(logits, labels):
    """In percent."""
    return 100 * ece.plain(_classes.confidence(np.asarray(logits)), _classes.right(np.asarray(logits), labels))


def test_kl_is_scipys():
    expected = [
        scipy.stats.entropy(scipy.special.softmax(t), scipy.special.softmax(s))
        for t, s in zip(TEACHER, STUDENT, strict=True)
    ]
    assert quality.kl(TEACHER, STUDENT) == pytest.approx(expected)
    assert by_name(STUDENT, Y, [], teacher=TEACHER)["kl_to_teacher"].value == pytest.approx(np.mean(expected))
    assert (quality.kl(STUDENT, STUDENT) == 0).all()
    assert quality.kl(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]])) == pytest.approx([1e4])  # no overflow


def test_kl_by_hand():
    # (3/4, 1/4) against (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2
    assert quality.kl(np.log([[3.0, 1.0]]), np.zeros((1, 2))) == pytest.approx(
        [0.75 * np.log(1.5) + 0.25 * np.log(0.5)]
    )


def test_ece_by_hand():
    """Four answers with confidence 0.8, three right; one with 0.6, wrong: (4 |0.75 - 0.8| + 1 |0 - 0.6|) / 5 = 16 %."""
    logits = np.log([[0.8, 0.2]] * 4 + [[0.6, 0.4]])
    assert plain_ece(logits, np.array([0, 0, 0, 1, 1])) == pytest.approx(16.0)
    # neighbouring bins don't make up for each other: 0.9 always right, 0.97 always wrong, (2 * 0.1 + 2 * 0.97) / 4
    neighbours = np.log([[0.9, 0.1]] * 2 + [[0.97, 0.03]] * 2)
    assert plain_ece(neighbours, np.array([0, 0, 1, 1])) == pytest.approx(53.5)
    # confidence 1 falls into the last bin
    assert plain_ece(np.array([[100.0, 0.0]] * 3), np.zeros(3, int)) == pytest.approx(0.0, abs=1e-9)


def test_ece_is_the_definition_spelled_out():
    confidence, right, n = scipy.special.softmax(STUDENT, axis=1).max(1), STUDENT.argmax(1) == Y, len(Y)
    expected = 0.0
    for i in range(15):
        within = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if within.any():
            expected += within.sum() / n * abs(right[within].mean() - confidence[within].mean())
    assert plain_ece(STUDENT, Y) == pytest.approx(100 * expected)


def answered(generator, n, over):
    """Logits and labels of n samples: most confidences are 0.99 and above; the share of right answers is `over`
    less."""
    sure = np.where(generator.random(n) < 0.85, 0.99 + 0.0099 * generator.random(n), generator.uniform(0.55, 0.99, n))
    logits = np.stack([np.log(sure), np.log((1 - sure) / 2), np.log((1 - sure) / 2)], axis=1)
    return logits, np.where(generator.random(n) < sure - over, 0, 1)


def test_a_calibrated_model_is_within_a_budget_of_calibration():
    """Its true error is 0: the interval holds that, and no gate at 1.5 % finds more."""
    held = 0
    for seed in range(20):
        logits, labels = answered(np.random.default_rng(seed), 900, 0.0)
        found = by_name(logits, labels, [])["ece"]
        held += found.low == 0
        (check,) = budget.judge(
            (budget.parse("ece", "max 1.5 %"),),
            Candidate("a", "a", 0, (), (), "onnx", None, "", (found,)),
            target="host",
        )
        assert check.verdict != "fail" and 0 <= found.low <= found.value <= found.high
        assert f"is {plain_ece(logits, labels):.2f} %" in found.note and found.value < plain_ece(logits, labels)
    assert held >= 17


@pytest.mark.parametrize("n, over", [(100, 0.02), (900, 0.02), (900, 0.10)])
def test_the_interval_of_the_calibration_error_holds_the_true_one(n, over):
    found = [by_name(*answered(np.random.default_rng(seed), n, over), [])["ece"] for seed in range(20)]
    assert sum(m.low <= 100 * over <= m.high for m in found) >= 17
    assert (
        np.mean([m.value for m in found]) == pytest.approx(100 * over, abs=1.5)
        and np.mean([m.high - m.low for m in found]) < 700 / np.sqrt(n) * 2
    )


def test_worst_class_drop_by_hand():
    labels = np.repeat([0, 1, 2], 50)
    theirs, ours = np.ones(150), np.ones(150)
    ours[50:60] = 0  # class 1 loses 20 points
    ours[100:105] = 0
    value, low, high = quality.worst_class_drop(ours, theirs, labels)
    assert value == pytest.approx(20) and 0 < low < 20 < high
    alone = intervals.paired(theirs[50:100], ours[50:100], 1 - 0.05 / 3)  # three classes were looked at
    assert (low, high) == pytest.approx((100 * alone[1], 100 * alone[2]))


def test_figures_of_a_classifier():
    found = by_name(STUDENT, Y, [top1()], teacher=TEACHER)
    assert set(found) == {"top1", "agreement", "kl_to_teacher", "ece", "worst_class_drop"}
    assert found["top1"].value == pytest.approx(100 * np.mean(STUDENT.argmax(1) == Y))
    assert found["agreement"].value == pytest.approx(100 * np.mean(STUDENT.argmax(1) == TEACHER.argmax(1)))
    for m in found.values():
        assert (
            m.low <= m.value <= m.high
            and m.low < m.high
            and m.n == 400
            and m.split == "test"
            and m.origin == "measured"
        )


def test_a_single_logit_counts_as_two_classes():
    z, t, labels = STUDENT[:, :1], TEACHER[:, 0], (Y == 0).astype(int)
    found = by_name(z, labels, [top1()], teacher=t)
    assert found["agreement"].value == pytest.approx(100 * np.mean((z[:, 0] > 0) == (t > 0)))
    p, q = scipy.special.expit(t), scipy.special.expit(z[:, 0])
    assert found["kl_to_teacher"].value == pytest.approx(
        np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    )


def test_regression_has_its_metric_alone():
    assert set(by_name(STUDENT[:, :1], TEACHER[:, 0], [mean_error()], teacher=TEACHER[:, :1])) == {"mean_error"}
    assert set(by_name({"a": STUDENT, "b": STUDENT}, Y, [top1(output="a")], teacher={"a": TEACHER, "b": TEACHER})) == {
        "top1"
    }


def test_figures_are_of_the_records_as_they_are_kept():
    """In float32, a mean is off by more than two files may differ."""
    error = np.random.default_rng(0).random(3000).astype(np.float32)
    own = Metric("own", "", "lower", lambda o, y: np.abs(o - y), lambda r: float(np.mean(r)))
    found = by_name(error, 0 * error, [own])
    assert list(found) == ["own"] and found["own"].value == pytest.approx(error.astype(np.float64).mean(), rel=1e-12)


def test_without_teacher_or_labels_what_needs_them_is_left_out():
    assert set(by_name(STUDENT, Y, [top1()])) == {"top1", "ece"}
    assert by_name(STUDENT, None, [top1()], teacher=TEACHER) == {}


def test_broken_outputs_give_no_figure_that_is_not_a_number():
    broken = STUDENT.copy()
    broken[:100] = np.nan
    found = by_name(broken, Y, [top1()], teacher=TEACHER)
    assert "kl_to_teacher" not in found and "ece" not in found
    assert found["top1"].value <= 75 and found["agreement"].value <= 75
    assert all(np.isfinite([m.value, m.low, m.high]).all() for m in found.values())


def test_lengths_that_differ_are_told():
    with pytest.raises(ValueError, match="399 and 400 samples"):
        by_name(STUDENT, Y, [], teacher=TEACHER[:399])


# ---------------------------------------------------------------- operators, trace


def recorded():
    """Two warm-up inferences of 1 ms and two of 100 us: conv 60 us, then the same node name twice (10 + 20 us)."""
    found = [{"cat": "Session", "name": "model_loading_uri", "ts": 0, "dur": 5, "args": {"path": "/somewhere/secret"}}]
    for run, begun in enumerate((100, 2000, 4000, 5000)):
        slow = 10 if run < 2 else 1
        for name, kind, at, spent in (
            ("c", "Conv", 5, 60),
            ("r", "ReorderOutput", 70, 10),
            ("r", "ReorderOutput", 80, 20),
        ):
            event = {
                "cat": "Node",
                "name": f"{name}_kernel_time",
                "ts": begun + slow * at,
                "dur": slow * spent,
                "args": {"op_name": kind},
            }
            found.append(event)
        found.append({"cat": "Session", "name": "model_run", "ts": begun, "dur": slow * 100})
    return found


def test_operators_inside_of_a_loop_are_no_time_of_the_loop(tmp_path):
    event = lambda name, kind, ts, dur: {
        "cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": kind}
    }  # fmt: skip
    run = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 200}
    inside = [event("m", "MatMul", 12, 30), event("i", "If", 50, 40), event("c", "Conv", 55, 20)]
    nodes = [event("l", "Loop", 10, 100), *inside, event("g", "Gemm", 110, 50)]
    (tmp_path / "t.json").write_text(json.dumps([run, *nodes]))
    found = operators.measure(tmp_path / "t.json", warmup=0, p50_ms=0.15)
    assert {o.name: round(1000 * o.ms) for o in found.operators} == {"l": 30, "m": 30, "i": 20, "c": 20, "g": 50}
    assert found.scale == pytest.approx(1) and found.gap_ms == pytest.approx(0)
    assert dict(operators.medians(tmp_path / "t.json", warmup=0))["l"] == pytest.approx(0.03)


def test_operators_leave_out_the_warm_up_and_are_scaled(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(recorded()))
    found = operators.measure(path, warmup=2, p50_ms=0.18)
    assert [(o.name, o.kind) for o in found.operators] == [("c", "Conv"), ("r", "ReorderOutput")]
    assert [o.ms for o in found.operators] == pytest.approx([0.12, 0.06])
    assert [o.share for o in found.operators] == pytest.approx([2 / 3, 1 / 3])
    assert found.scale == pytest.approx(2) and found.gap_ms == pytest.approx(0.09)


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", "3"])
def test_a_broken_trace_is_told(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(RunFailed, match="trace"):
        operators.measure(path, warmup=0, p50_ms=1)


def test_chrome_trace_is_valid_and_holds_no_path():
    lines = [{"n": 50, "p50_ms": 0.1, "load_ms": 3.0, "first_ms": 1.0, "wall_ms": 6.0}]
    made = json.loads(json.dumps(trace.chrome("model", recorded(), lines)))
    spans = [e for e in made["traceEvents"] if e["ph"] == "X"]
    assert all(
        set(e) >= {"name", "cat", "ph", "ts", "dur", "pid", "tid"} and e["ts"] >= 0 and e["dur"] >= 0 for e in spans
    )
    assert [(e["name"], e["ts"], e["dur"]) for e in spans if e["cat"] == "operator"] == [
        ("c", 5, 60),
        ("r", 70, 10),
        ("r", 80, 20),
    ]
    assert [(e["name"], e["ts"]) for e in spans if e["cat"] == "process"] == [
        ("load", 0),
        ("first inference", 3000),
        ("steady state", 4000),
    ]
    assert "secret" not in json.dumps(made)


class TestWorstClassAtPositions:
    """Pixels [n, 3, 4, 4] of three classes, of which 255 does not count."""

    of = edgekd.classes(3, ignore_index=255)
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, 2, 255], (40, 4, 4), p=[0.4, 0.3, 0.2, 0.1])
    theirs = np.eye(3)[labels % 3].transpose(0, 3, 1, 2) + rng.normal(0, 0.3, (40, 3, 4, 4))
    ours = theirs + rng.normal(0, 0.5, theirs.shape) - np.array([0, 0, 0.5])[:, None, None]

    def subject(self, labels=None, output=None):
        labels = self.labels if labels is None else labels
        return Subject(outputs=self.ours, teacher=self.theirs, labels=labels, output=output or self.of)

    def test_the_drop_is_averaged_within_a_sample_first(self):
        found = {m.name: m for m in quality.measure(self.subject())}["worst_class_drop"]
        drops = []
        for c in range(3):
            own = [
                (z.argmax(0)[y == c] == c, t.argmax(0)[y == c] == c)
                for z, t, y in zip(self.ours, self.theirs, self.labels, strict=True)
                if (y == c).any()
            ]
            drops.append(100 * np.mean([before.mean() - after.mean() for after, before in own]))
        assert found.value == pytest.approx(max(drops)) and drops.index(max(drops)) == 2
        assert found.low < found.value < found.high and found.n == 40

    def test_the_limits_are_those_of_samples_not_of_positions(self):
        """Repeating each position makes nothing surer."""
        twice = lambda a: np.concatenate((a, a), -1)
        more = Subject(outputs=twice(self.ours), teacher=twice(self.theirs), labels=twice(self.labels), output=self.of)
        one, two = ({m.name: m for m in quality.measure(s)}["worst_class_drop"] for s in (self.subject(), more))
        assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high))

    def test_a_class_in_one_sample_alone_has_no_limits(self):
        labels = np.where(self.labels == 2, 255, self.labels)
        labels[0, 0, 0] = 2
        found = {m.name: m for m in quality.measure(self.subject(labels))}["worst_class_drop"]
        assert found.high == pytest.approx(100) and found.low < found.value < found.high

    def test_yes_or_no_labels_have_no_classes(self):
        found = self.subject((self.labels[:, None] == [[[[0]], [[1]], [[2]]]]).astype(int), edgekd.yes_no())
        assert "worst_class_drop" not in {m.name for m in quality.measure(found)}

    def test_samples_that_do_not_count_are_left_out(self):
        z, t, y = self.ours[..., 0, 0], self.theirs[..., 0, 0], self.labels[:, 0, 0]
        given = Subject(outputs=z, teacher=t, labels=y, output=self.of)
        kept = y != 255
        rest = Subject(outputs=z[kept], teacher=t[kept], labels=y[kept], output=edgekd.classes(3))
        for probe in (quality, ece):
            assert list(probe.measure(given)) == list(probe.measure(rest))
