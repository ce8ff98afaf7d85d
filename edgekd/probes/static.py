"""Counts on an ONNX file without running it: bytes, parameters, multiply-accumulates. Exact, `counted`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from edgekd.onnx_files import external, fused, subgraphs
from edgekd.onnx_files.known import Shape
from edgekd.onnx_files.reading import read as read
from edgekd.probes import Subject, figure
from edgekd.probes._macs import Open as Open
from edgekd.probes._macs import batch, counts, known, unshaped
from edgekd.probes._macs import node_macs as node_macs
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
# inputs with quantization parameters of another input, not weights: {operator: positions}
_QUANTIZATION_PARAMETERS = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "DynamicQuantizeLinear": (),
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3), "MatMulNBits": (2, 3), "Resize": (1, 2, 3), "Pad": (1, 2, 3),
}  # fmt: skip


def measure(subject: Subject) -> Iterator[Measurement]:
    """file_bytes, parameters and macs of a file; if a shape that macs need is not known, they are left out and the note
    of the parameters says so; that of file_bytes if one is not known that activation_bytes need. Raises UsageError for
    a file that can't be read, or contradicts itself."""
    if subject.file is None:
        return
    model, unknown = subject.model, ""
    size = external.size(subject.file)
    if model is None:
        yield figure(FILE_BYTES, size)
        return
    unplanned = unshaped(model, subject.known)
    yield figure(FILE_BYTES, size, note=f"activation_bytes are {NOT_COUNTED}{unplanned}" if unplanned else "")
    try:
        found = subject.counts
        left_out = f"{NOT_COUNTED}{', '.join(found.left_out)}" if found.left_out else ""
        yield figure(MACS, found.total, note="; ".join(filter(None, (left_out, batch(found.rows, found.total)))))
    except Open as error:
        unknown = f"macs are {NOT_COUNTED}{error.problems[0].place}: {error.problems[0].message}"
    yield figure(PARAMETERS, parameters(model), note=unknown)


def parameters(model: onnx.ModelProto) -> int:
    """The number of elements of weights and biases: of initializers and Constant nodes with at least one axis, in
    subgraphs too.

    Scales, zero points, 64-bit integers and booleans (shapes, axes), and constants without an axis (limits of a Clip)
    don't count."""
    return sum(map(_parameters, subgraphs.graphs(model.graph)))


def _parameters(graph: onnx.GraphProto) -> int:
    import onnx

    scales = {
        node.input[i]
        for node in graph.node
        for i in _QUANTIZATION_PARAMETERS.get(node.op_type, ())
        if i < len(node.input)
    }
    skipped = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    weights = {name: tensor for name, tensor in stored(graph).items() if name not in scales}
    # packed in bytes
    held = {
        node.input[1]: fused.attribute(node, "K") * fused.attribute(node, "N")
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    return sum(
        held.get(name, math.prod(t.dims)) for name, t in weights.items() if t.dims and t.data_type not in skipped
    )


def macs(model: onnx.ModelProto, sample: Mapping[str, Shape] | None = None) -> tuple[int, tuple[str, ...]]:
    """(multiply-accumulates of convolutions, matrix products and recurrent layers of one inference, operators with
    products that are not counted). Raises Open where a shape is not known."""
    found = counts(model, sample)
    return found.total, found.left_out


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """{value: tensor} of initializers and of Constant nodes."""
    return stored(model.graph)


def stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def value_shapes(model: onnx.ModelProto, sample: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """{value: shape} of one inference (`onnx_files.shapes.at`). Values whose shape is not known are left out. Raises
    UsageError where the file contradicts itself."""
    return known(model, sample).shapes


def dtype(kind: int) -> np.dtype | None:
    """The numpy type of an ONNX element type; None if there is none."""
    import onnx

    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kind)
    except (KeyError, ValueError):
        return None
