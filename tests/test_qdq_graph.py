"""What is read of a QDQ file's graph, held against what onnxruntime does with it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_saturation import layer, weights

from edgekd.quantization.qdq import compare, graph, operands, simulate
from edgekd.quantization.qdq.pairing import pair

info = helper.make_tensor_value_info
INTEGER = {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}


def optimized(model, folder):
    """Operators that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node]


def around(operator, shape=(4, 4, 4), more=(), outputs=1, places=False, scale=0.1, **attributes):
    """A file of one operator between quantized values; `more`: its other operands."""
    stored = {"s": np.float32(0.1), "z": np.uint8(7), "t": np.float32(scale)} | {f"e{i}": a for i, a in enumerate(more)}
    made = [f"m{i}" for i in range(outputs)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(
            operator, ["d", *(f"e{i}" for i in range(len(more)))], [*made, *["places"] * places], **attributes
        ),
    ]
    for name in made:
        nodes.append(helper.make_node("QuantizeLinear", [name, "t", "z"], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", "t", "z"], [f"{name}.y"]))
    shown = [info(f"{name}.y", TensorProto.FLOAT, None) for name in made]
    shown += [info("places", TensorProto.INT64, None)] * places
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    made = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, ["n", *shape])], shown, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def whole(*numbers):
    return np.array(numbers, np.int64)


