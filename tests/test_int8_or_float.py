"""What `quantize` calls int8 is computed in int8, and what it calls float is float in the file, as onnxruntime's own
optimized graph shows."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper as h
from test_foreign_forms import noise, saved, weights

from edgekd.errors import UsageError
from edgekd.quantization.onnx_graph.placement import UNFUSED
from edgekd.report.speed import Speed
from edgekd.verbs.compare import compare
from edgekd.verbs.explain import explain
from edgekd.verbs.quantize import quantize

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def kernels(path, folder):
    """[operator] that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "run.onnx"), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(folder / "run.onnx").graph.node]


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_product_before_a_relu_that_only_floats_read_is_in_int8(tmp_path, kind):
    """onnxruntime fuses it with the Relu into a float kernel otherwise, which dequantizes its weights at each run."""
    own = ["b"] if kind == "Gemm" else []
    nodes = [h.make_node(kind, ["x", "w", *own], ["a"], name="wide"), h.make_node("Relu", ["a"], ["r"])]
    nodes += [h.make_node("Erf", ["r"], ["e"]), h.make_node("MatMul", ["e", "v"], ["y"], name="last")]
    path, data, arrays = saved(tmp_path, nodes, {"x": (64,)}, ["y"], weights(w=(64, 32), b=(32,), v=(32, 4)))
    made = quantize(path, data=data, out=tmp_path / "int8.onnx", slower_int8=True)
    assert [r.reason for r in made.layers] == ["", ""]
    assert FLOAT.isdisjoint(kernels(tmp_path / "int8.onnx", tmp_path))
    assert noise(path, tmp_path / "int8.onnx", arrays) < 1e-2
    assert explain(tmp_path / "int8.onnx", plain=path, data=data).findings["int8"] == ()


def test_what_onnxruntime_keeps_in_float_is_not_rounded(tmp_path):
    """A product whose sums are cut at another number than zero: its input and weights stay as they are."""
    nodes = [h.make_node("MatMul", ["x", "w"], ["a"], name="first"), h.make_node("Softmax", ["a"], ["s"])]
    nodes += [h.make_node("MatMul", ["s", "v"], ["m"], name="banks"), h.make_node("Clip", ["m", "low"], ["c"])]
    nodes += [h.make_node("Log", ["c"], ["y"])]
    stored = weights(w=(64, 32), v=(32, 8)) | {"low": weights(low=())["low"] * 0 + 1e-6}
    path, data, _ = saved(tmp_path, nodes, {"x": (64,)}, ["y"], stored)
    out = tmp_path / "int8.onnx"
    made = quantize(path, data=data, out=out, slower_int8=True)
    assert {r.name: (r.reason, r.before == r.after) for r in made.layers} == {
        "first": ("", False),
        "banks": (UNFUSED, True),
    }
    model = onnx.load(out)
    makers = {n.output[0]: n.op_type for n in model.graph.node}
    (banks,) = (n for n in model.graph.node if n.name == "banks")
    assert banks.input[1] in {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    assert makers[banks.input[0]] == "Softmax"
    kept = quantize(path, data=data, out=tmp_path / "same.onnx", float_layers=["banks"])
    assert sum(not r.reason for r in kept.layers) == 1
    names = {p.key: p.value for p in onnx.load(tmp_path / "same.onnx").metadata_props}
    assert json.loads(names["edgekd.float_layers"]) == ["banks"]


def test_a_file_of_one_layer_that_onnxruntime_keeps_in_float_is_refused(tmp_path):
    nodes = [h.make_node("MatMul", ["x", "v"], ["m"], name="banks"), h.make_node("Clip", ["m", "low"], ["c"])]
    nodes += [h.make_node("Log", ["c"], ["y"])]
    stored = weights(v=(32, 8)) | {"low": weights(low=())["low"] * 0 + 1e-6}
    path, data, _ = saved(tmp_path, nodes, {"x": (32,)}, ["y"], stored)
    with pytest.raises(UsageError) as caught:
        quantize(path, data=data, out=tmp_path / "int8.onnx")
    assert "no layer can be quantized" in str(caught.value) and f"banks: {UNFUSED}" in str(caught.value)


def test_samples_that_fill_no_batch_are_named(tmp_path):
    """32 of 130 are compared and 98 calibrate, but for what fills no batch of 10."""
    nodes = [h.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    path, data, _ = saved(tmp_path, nodes, {"x": (8,)}, ["y"], weights(w=(8, 4)), samples=130)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 10
    onnx.save(model, path)
    made = quantize(path, data=data, out=tmp_path / "int8.onnx", slower_int8=True)
    assert (made.samples, made.compared) == (90, 30)
    (note,) = (n for n in made.notes if "left out" in n)
    assert note.startswith("10 of 130 samples are left out") and "takes 10 at once" in note


def test_a_file_that_is_larger_and_not_faster_is_called_so(tmp_path):
    nodes = [h.make_node("Range", ["zero", "end", "one"], ["r"]), h.make_node("Reshape", ["r", "rows"], ["w"])]
    nodes += [h.make_node("Cos", ["w"], ["c"]), h.make_node("MatMul", ["x", "c"], ["y"], name="only")]
    stored = {n: np.float32(v) for n, v in (("zero", 0), ("end", 4096), ("one", 1))} | {"rows": np.array([64, 64])}
    path, data, _ = saved(tmp_path, nodes, {"x": (64,)}, ["y"], stored)
    made = quantize(path, data=data, out=tmp_path / "int8.onnx", slower_int8=True)
    assert made.after > made.before and "not smaller: the float file computes weights" in str(made)
    for ratio, said in (((1.0, 0.9, 1.1), True), ((0.5, 0.4, 0.6), False)):
        assert ("keep the float file" in str(dataclasses.replace(made, speed=Speed(ratio)))) == said


@pytest.mark.parametrize(("change", "said"), [("bytes", "takes x as uint8"), ("names", "takes the inputs other")])
def test_files_that_take_other_inputs_are_told_apart_before_anything_runs(tmp_path, change, said):
    nodes = [h.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    path, data, _ = saved(tmp_path, nodes, {"x": (8,)}, ["y"], weights(w=(8, 4)))
    model = onnx.load(path)
    if change == "bytes":
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
        model.graph.node[0].input[0] = "f"
        model.graph.node.insert(0, h.make_node("Cast", ["x"], ["f"], to=1))
    else:
        model.graph.input[0].name = model.graph.node[0].input[0] = "other"
    onnx.save(model, tmp_path / "other.onnx")
    for verb in (
        lambda: compare(path, tmp_path / "other.onnx", data=data),
        lambda: explain(tmp_path / "other.onnx", plain=path, data=data),
    ):
        with pytest.raises(UsageError) as caught:
            verb()
        assert said in str(caught.value) and ("edgekd try" in str(caught.value)) == (change == "bytes")
