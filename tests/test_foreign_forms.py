"""Float files of other forms through `quantize`: 16-bit floats, operands left out, layers inside of subgraphs, local
functions and fused operators, weights in a second file."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from edgekd.onnx_files import external
from edgekd.probes import Subject, measure, static
from edgekd.quantization.onnx_graph.placement import UNFUSED
from edgekd.verbs.compare import compare
from edgekd.verbs.explain import explain
from edgekd.verbs.profile import profile
from edgekd.verbs.quantize import quantize

GENERATOR = np.random.default_rng(0)


def weights(kind=np.float32, **shapes):
    return {n: (GENERATOR.normal(size=s) / 3).astype(kind) for n, s in shapes.items()}


def saved(folder, nodes, inputs, outputs, stored, samples=64, kind=T.FLOAT, functions=(), opsets=(), rank=2):
    """A file and seeded samples of its inputs {name: shape}."""
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info(n, kind, ["n", *s]) for n, s in inputs.items()],
        [h.make_tensor_value_info(n, kind, ["n", *[None] * (rank - 1)]) for n in outputs],
        [nh.from_array(np.asarray(a), n) for n, a in stored.items()],
    )
    more = [h.make_opsetid(d, 1) for d in opsets]
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), *more], ir_version=8, functions=functions)
    onnx.save(made, folder / "m.onnx")
    dtype = h.tensor_dtype_to_np_dtype(kind)
    arrays = {n: GENERATOR.normal(size=(samples, *s)).astype(dtype) for n, s in inputs.items()}
    np.savez(folder / "x.npz", **arrays)
    return folder / "m.onnx", folder / "x.npz", arrays


def answers(path, arrays):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, arrays)[0]


def noise(path, other, arrays):
    """Of the answers of two files, as a share of the first's."""
    a, b = (answers(p, arrays).astype(np.float64) for p in (path, other))
    return float(np.square(a - b).mean() / np.square(a).mean())


def test_a_file_of_16_bit_floats_is_quantized_in_float32_and_keeps_its_types(tmp_path):
    nodes = [
        h.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        h.make_node("Clip", ["c", "", "six"], ["d"]),
        h.make_node("ReduceMax", ["d"], ["top"], keepdims=0),
        h.make_node("Cast", ["top"], ["wide"], to=T.FLOAT),
        h.make_node("Cast", ["wide"], ["again"], to=T.FLOAT16),
        h.make_node("Greater", ["again", "six"], ["over"]),
        h.make_node(
            "If",
            ["over"],
            ["e"],
            then_branch=h.make_graph(
                [h.make_node("Identity", ["d"], ["t"])], "t", [], [h.make_tensor_value_info("t", T.FLOAT16, None)]
            ),
            else_branch=h.make_graph(
                [h.make_node("Add", ["d", "tiny"], ["f"])], "e", [], [h.make_tensor_value_info("f", T.FLOAT16, None)]
            ),
        ),
        h.make_node("GlobalAveragePool", ["e"], ["p"]),
        h.make_node("Flatten", ["p"], ["q"]),
        h.make_node("Gemm", ["q", "v"], ["y"], name="fc"),
    ]
    stored = weights(np.float16, w=(8, 3, 3, 3), b=(8,), v=(8, 4)) | {"six": np.float16(6), "tiny": np.float16(0.25)}
    path, data, arrays = saved(tmp_path, nodes, {"x": (3, 8, 8)}, ["y"], stored, kind=T.FLOAT16)
    made = quantize(path, data=data, out=tmp_path / "int8.onnx")
    assert [(r.name, r.reason, r.before) for r in made.layers] == [("conv", "", 2 * 224), ("fc", "", 2 * 32)]
    assert made.differ == 0 and any("16-bit floats: calibrated in float32" in n for n in made.notes)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {T.FLOAT16}
    assert not any(i.data_type == T.FLOAT16 for i in graph.initializer)
    assert answers(tmp_path / "int8.onnx", arrays).dtype == np.float16
    assert noise(path, tmp_path / "int8.onnx", arrays) < 0.1
    told = {m.name: m.value for m in profile(path, preset="quick").measurements}
    assert told["macs"] == 8 * 36 * 27 + 32 and told["parameters"] == 216 + 8 + 32
    assert compare(path, tmp_path / "int8.onnx", data=data, preset="quick").a
    assert "dB" in str(explain(tmp_path / "int8.onnx", plain=path, data=data))


