"""Counts on an ONNX file without running it: bytes, parameters, multiply-accumulates. Exact, `counted`.

Files from elsewhere are read only by `read`: it refuses a file that is not ONNX, is truncated, or has external data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError
from edgekd.files import content, reading
from edgekd.probes import Subject, figure
from edgekd.records import NOT_COUNTED, Measurement, Quantity

if TYPE_CHECKING:
    import numpy as np
    import onnx

FILE_BYTES = Quantity(
    "file_bytes",
    "B",
    "size of the file",
    better="lower",
    origin="counted",
    heading="bytes",
    column=20,
    keep=90,
    words=("smaller", "larger"),
)
MACS = Quantity(
    "macs",
    "",
    "multiply-accumulates at batch 1",
    better="lower",
    origin="counted",
    heading="MACs",
    column=30,
    keep=40,
)
PARAMETERS = Quantity(
    "parameters", "", "weights and biases", better="lower", origin="counted", heading="params", column=40, keep=10
)
MEASURES = (FILE_BYTES, MACS, PARAMETERS)
LIMIT = 2**31 - 1  # what a protobuf can hold
MOST = 2**62  # elements of a value: more is a mistake or an attack
COUNTED = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "QLinearConv",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "QLinearMatMul",
        "MatMulNBits",
    }
)
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})  # counted as the matrix products of their steps
UNCOUNTED = frozenset({"Einsum", "Attention", "DeformConv", "If", "Loop", "Scan"})

# inputs with quantization parameters of another input, not weights: {operator: positions}
_QUANTIZATION_PARAMETERS = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "DynamicQuantizeLinear": (),
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3), "MatMulNBits": (2, 3), "Resize": (1, 2, 3), "Pad": (1, 2, 3),
}  # fmt: skip


class Open(UsageError):
    """Raised where a shape that a count needs is not known in the file."""


def read(path: Path | str) -> onnx.ModelProto:
    """Parses an ONNX file without trust in its content. Raises UsageError if it is not valid, or has external data."""
    import onnx

    path = Path(path)
    with reading(path):
        data = content(path, LIMIT)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own error classes differ between its builds
        raise UsageError(
            Problem(str(path), "is not an ONNX file, or is truncated", "give a .onnx file that a runtime can load")
        ) from error
    if not model.graph.node or not model.graph.output or not model.ir_version:
        raise UsageError(
            Problem(str(path), "is not an ONNX file, or has no operators", "give a .onnx file that a runtime can load")
        )
    outside = sorted(
        {
            tensor.name
            for tensor in _tensors(model)
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data
        }
    )
    if outside:
        shown = ", ".join(outside[:3]) + (", ..." if len(outside) > 3 else "")
        hint = "save it with all tensors inside: onnx.save(model, path, save_as_external_data=False)"
        raise UsageError(Problem(str(path), f"keeps {len(outside)} tensors in other files ({shown})", hint))
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's own class, and protobuf's
        message = str(error).strip().splitlines()[0][:300]
        raise UsageError(Problem(str(path), f"is not a valid ONNX file: {message}")) from None
    if wrong := next(filter(None, map(_unlike, model.graph.node)), ""):
        raise UsageError(Problem(str(path), f"is not a valid ONNX file: {wrong}"))
    return model


def _unlike(node: onnx.NodeProto) -> str:
    """Missing inputs or attributes of an operator of another domain, which onnx's checker doesn't check; "" if none are
    missing."""
    import onnx

    kind = node.op_type
    if kind == "MatMulNBits" and not all(
        any(a.name == name and a.i > 0 for a in node.attribute) for name in ("K", "N")
    ):
        return f"{kind} {node.name[:60]} lacks K or N"
    named = onnx.defs.has(kind) and onnx.defs.get_schema(kind).min_input > 0
    least = (
        3
        if kind == "MatMulNBits"
        else 8
        if kind in ("QLinearConv", "QLinearMatMul")
        else 2
        if kind in COUNTED
        else int(named)
    )
    foreign = node.domain not in ("", "ai.onnx")
    return (
        f"{kind} of domain {node.domain[:60]!r} lacks inputs or outputs"
        if foreign and (len(node.input) < least or not node.output)
        else ""
    )


def measure(subject: Subject) -> Iterator[Measurement]:
    """file_bytes, parameters and macs of a file; if a shape that macs need is not known, they are left out and the note
    of the parameters says so. Raises UsageError for a file that can't be read, or contradicts itself."""
    if subject.file is None:
        return
    model, unknown = subject.model, ""
    yield figure(FILE_BYTES, Path(subject.file).stat().st_size)
    if model is None:
        return
    try:
        count, left_out = macs(model)
        yield figure(MACS, count, note=f"{NOT_COUNTED}{', '.join(left_out)}" if left_out else "")
    except Open as error:
        unknown = f"macs are {NOT_COUNTED}{error.problems[0].place}: {error.problems[0].message}"
    yield figure(PARAMETERS, parameters(model), note=unknown)


