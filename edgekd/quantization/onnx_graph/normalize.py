"""A float ONNX file from anywhere in the form that quantization reads: 16-bit floats as float32, batch norms folded,
constants as initializers, products of matrices with their bias as Gemm, means over an image as pooling, padding in
numbers. What it computes stays the same.

onnxruntime's basic optimizations do the folding (core/optimizer/graph_transformer_utils.cc, level 1), `rewrites` the
rest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError, first_line
from edgekd.onnx_files import external, subgraphs
from edgekd.quantization.onnx_graph import rewrites, unfused
from edgekd.quantization.onnx_graph.widened import widened

if TYPE_CHECKING:
    import onnx

OPSET = 13  # the first with scales per channel
INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "QMoE", "QGemm", "QAttention")


def problems(model: onnx.ModelProto, place: str) -> list[Problem]:
    """Why a file can't be quantized at all, before anything runs."""
    kinds = [n.op_type for graph in subgraphs.graphs(model.graph) for n in graph.node]
    integers = sorted({k for k in kinds if k in INTEGERS or k.startswith("QLinear") or k.endswith("Integer")})
    if integers:
        return [
            Problem(
                place,
                f"is quantized already (it has {', '.join(integers)})",
                "give the float file that it was made from",
            )
        ]
    return []


def normalized(model: onnx.ModelProto, place: str = "") -> onnx.ModelProto:
    """The file in normal form. Raises UsageError where onnxruntime can't open it, or its operators are too old to be
    converted."""
    from onnx import helper

    model = _upgraded(_plain(widened(model)), place)
    unfused.unfuse(model)
    model = _folded(model, place)
    unfused.sums(model)
    used = {n.domain for n in model.graph.node}
    opsets = [(o.domain, o.version) for o in model.opset_import if o.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*o) for o in opsets)
    rewrites.pool(model)
    shapes = rewrites.open_shapes(model)
    rewrites.pad(model, shapes)
    rewrites.by_rows(model, shapes)
    rewrites.unscale(model)
    rewrites.hard_sigmoid(model)
    return model


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose initializers are constants: old files list them as inputs too, so that a caller could replace
    them."""

    copy = external.copied(model)
    stored = {i.name for i in copy.graph.initializer}
    inputs = [i for i in copy.graph.input if i.name not in stored]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.ir_version = max(copy.ir_version, 8)
    return copy


def _upgraded(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    from onnx import version_converter

    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if version >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's own class, for operators that it does not know
        reason = first_line(error, 200)
        raise UsageError(
            Problem(
                place,
                f"is of opset {version}, and can't be converted to {OPSET}: {reason}",
                f"export it with opset {OPSET} or newer",
            )
        ) from None


def _folded(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    import onnx

    from edgekd.runtimes.onnxruntime import ort as onnxruntime

    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 4
        given: str | bytes = str(Path(folder) / "model.onnx")
        if external.large(model):
            external.write(model, Path(given))
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        else:
            given = model.SerializeToString()
        try:
            onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes have no common base
            raise UsageError(Problem(place, f"onnxruntime can't open it: {first_line(error)}")) from None
        return onnx.load(options.optimized_model_filepath)