def test_outputs_and_operands_that_are_left_out_are_no_values(tmp_path):
    """An LSTM of which only the last state is used, a Clip without a lower end, a Resize without a region."""
    nodes = [
        h.make_node("Clip", ["x", "", "two"], ["c"]),
        h.make_node("Transpose", ["c"], ["t"], perm=[1, 0, 2]),
        h.make_node("LSTM", ["t", "w", "r"], ["", "h"], hidden_size=8),
        h.make_node("GRU", ["t", "gw", "gr"], ["", "g"], hidden_size=8),
        h.make_node("Add", ["h", "g"], ["s"]),
        h.make_node("Resize", ["s", "", "scales"], ["z"], mode="nearest"),
        h.make_node("Reshape", ["z", "flat"], ["k"]),
        h.make_node("Gemm", ["k", "v"], ["y"], name="fc"),
    ]
    stored = weights(w=(1, 32, 4), r=(1, 32, 8), gw=(1, 24, 4), gr=(1, 24, 8), v=(16, 5))
    stored |= {"two": np.float32(2), "flat": np.array([-1, 16]), "scales": np.float32([1, 1, 2])}
    path, data, arrays = saved(tmp_path, nodes, {"x": (10, 4)}, ["y"], stored)
    made = quantize(path, data=data, out=tmp_path / "int8.onnx")
    assert [(r.name, r.kind, bool(r.reason)) for r in made.layers] == [
        ("h", "LSTM", True),
        ("g", "GRU", True),
        ("fc", "Gemm", False),
    ]
    assert made.layers[0].before == 4 * (32 * 4 + 32 * 8) and made.differ == 0
    assert noise(path, tmp_path / "int8.onnx", arrays) < 1e-3
    found = {m.name: m for m in measure(Subject(file=tmp_path / "int8.onnx"))}
    assert found["macs"].value == 10 * (32 + 24) * (4 + 8) + 16 * 5 and "activation_bytes" in found


def branch(node, output):
    return h.make_graph([node], output, [], [h.make_tensor_value_info(output, T.FLOAT, None)])