NEAREST = {
    "more": [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
# {name: (operator, how)}
OPERATORS = {
    "Reshape": {"more": [whole(-1, 16, 4)]},
    "Flatten": {"axis": 1},
    "Transpose": {"perm": [0, 2, 3, 1]},
    "Squeeze": {"more": [whole(1)], "shape": (1, 4, 4)},
    "Unsqueeze": {"more": [whole(1)]},
    "Slice": {"more": [whole(1), whole(3), whole(1)]},
    "Gather": {"more": [whole(1, 0)], "axis": 1},
    "Expand": {"more": [whole(1, 1, 4, 4, 4)]},
    "Tile": {"more": [whole(1, 2, 1, 1)]},
    "Split": {"more": [whole(2, 2)], "outputs": 2, "axis": 1},
    "Identity": {},
    "MaxPool": {"kernel_shape": [2, 2]},
    "MaxPool with places": {"kernel_shape": [2, 2], "places": True},
    "Resize": NEAREST,
    "Resize linear": {**NEAREST, "mode": "linear"},
    "SpaceToDepth": {"blocksize": 2},
    "Pad": {"more": [whole(0, 0, 1, 1, 0, 0, 1, 1)]},
    "Sigmoid": {},
    "DepthToSpace": {"blocksize": 2},
    "GatherElements": {"more": [np.zeros((1, 4, 4, 4), np.int64)]},
    "ReduceMax": {"axes": [2]},
}
ALSO = {"DepthToSpace", "GatherElements", "ReduceMax"}  # moved by onnxruntime, and not placed so here


@pytest.mark.parametrize("name", OPERATORS)
def test_what_moves_is_what_onnxruntime_computes_on_the_stored_integers(name, tmp_path):
    model = around(name.split()[0], **OPERATORS[name])
    node = next(n for n in model.graph.node if n.output[0] == "m0")
    kinds = optimized(model, tmp_path)
    integers = kinds.count("QuantizeLinear") == 1 and not any(k.startswith("QLinear") for k in kinds)
    assert (graph.moves(node) or name in ALSO) == integers, kinds


def test_operators_by_name_that_move_are_all_tried():
    assert {n.split()[0] for n in OPERATORS} >= graph.MOVES


MOVED = [(name, scale) for name in sorted(graph.MOVES) for scale in (0.1, 0.13) if (name, scale) != ("Identity", 0.13)]


@pytest.mark.parametrize("name, scale", MOVED)
def test_moved_values_are_simulated_as_onnxruntime_stores_them(name, scale, tmp_path):
    """With the parameters of the source, and with others. (With nothing but an Identity between them onnxruntime makes
    one of two.)"""
    how = OPERATORS[name]
    onnx.save(around(name.split()[0], scale=scale, **how), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(1, *how.get("shape", (4, 4, 4)))).astype(np.float32)
    rows = compare.compare(tmp_path / "m.onnx", {"x": x})
    assert [r for r in rows if r.differ] == []
    assert all(r.integer for r in rows) == (name != "Resize")


def test_a_resize_by_odd_factors_is_no_integer_kernel_of_the_simulation(tmp_path):
    """The reference implementation takes other neighbours than onnxruntime there: no fault of the file."""
    odd = {
        **NEAREST,
        "more": [np.zeros(0, np.float32), np.array([1, 1, 1.3, 0.7], np.float32)],
        "nearest_mode": "round_prefer_floor",
    }
    onnx.save(
        around("Resize", shape=(4, 5, 6), **{**odd, "coordinate_transformation_mode": "half_pixel"}),
        tmp_path / "m.onnx",
    )
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    rows = compare.compare(tmp_path / "m.onnx", {"x": x})
    assert {r.integer for r in rows if r.differ} == {False}


def branching(model, name):
    """The file with an If whose branches read a value."""
    value = lambda n: info(n, TensorProto.FLOAT, None)
    yes = helper.make_graph([helper.make_node("Neg", [name], ["t"])], "yes", [], [value("t")])
    no = helper.make_graph([helper.make_node("Abs", [name], ["e"])], "no", [], [value("e")])
    model.graph.node.append(helper.make_node("If", ["condition"], ["branch"], then_branch=yes, else_branch=no))
    model.graph.input.append(info("condition", TensorProto.BOOL, []))
    model.graph.output.append(value("branch"))
    return model


@pytest.mark.parametrize("kind", ["Conv", "MatMul", "Gemm"])
class TestGroups:
    """The layers that are integer kernels, for the audit of saturation and for the simulation, are those of
    onnxruntime."""

    def check(self, model, folder):
        kernels = simulate.read(model).kernels.values()
        wanted = bool(INTEGER & set(optimized(model, folder)))
        assert bool(operands.read(model)) == wanted
        assert any(n.op_type in graph.LAYERS for n in kernels) == wanted
        return wanted

    def made(self, kind, **how):
        w, shape = (weights(16, 8, 3, 3), (8, 5, 5)) if kind == "Conv" else (weights(40, 24), (40,))
        return layer(kind, w, shape, out_zero=how.pop("out_zero", 0), **how)

    @pytest.mark.parametrize("end", [5, 5.999, 6, 6.001, 6.01, 6.02, 7])
    def test_a_clip_at_six(self, kind, end, tmp_path):
        """255 steps that end at 6.01 do without it: 6 is rounded to the last of them. At 6.02 it is the one before."""
        assert self.check(self.made(kind, after=("Clip",), step=end / 255), tmp_path) == (end < 6.015)

    @pytest.mark.parametrize("zero", [0, 1])
    def test_a_relu(self, kind, zero, tmp_path):
        assert self.check(self.made(kind, after=("Relu",), out_zero=zero), tmp_path) == (zero == 0)

    @pytest.mark.parametrize("after", [("Relu", "Clip"), ("Clip", "Relu"), ("Relu", "Relu")])
    def test_clips_in_a_row(self, kind, after, tmp_path):
        assert self.check(self.made(kind, after=after, step=5 / 255), tmp_path)

    @pytest.mark.parametrize("name, integer", [("y0", False), ("output", True), ("x", True)])
    def test_what_a_subgraph_reads(self, kind, name, integer, tmp_path):
        """The sums themselves are read there, so that they can't stay inside a kernel."""
        assert self.check(branching(self.made(kind), name), tmp_path) == integer


class TestByHand:
    def model(self):
        """x, clipped at 6 and quantized, is moved twice; a weight is turned; one product of it is shown."""
        stored = {"six": np.float32(6), "none": np.float32(0), "s": np.float32(6 / 255), "z": np.uint8(0)}
        stored |= {"w": np.ones((3, 2), np.int8), "ws": np.array([1, 2, 3], np.float32), "shape": whole(-1, 2)}
        nodes = [
            helper.make_node("Clip", ["x", "none", "six"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Reshape", ["d", "shape"], ["r"]),
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["r.q"]),
            helper.make_node("DequantizeLinear", ["r.q", "s", "z"], ["r.d"]),
            helper.make_node("DequantizeLinear", ["w", "ws"], ["w.d"], axis=0),
            helper.make_node("Transpose", ["w.d"], ["w.t"]),
            helper.make_node("MatMul", ["r.d", "w.t"], ["y"]),
        ]
        tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
        made = helper.make_graph(
            nodes, "g", [info("x", TensorProto.FLOAT, ["n", 2])], [info("y", TensorProto.FLOAT, None)], tensors
        )
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def test_lookups(self):
        g = graph.of(self.model())
        assert g.makers["r"].op_type == "Reshape" and "x" not in g.makers
        assert g.reader("c").op_type == "QuantizeLinear" and g.reader("y") is None and g.readers["y"] == [None]
        assert [n.op_type for n in g.readers["s"]] == ["QuantizeLinear", "DequantizeLinear"] * 2 and g.reader(
            "s"
        ) is None
        assert g.origin("r.d") == "c" and g.origin("r.d", clips=True) == "x" and g.origin("y") == "y"
        assert g.stored == {*g.constants, "w.d", "w.t"}
        assert graph.title(g.makers["y"]) == "MatMul(y)"

    def test_parameters(self):
        g = graph.of(self.model())
        value, weight = g.parameters(g.makers["r.q"]), g.parameters(g.makers["w.d"])
        assert (value.q, value.limits, value.axis, value.constant) == ("r.q", (0, 255), None, None)
        assert value.scale.tolist() == [np.float32(6 / 255)] and value.zero_point.tolist() == [0]
        # without a zero point it is 0, of the integers' type
        assert (weight.q, weight.limits, weight.axis) == ("w", (-128, 127), 0) and weight.scale.tolist() == [1, 2, 3]
        assert g.parameters(g.makers["y"]) is None and g.parameters(None) is None

    def test_clips(self):
        model = self.model()
        model.graph.node.extend(
            [
                helper.make_node("Relu", ["y"], ["a"]),
                helper.make_node("Clip", ["y", "", "six"], ["b"]),
                helper.make_node("Clip", ["y", "x"], ["e"]),
            ]
        )
        g = graph.of(model)
        found = [g.clip(g.makers[n]) for n in ("c", "a", "b", "e", "y")]
        assert found == [(0, 6), (0, np.inf), (-np.inf, 6), None, None] and g.clip(None) is None

    def test_raw_activations_keep_their_clip_through_all_that_moves(self):
        """From 0 to 6 in steps of 6 / 510: 0 to 255, and to 127 where what follows has coarser steps."""
        model = self.model()
        for tensor in model.graph.initializer:
            if tensor.name == "s":
                tensor.CopyFrom(numpy_helper.from_array(np.float32(12 / 255), "s"))
        for operator, more in (("Expand", "shape"), ("Tile", "shape"), ("Gather", "shape"), ("Reshape", "shape")):
            model.graph.node[3].CopyFrom(helper.make_node(operator, ["d", more], ["r"]))
            (found,) = operands.read(self.direct(model))
            assert (found.low, found.high) == (0, 128), operator

    def direct(self, model):
        """The weight read as it is stored."""
        model.graph.node[-1].input[1] = "w.d"
        return model


def test_a_value_that_is_moved_belongs_to_the_layer_that_made_it():
    """A Tile between two layers: its parameters are the first one's, and leaving these out leaves out both."""
    stored = {"w": np.ones((4, 4), np.float32), "v": np.ones((8, 4), np.float32), "twice": whole(1, 2)}
    plain = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Tile", ["a", "twice"], ["b"]),
            helper.make_node("MatMul", ["b", "v"], ["y"]),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 4])],
        [info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    plain = helper.make_model(plain, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    from edgekd.quantization.onnx_graph import convert

    made = convert.quantize(plain, {"x": np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)})
    found = pair(made.float_model, made.model)
    assert {layer.name: found.quantizers[layer.name] for layer in found.layers} == {
        "input x": ("x.q",),
        "MatMul(a.raw)": ("a.q", "b.q"),
        "MatMul(y)": (),
    }
