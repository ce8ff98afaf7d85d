"""A float ONNX file from anywhere in the form that quantization reads: batch norms folded, constants as initializers,
products of matrices with their bias as Gemm, means over an image as pooling, padding in numbers. What it computes stays
the same.

onnxruntime's basic optimizations do the folding (core/optimizer/graph_transformer_utils.cc, level 1); the rest is done
here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.quantization.qdq.operands import attribute

if TYPE_CHECKING:
    import onnx

OPSET = 13  # the first with scales per channel
_SHORT = (10, 16)  # TensorProto.FLOAT16, BFLOAT16
INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "QMoE", "QGemm")


def problems(model: onnx.ModelProto, place: str) -> list[Problem]:
    """Why a file can't be quantized at all, before anything runs."""
    kinds = [n.op_type for n in model.graph.node]
    integers = sorted({k for k in kinds if k in INTEGERS or k.startswith("QLinear") or k.endswith("Integer")})
    if integers:
        return [
            Problem(
                place,
                f"is quantized already (it has {', '.join(integers)})",
                "give the float file that it was made from",
            )
        ]
    short = [i.name for i in model.graph.initializer if i.data_type in _SHORT]
    if short:
        return [
            Problem(place, f"holds {len(short)} tensors of 16-bit floats ({short[0]}, ...)", "export it in float32")
        ]
    return []


def normalized(model: onnx.ModelProto, place: str = "") -> onnx.ModelProto:
    """The file in normal form. Raises UsageError where onnxruntime can't open it, or its operators are too old to be
    converted."""
    from onnx import helper

    model = _folded(_upgraded(_plain(model), place), place)
    used = {n.domain for n in model.graph.node}
    opsets = [(o.domain, o.version) for o in model.opset_import if o.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*o) for o in opsets)
    _pooled(model.graph)
    shapes = open_shapes(model)
    _padded(model.graph, shapes)
    _by_rows(model.graph, shapes)
    _unscaled(model.graph)
    return model


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose initializers are constants: old files list them as inputs too, so that a caller could replace
    them."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
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
        reason = str(error).strip().splitlines()[0][:200]
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
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes have no common base
            raise UsageError(
                Problem(place, f"onnxruntime can't open it: {str(error).strip().splitlines()[0][:300]}")
            ) from None
        return onnx.load(options.optimized_model_filepath)


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {i.name: numpy_helper.to_array(i) for i in graph.initializer}


def open_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """{value: shape}, None for a dimension that is open; values of unknown rank are left out."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a file may run whose shapes onnx can't follow
        inferred = model
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def fresh(graph: onnx.GraphProto, wanted: str) -> str:
    """A name that nothing in the graph has yet."""
    taken = (
        {i.name for i in graph.initializer} | {i.name for i in graph.input} | {o for n in graph.node for o in n.output}
    )
    while wanted in taken:
        wanted += "_"
    return wanted


def _store(graph: onnx.GraphProto, wanted: str, array: np.ndarray) -> str:
    from onnx import numpy_helper

    name = fresh(graph, wanted)
    graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    return name


def _replace(graph: onnx.GraphProto, old: list[onnx.NodeProto], new: list[onnx.NodeProto]) -> None:
    """Puts `new` where the last of the `old` nodes was."""
    nodes, names = [], [set(n.output) for n in old]
    for node in graph.node:
        if set(node.output) not in names:
            nodes.append(node)
        elif set(node.output) == names[-1]:
            nodes += new
    kept = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _pooled(graph: onnx.GraphProto) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel; without kept axes, a
    Flatten follows."""
    from onnx import helper

    stored, ranks = constants(graph), {}
    for node in graph.node:  # what a convolution of images makes, and what keeps its form, has four axes
        if node.op_type in ("Conv", "MaxPool", "AveragePool") and attribute(node, "kernel_shape", None) is not None:
            ranks[node.output[0]] = 2 + len(attribute(node, "kernel_shape", []))
        elif node.op_type in (
            "Relu",
            "Clip",
            "Add",
            "Mul",
            "HardSwish",
            "Sigmoid",
            "Concat",
            "LeakyRelu",
            "Elu",
            "PRelu",
            "Gelu",
        ):
            ranks[node.output[0]] = max((ranks.get(n, 0) for n in node.input), default=0)
    for node in list(graph.node):
        axes = attribute(node, "axes", None) if len(node.input) < 2 else stored.get(node.input[1])
        if (
            node.op_type != "ReduceMean"
            or axes is None
            or ranks.get(node.input[0]) != 4
            or sorted(int(a) % 4 for a in np.ravel(axes)) != [2, 3]
        ):
            continue
        if attribute(node, "keepdims", 1):
            _replace(
                graph,
                [node],
                [helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output), name=node.name)],
            )
        else:
            between = fresh(graph, f"{node.output[0]}.kept")
            pool = helper.make_node("GlobalAveragePool", [node.input[0]], [between], name=node.name)
            _replace(graph, [node], [pool, helper.make_node("Flatten", [between], list(node.output), axis=1)])