def parameters(model: onnx.ModelProto) -> int:
    """The number of elements of weights and biases: of initializers and Constant nodes with at least one axis.

    Scales, zero points, 64-bit integers and booleans (shapes, axes), and constants without an axis (limits of a Clip)
    don't count."""
    import onnx

    scales = {
        node.input[i]
        for node in model.graph.node
        for i in _QUANTIZATION_PARAMETERS.get(node.op_type, ())
        if i < len(node.input)
    }
    skipped = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    weights = {name: tensor for name, tensor in constants(model).items() if name not in scales}
    # packed in bytes
    held = {
        node.input[1]: _given(node, "K") * _given(node, "N")
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }
    return sum(
        held.get(name, math.prod(t.dims)) for name, t in weights.items() if t.dims and t.data_type not in skipped
    )


def macs(model: onnx.ModelProto) -> tuple[int, tuple[str, ...]]:
    """(multiply-accumulates of convolutions, matrix products and recurrent layers at batch 1, operators with products
    that are not counted). Raises Open where a shape is not known."""
    return sum(node_macs(model).values()), tuple(
        sorted({node.op_type for node in model.graph.node if node.op_type in UNCOUNTED})
    )


def node_macs(model: onnx.ModelProto) -> dict[int, int]:
    """{position of a node: its multiply-accumulates at batch 1}, of convolutions, matrix products and recurrent layers.
    Raises Open where a shape is not known."""
    shapes = value_shapes(model)
    return {
        i: _node_macs(node, shapes) for i, node in enumerate(model.graph.node) if node.op_type in COUNTED | RECURRENT
    }


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """{value: tensor} of initializers and of Constant nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def value_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """{value: shape} at batch 1: the first open dimension of an input is the batch. Values whose shape is not known are
    left out.

    Raises UsageError where the file contradicts itself."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    inner = {tensor.name for tensor in fixed.graph.initializer}
    batch = set()
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in inner and dims:
            batch.add(dims[0].dim_param)
            dims[0].dim_value = 1
    for value in (*fixed.graph.input, *fixed.graph.output):
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and dim.dim_param in batch:
                dim.dim_value = 1
            elif value in fixed.graph.output and i == 0:
                dim.Clear()
    for node in fixed.graph.node:  # onnx knows the shapes of its own operators only
        if node.op_type == "MatMulNBits":
            plain = f"{node.output[0]}.weight"
            fixed.graph.input.append(
                onnx.helper.make_tensor_value_info(
                    plain, onnx.TensorProto.FLOAT, (_given(node, "K"), _given(node, "N"))
                )
            )
            node.CopyFrom(onnx.helper.make_node("MatMul", [node.input[0], plain], [node.output[0]]))
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except Exception as error:
        raise UsageError(
            Problem("", f"the shapes in the file contradict each other: {str(error).strip().splitlines()[0][:300]}")
        ) from None
    shapes = {name: tuple(tensor.dims) for name, tensor in constants(model).items()}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                shapes[value.name] = tuple(d.dim_value for d in dims)
    wrong = next((name for name, shape in shapes.items() if min(shape, default=0) < 0 or math.prod(shape) > MOST), None)
    if wrong is not None:
        raise UsageError(Problem(wrong, f"has the shape {list(shapes[wrong])[:8]}, which fits in no memory"))
    return shapes


def dtype(kind: int) -> np.dtype | None:
    """The numpy type of an ONNX element type; None if there is none."""
    import onnx

    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kind)
    except (KeyError, ValueError):
        return None


def _given(node: onnx.NodeProto, name: str) -> int:
    return next(a.i for a in node.attribute if a.name == name)


def _node_macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    kind = node.op_type
    weight = node.input[3 if kind in ("QLinearConv", "QLinearMatMul") else 1]
    names = {"input": node.input[0], "weight": weight, "output": node.input[2] if kind in RECURRENT else node.output[0]}
    unknown = [name for name in names.values() if name not in shapes]
    if unknown:
        hint = "fix the dimensions other than the batch when exporting"
        raise Open(
            Problem(
                f"{kind} {node.name or next(filter(None, node.output))}",
                f"the shape of `{unknown[0]}` can't be found",
                hint,
            )
        )
    given, w, made = (shapes[names[k]] for k in ("input", "weight", "output"))
    if kind in RECURRENT:  # each step multiplies by the weights of its input and of its state, in every direction
        steps = given[1 if any(a.name == "layout" and a.i for a in node.attribute) else 0]
        return steps * (math.prod(w) + math.prod(made))
    if not given or not w:
        raise UsageError(Problem(f"{kind} {node.name or node.output[0]}", "multiplies a scalar"))
    if kind in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(made) * math.prod(w[1:])  # each output takes every tap of its group's input channels
    if kind == "ConvTranspose":
        return math.prod(given) * math.prod(w[1:])  # each input goes to every tap of its group's output channels
    if kind == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(made) * given[0 if transposed else 1]
    return math.prod(made) * given[-1]


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: in initializers, attributes, subgraphs and functions."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part) if hasattr(part, "ListFields") else ()
