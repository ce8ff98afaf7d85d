"""Inputs and outputs of files whose graphs are not one line: what is put together, subgraphs, outputs on the way."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from edgekd.errors import UsageError
from edgekd.quantization.onnx_graph import interface

SCALE, ZERO = 0.5, 10


def file(nodes, inputs=("x",), outputs=("y",), more=()):
    """[n, 2, 3] each; `y` is what `q` stands for, the QuantizeLinear node that comes last."""
    stored = {"s": np.float32(SCALE), "z": np.uint8(ZERO), "c": np.full((1, 2, 3), 7.25, np.float32), **dict(more)}
    nodes = [h.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes]
    value = lambda n, dims, kind=T.FLOAT: h.make_tensor_value_info(n, kind, dims)
    graph = h.make_graph(
        [*nodes, h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "g",
        [value(n, ["n", 2, 3]) if n != "yes" else value(n, [], T.BOOL) for n in inputs],
        [value(n, ["n", f"{n}1", f"{n}2"]) for n in outputs],
        [nh.from_array(a, n) for n, a in stored.items()],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def quantize(name):
    return ("QuantizeLinear", [name, "s", "z"], ["q"])


def branches(then, name="if", made="i"):
    """An If whose branches add the value `then` to the constant 1, or give it."""
    one = h.make_node("Constant", [], ["one"], value=nh.from_array(np.float32(1)))
    graph = lambda nodes, n: h.make_graph(nodes, n, [], [h.make_tensor_value_info(nodes[-1].output[0], T.FLOAT, None)])
    first = graph([one, h.make_node("Add", [then, "one"], ["a"])], "then")
    second = graph([h.make_node("Identity", [then], ["b"])], "else")
    return ("If", ["yes"], [made], {"then_branch": first, "else_branch": second, "name": name})


def run(model, feed):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def feed(*names, n=1):
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 40, (n, 2, 3)).astype(np.float32) for name in names}


def agree(model, given, more=None, **options):
    """Both files' answers, by onnxruntime."""
    made, form = interface.dressed(model, **options)
    for name, one in form.bytes.items():
        assert made.graph.input[list(given).index(name)].type.tensor_type.elem_type == T.UINT8, one
    wanted, found = run(model, {**given, **(more or {})}), run(made, {**interface.taken(form, given), **(more or {})})
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    return made, form


def test_two_inputs_that_are_put_together():
    model = file([("Concat", ["x", "w"], ["k"], {"axis": 1}), quantize("k")], ["x", "w"])
    made, form = agree(model, feed("x", "w"), uint8=True)
    assert set(form.bytes) == {"x", "w"} and [n.op_type for n in made.graph.node] == ["Concat", "DequantizeLinear"]


def test_a_stored_number_that_is_put_together_with_an_input():
    model = file([("Concat", ["x", "c"], ["k"], {"axis": 1}), quantize("k")])
    made, _ = agree(model, feed("x"), uint8=True)
    byte = next(nh.to_array(i) for i in made.graph.initializer if i.name == "c.byte")
    assert byte.dtype == np.uint8 and (byte == 24).all()  # 7.25 / 0.5 + 10, to the even one


def test_values_on_the_way_keep_no_type_that_they_had():
    model = file([("Transpose", ["x"], ["t"], {"perm": [0, 2, 1]}), quantize("t")])
    model.graph.value_info.append(h.make_tensor_value_info("t", T.FLOAT, ["n", 3, 2]))
    agree(model, feed("x"), uint8=True)


def test_depth_and_space():
    """Slices that are put together are SpaceToDepth once onnxruntime folded them."""
    nodes = [("Reshape", ["x", "four"], ["k"]), ("SpaceToDepth", ["k"], ["d"], {"blocksize": 2})]
    nodes += [("DepthToSpace", ["d"], ["e"], {"blocksize": 2}), ("Reshape", ["e", "three"], ["t"]), quantize("t")]
    more = {"four": np.array([1, 2, 2, 6]), "three": np.array([-1, 2, 3])}
    made, _ = agree(file(nodes, more=more), feed("x", n=4), uint8=True)
    assert "QuantizeLinear" not in {n.op_type for n in made.graph.node}


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_padding(mode):
    more = {"p": np.array([0, 0, 1, 0, 0, 1]), "f": np.float32(-3)}
    agree(file([("Pad", ["x", "p", "f"], ["k"], {"mode": mode}), quantize("k")], more=more), feed("x"), uint8=True)


@pytest.mark.parametrize(
    "nodes, more, told",
    [
        ([("Relu", ["w"], ["r"]), ("Concat", ["x", "r"], ["k"], {"axis": 1})], {}, "w is read by Relu.r. in float"),
        ([("ReduceMax", ["w"], ["m"], {"keepdims": 0}), ("Pad", ["x", "p", "m"], ["k"])], {}, "x is read by Pad.k. in"),
        ([branches("x"), ("Add", ["i", "x"], ["k"])], {}, "x is read in a subgraph, in float"),
        ([("Identity", ["x"], ["k"]), ("QuantizeLinear", ["k", "s2", "z"], ["o"])], {}, "x is quantized in several"),
        ([("Identity", ["x"], ["k"])], {"z": np.int8(0)}, "x is not quantized to unsigned bytes"),
    ],
)
def test_what_can_not_be_bytes_is_told(nodes, more, told):
    stored = {"p": np.array([0, 0, 1, 0, 0, 1]), "s2": np.float32(3), **more}
    with pytest.raises(UsageError, match=told):
        interface.dressed(file([*nodes, quantize("k")], ["x", "w", "yes"], more=stored), uint8=True)