def test_layers_inside_of_branches_and_loops_are_listed_and_the_file_is_judged(tmp_path):
    step = h.make_graph(
        [h.make_node("Gemm", ["s", "u"], ["r"], name="in_loop"), h.make_node("Identity", ["go"], ["on"])],
        "step",
        [h.make_tensor_value_info("i", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []),
         h.make_tensor_value_info("s", T.FLOAT, None)],
        [h.make_tensor_value_info("on", T.BOOL, []), h.make_tensor_value_info("r", T.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        h.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        h.make_node("Greater", ["top", "zero"], ["c"]),
        h.make_node(
            "If", ["c"], ["q"], name="choice",
            then_branch=branch(h.make_node("Gemm", ["x", "w"], ["o1"], name="in_if"), "o1"),
            else_branch=branch(h.make_node("Gemm", ["x", "w2"], ["o2"], name="else"), "o2"),
        ),
        h.make_node("Loop", ["times", "yes", "q"], ["z"], name="turns", body=step),
        h.make_node("Gemm", ["z", "w3"], ["y"], name="after"),
    ]  # fmt: skip
    stored = weights(w=(8, 16), w2=(8, 16), u=(16, 16), w3=(16, 6))
    stored |= {"zero": np.float32(0), "times": np.array(2), "yes": np.array(True)}
    path, data, _ = saved(tmp_path, nodes, {"x": (8,)}, ["y"], stored)
    made = quantize(path, data=data, out=tmp_path / "int8.onnx")
    rows = {r.name: r for r in made.layers}
    assert rows.keys() == {"in_if", "else", "in_loop", "after"} and "1 of 4 layers in int8" in str(made)
    assert "inside of If choice" in rows["in_if"].reason and "inside of Loop turns" in rows["in_loop"].reason
    assert rows["in_loop"].before == 4 * 256 and made.differ == 0
    assert static.macs(static.read(path)) == (8 * 16 + 2 * 256 + 96, ())
    note = next(m.note for m in measure(Subject(file=path)) if m.name == "activation_bytes")
    assert note.startswith("not counted: what is inside of If, Loop")


def test_local_functions_are_their_operators(tmp_path):
    body = [h.make_node("MatMul", ["a", "b"], ["m"]), h.make_node("Relu", ["m"], ["out"])]
    function = h.make_function("mine", "Dense", ["a", "b"], ["out"], body, [h.make_opsetid("", 17)])
    nodes = [
        h.make_node("Dense", ["x", "w"], ["d"], domain="mine"),
        h.make_node("Dense", ["d", "v"], ["y"], domain="mine"),
    ]
    stored = weights(w=(8, 12), v=(12, 4))
    path, data, _ = saved(tmp_path, nodes, {"x": (8,)}, ["y"], stored, functions=[function], opsets=["mine"])
    assert static.macs(static.read(path)) == (8 * 12 + 12 * 4, ())
    made = quantize(path, data=data, out=tmp_path / "int8.onnx")
    assert [r.reason for r in made.layers] == ["", ""] and made.differ == 0


@pytest.mark.parametrize("activation, given", [("Relu", []), ("Clip", [-0.5, 1.0]), ("LeakyRelu", [0.1]), ("Tanh", [])])
def test_layers_that_onnxruntime_fused_are_quantized_apart(tmp_path, activation, given):
    """Convolutions with their activation and products by a transposed weight; Attention and QuickGelu stay float."""
    own = {"domain": "com.microsoft"}
    more = {"activation_params": given} if given else {}
    nodes = [
        h.make_node(
            "FusedConv", ["x", "w", "b"], ["c"], name="conv", activation=activation, pads=[1] * 4, **more, **own
        ),
        h.make_node("Reshape", ["c", "rows"], ["f"]),
        h.make_node("QuickGelu", ["f"], ["g"], alpha=1.702, **own),
        h.make_node("FusedMatMul", ["g", "v"], ["m"], name="product", transB=1, alpha=0.5, **own),
        h.make_node("Attention", ["m", "p", "q"], ["y"], name="attention", num_heads=2, **own),
    ]
    stored = weights(w=(4, 3, 3, 3), b=(4,), v=(8, 25), p=(8, 24), q=(24,)) | {"rows": np.array([0, 4, 25])}
    path, data, arrays = saved(tmp_path, nodes, {"x": (3, 5, 5)}, ["y"], stored, opsets=["com.microsoft"], rank=3)
    made = quantize(path, data=data, out=tmp_path / "int8.onnx")
    rows = {r.name: (r.kind, bool(r.reason)) for r in made.layers}
    assert rows == {
        "conv": ("Conv", False),
        "product": ("MatMul", False),
        "attention": ("Attention", True),
    }
    assert made.differ == 0 and noise(path, tmp_path / "int8.onnx", arrays) < 1e-2


@pytest.mark.parametrize("apart", [False, True])
def test_a_file_of_two_goes_through_and_a_large_result_is_written_as_two(tmp_path, monkeypatch, apart):
    """As torch writes it; the limit above which a result is written so is lowered."""
    nodes = [h.make_node("Gemm", ["x", "w"], ["a"], name="one"), h.make_node("Gemm", ["a", "v"], ["y"], name="two")]
    path, data, arrays = saved(tmp_path, nodes, {"x": (64,)}, ["y"], weights(w=(64, 64), v=(64, 8)))
    whole = quantize(path, data=data, out=tmp_path / "whole.onnx")
    both = tmp_path / "both"
    both.mkdir()
    onnx.save(onnx.load(path), both / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=64)
    if apart:
        monkeypatch.setattr(external, "LIMIT", external.ROOM + 3000)
    made = quantize(both / "m.onnx", data=data, out=both / "int8.onnx")
    names = {"m.onnx", "w.data", "int8.onnx"} | ({"int8.onnx.data"} if apart else set())
    assert {p.name for p in both.iterdir()} == names
    assert made.before == sum((both / n).stat().st_size for n in ("m.onnx", "w.data")) and made.layers == whole.layers
    assert made.after == sum(p.stat().st_size for p in both.iterdir() if p.name.startswith("int8"))
    assert np.array_equal(answers(both / "int8.onnx", arrays), answers(tmp_path / "whole.onnx", arrays))
    if apart:
        assert len(external.files(both / "int8.onnx")) == 1
        assert "dB" in str(explain(both / "int8.onnx", plain=both / "m.onnx", data=data))
    else:
        assert (both / "int8.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.parametrize("form", ["residual", "turned", "rows"])
def test_what_is_added_to_a_product_but_a_bias_leaves_it_a_layer(tmp_path, form):
    """onnxruntime's optimizer makes a Gemm of a product and a residual of two axes, which no integer kernel takes. Of
    stored rows it makes it when it loads the file: the product is written in float then."""
    product = h.make_node("MatMul", ["r", "v"], ["p"], name="second")
    if form == "turned":
        product = h.make_node("Gemm", ["r", "v", "x"], ["s"], name="second", transB=1)
    nodes = [h.make_node("MatMul", ["x", "w"], ["m"], name="first"), h.make_node("Relu", ["m"], ["r"]), product]
    nodes += [h.make_node("Add", ["p", "rows" if form == "rows" else "x"], ["s"])] if form != "turned" else []
    nodes += [h.make_node("MatMul", ["s", "u"], ["y"], name="third")]
    stored = weights(w=(8, 64), v=(8, 64) if form == "turned" else (64, 8), u=(8, 5), rows=(4, 8))
    path, data, arrays = saved(tmp_path, nodes, {"x": (8,)}, ["y"], stored)
    if form == "rows":
        model = onnx.load(path)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(model, path)
        arrays = {"x": arrays["x"][:4]}
    made = quantize(path, data=data, out=tmp_path / "int8.onnx", slower_int8=True)
    assert [row.reason for row in made.layers] == ["", UNFUSED if form == "rows" else "", ""] and made.differ == 0
    assert noise(path, tmp_path / "int8.onnx", arrays) < 1e-2
    assert [f.layer for f in explain(tmp_path / "int8.onnx", plain=path, data=data).findings["int8"]] == []