def _padded(graph: onnx.GraphProto, shapes: dict[str, tuple[int | None, ...]]) -> None:
    """auto_pad as pads, where the sizes are known (ONNX operator Conv: SAME splits what is missing evenly, the odd one
    at the end or beginning)."""
    from onnx import helper

    stored = constants(graph)
    for node in graph.node:
        kind = attribute(node, "auto_pad", b"NOTSET")
        if node.op_type not in ("Conv", "MaxPool", "AveragePool") or kind in (b"NOTSET", b""):
            continue
        kernel = attribute(node, "kernel_shape", None)
        if kernel is None and len(node.input) > 1 and node.input[1] in stored:
            kernel = list(stored[node.input[1]].shape[2:])
        sizes = shapes.get(node.input[0], ())[2:]
        if kernel is None or (kind != b"VALID" and (len(sizes) != len(kernel) or None in sizes)):
            continue
        rank = len(kernel)
        strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
        pads = [0] * (2 * rank)
        for d in range(rank if kind != b"VALID" else 0):
            missing = max(
                0, (-(-sizes[d] // strides[d]) - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1 - sizes[d]
            )
            small, large = missing // 2, missing - missing // 2
            pads[d], pads[d + rank] = (small, large) if kind == b"SAME_UPPER" else (large, small)
        kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
        kept = [type(a).FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _by_rows(graph: onnx.GraphProto, shapes: dict[str, tuple[int | None, ...]]) -> None:
    """MatMul by a stored matrix and a bias that alone reads it become a Gemm over rows [n, features] between two views:
    a Gemm's integer kernel adds the bias before it rounds. Left alone where more than one dimension is open, which no
    single view can restore."""
    from onnx import helper

    stored, outputs = constants(graph), {o.name for o in graph.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in list(graph.node):
        after = readers.get(node.output[0], [])
        if (
            node.op_type != "MatMul"
            or node.input[0] in stored
            or node.output[0] in outputs
            or len(after) != 1
            or after[0].op_type != "Add"
        ):
            continue
        weight, add = stored.get(node.input[1]), after[0]
        bias = next((n for n in add.input if n in stored), None)
        shape = shapes.get(node.output[0])
        if (
            weight is None
            or weight.ndim != 2
            or bias is None
            or shape is None
            or len(shape) < max(2, stored[bias].ndim)
            or None in shape[1:]
        ):
            continue
        if stored[bias].size != weight.shape[1] or stored[bias].shape[-1:] != weight.shape[1:]:
            continue
        flat = bias if stored[bias].ndim == 1 else _store(graph, f"{bias}.flat", stored[bias].ravel())
        if len(shape) == 2:
            new = [helper.make_node("Gemm", [node.input[0], node.input[1], flat], list(add.output), name=node.name)]
        else:
            rows, made = (fresh(graph, f"{add.output[0]}.{part}") for part in ("rows", "made"))
            width = _store(graph, f"{add.output[0]}.width", np.array([-1, weight.shape[0]], np.int64))
            back = _store(graph, f"{add.output[0]}.shape", np.array([-1, *shape[1:]], np.int64))
            new = [
                helper.make_node("Reshape", [node.input[0], width], [rows]),
                helper.make_node("Gemm", [rows, node.input[1], flat], [made], name=node.name),
                helper.make_node("Reshape", [made, back], list(add.output)),
            ]
        _replace(graph, [node, add], new)


def _unscaled(graph: onnx.GraphProto) -> None:
    """Gemm's factors alpha and beta go into stored operands, and its bias becomes one number per output."""
    stored = constants(graph)
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in stored:
            continue
        w = stored[node.input[1]]
        width = w.shape[0 if attribute(node, "transB", 0) else 1]
        factors = {key: np.float32(attribute(node, key, 1.0)) for key in ("alpha", "beta")}
        if w.dtype != np.float32 or (len(node.input) > 2 and node.input[2] and node.input[2] not in stored):
            continue
        if factors["alpha"] != 1:
            node.input[1] = _store(graph, f"{node.input[1]}.alpha", w * factors["alpha"])
        if len(node.input) > 2 and node.input[2]:
            bias = stored[node.input[2]]
            if bias.size not in (1, width) or bias.shape[-1:] not in ((), (1,), (width,)):
                continue  # one number per row is no bias that a kernel takes; place() says so
            if factors["beta"] != 1 or bias.shape != (width,):
                node.input[2] = _store(
                    graph, f"{node.output[0]}.beta", np.broadcast_to(bias.ravel() * factors["beta"], width)
                )
        kept = [type(a).FromString(a.SerializeToString()) for a in node.attribute if a.name not in factors]
        del node.attribute[:]
        node.attribute.extend(kept)