def test_every_input_that_can_not_be_bytes_is_told_at_once():
    nodes = [("Relu", ["x"], ["r"]), ("Relu", ["w"], ["v"]), ("Concat", ["r", "v"], ["k"], {"axis": 1}), quantize("k")]
    with pytest.raises(UsageError) as error:
        interface.dressed(file(nodes, ["x", "w"]), uint8=True)
    assert [p.message.split()[0] for p in error.value.problems] == ["x", "w"]


def test_an_input_beside_one_that_stays_float_stays_float():
    nodes = [("Relu", ["w"], ["r"]), ("Concat", ["x", "w"], ["k"], {"axis": 1}), quantize("k")]
    with pytest.raises(UsageError, match="x is put together with values that are no bytes by Concat"):
        interface.dressed(file(nodes, ["x", "w"]), uint8=True)


def test_a_value_on_the_way_that_is_an_output():
    model = file([("Identity", ["x"], ["k"]), quantize("k")], outputs=["y", "k"])
    with pytest.raises(UsageError, match="x is an output of the file too"):
        interface.dressed(model, uint8=True)
    model = file([quantize("x")], outputs=["y"])
    model.graph.output.append(h.make_tensor_value_info("q", T.UINT8, None))
    with pytest.raises(UsageError, match="x is read by QuantizeLinear.q."):
        interface.dressed(model, uint8=True)


@pytest.mark.parametrize("yes", [True, False])
def test_what_subgraphs_read(yes):
    """The input itself, as pixels; what is quantized; a number that nothing else reads."""
    nodes = [branches("x"), ("Add", ["i", "x"], ["k"]), quantize("k")]
    more = {"yes": np.array(yes)}
    given = {"x": np.random.default_rng(0).integers(0, 256, (1, 2, 3)).astype(np.float32)}
    made, form = interface.dressed(file(nodes, ["x", "yes"]), uint8=True, pixels={"x": 100})
    wanted = run(file(nodes, ["x", "yes"]), {"x": given["x"] - 100, **more})
    assert np.array_equal(run(made, {"x": given["x"].astype(np.uint8), **more})[0], wanted[0])
    assert form.bytes == {"x": interface.Bytes(1.0, 100)}
    inside = ("DequantizeLinear", ["q0", "s", "z"], ["d"])
    nodes = [("QuantizeLinear", ["x", "s", "z"], ["q0"]), branches("d2"), inside, branches("c", "two", "j")]
    nodes += [("Add", ["i", "d"], ["f"]), ("Add", ["f", "j"], ["k"]), quantize("k")]
    nodes[1][3]["then_branch"].node.insert(0, h.make_node("DequantizeLinear", ["q0", "s", "z"], ["d2"]))
    nodes[1][3]["else_branch"].node.insert(0, h.make_node("DequantizeLinear", ["q0", "s", "z"], ["d2"]))
    agree(file(nodes, ["x", "yes"]), feed("x"), more, uint8=True)


def test_scores_that_a_subgraph_reads():
    model = file([quantize("x"), branches("y", made="o")], ["x", "yes"], ["y", "o"])
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[0], nodes[2], nodes[1]])
    model.graph.output[0].CopyFrom(h.make_tensor_value_info("y", T.FLOAT, ["n", 2, 3]))
    made, form = interface.dressed(model, argmax=True, kept=["o"])
    given = {**feed("x"), "yes": np.array(True)}
    wanted, found = run(model, given), run(made, given)
    assert form.classes == ("y",)
    assert np.array_equal(found[0], wanted[0].argmax(1)) and np.array_equal(found[1], wanted[1])


def test_names_that_are_taken():
    """By a value in a subgraph."""
    nodes = [branches("x", made="x.float"), ("Add", ["x.float", "x"], ["x.less"]), quantize("x.less")]
    made, _ = interface.dressed(file(nodes, ["x", "yes"]), uint8=True, pixels={"x": 3})
    given = np.array([[[1, 2, 3], [4, 5, 250]]])
    wanted = run(file(nodes, ["x", "yes"]), {"x": (given - 3).astype(np.float32), "yes": np.array(True)})
    assert np.array_equal(run(made, {"x": given.astype(np.uint8), "yes": np.array(True)})[0], wanted[0])


def test_an_input_that_is_an_output_at_once():
    model = file([quantize("x")], outputs=["y", "x"])
    with pytest.raises(UsageError, match="x is an input and an output at once"):
        interface.dressed(model, uint8=True)


def test_states_stay_as_they_are():
    model = file([("Concat", ["x", "h"], ["k"], {"axis": 1}), quantize("k")], ["x", "h"])
    with pytest.raises(UsageError, match="x is put together with values that are no bytes"):
        interface.dressed(model, uint8=True, kept=["h"])
    with pytest.raises(UsageError, match="no output is scores"):
        interface.dressed(model, argmax=True, kept=["y"])


def test_a_model_too_large_for_one_file(monkeypatch):
    """As if one file could hold no more than some bytes."""
    from edgekd.onnx_files import external

    model = file([("Concat", ["x", "c"], ["k"], {"axis": 1}), quantize("k")], more={"big": np.ones(2000, np.float32)})
    monkeypatch.setattr(external, "LIMIT", 2**20 + 500)
    made, form = interface.dressed(model, uint8=True)
    interface.same(model, made, form, feed("x"), "file")


def test_all_that_a_file_has_not_at_once():
    model = file([quantize("x")])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = T.INT32
    found = interface.problems(model, uint8=True, nhwc=True, argmax=True)
    assert [p.place for p in found] == ["--input uint8", "--layout nhwc", "--argmax"]
