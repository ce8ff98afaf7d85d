"""A graph with markers becomes a file in QDQ form: QuantizeLinear and DequantizeLinear with the grid's numbers, weights
as int8 and biases as int32 initializers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.quantization.parameters import exactly
from edgekd.records import Grid

if TYPE_CHECKING:
    import onnx

DOMAIN, MARK = "edgekd", "Site"  # of the markers


def pool(graph: onnx.GraphProto) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel and knows onnxruntime's
    layouts."""
    from onnx import helper, numpy_helper

    constants = {i.name: i for i in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
    for node in graph.node:
        if (
            node.op_type != "ReduceMean"
            or len(node.input) < 2
            or node.input[1] not in constants
            or ranks.get(node.input[0]) != 4
        ):
            continue
        axes = sorted(int(a) % 4 for a in numpy_helper.to_array(constants[node.input[1]]).ravel())
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == [2, 3] and keep:
            node.CopyFrom(helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output)))


def render(graph: onnx.GraphProto, grid: Grid) -> dict[str, str]:
    """Markers become QuantizeLinear and DequantizeLinear; returns {site of a value: its dequantized value}."""
    from onnx import helper, numpy_helper

    weights = {i.name: i for i in graph.initializer}
    transposed = {n.input[0]: n for n in graph.node if n.op_type == "Transpose"}
    nodes, values, scales, done, skip = [], {}, {}, {}, set()

    def constant(name: str, array: np.ndarray) -> str:
        if name not in done:
            graph.initializer.append(numpy_helper.from_array(array, name))
            done[name] = name
        return name

    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        name = next(a.s.decode() for a in node.attribute if a.name == "site")
        site, output = grid.sites[name], node.output[0]
        scale = np.array(site.scale, np.float32)
        if node.input[0] in weights:
            array, axis = numpy_helper.to_array(weights[node.input[0]]), site.axis
            q = _integers(array, scale, axis, site.low, site.high)
            turned = transposed.get(output)
            if turned is not None:  # a weight is stored as it is read
                order = next(
                    (list(a.ints) for a in turned.attribute if a.name == "perm"), list(range(array.ndim))[::-1]
                )
                q, axis, output = q.transpose(order), None if axis is None else order.index(axis), turned.output[0]
                skip.add(turned.output[0])
            scales[output] = scale
            scale_array = scale if axis is not None else scale[0]
            # onnxruntime keeps Gemm in float without it
            zero = constant(f"zeros {scale_array.shape}", np.zeros(scale_array.shape, np.int8))
            operands = [
                constant(f"{name}.q{'' if turned is None else '.t'}", np.ascontiguousarray(q)),
                constant(f"{name}.s", scale_array),
                zero,
            ]
            nodes.append(
                helper.make_node("DequantizeLinear", operands, [output], **({"axis": axis} if axis is not None else {}))
            )
        else:
            zero = constant(f"{name}.z", np.array(site.zero_point, np.uint8 if site.high <= 255 else np.uint16))
            step = constant(f"{name}.s", scale[0])
            nodes.append(helper.make_node("QuantizeLinear", [node.input[0], step, zero], [f"{output}.q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{output}.q", step, zero], [output]))
            values.setdefault(name, output)
            scales[output] = scale
    kept = _looked_up([n for n in nodes if not (n.op_type == "Transpose" and n.output[0] in skip)], helper)
    result = [part for node in kept for part in _bias(node, weights, scales, constant, helper)]
    del graph.node[:]
    graph.node.extend(result)
    return values


def _looked_up(nodes: list[onnx.NodeProto], helper: Any) -> list[onnx.NodeProto]:
    """Rows are looked up in integers and then told in float; the other way round the whole table would be, at each
    inference."""
    made = {n.output[0] for n in nodes}  # a value's integers are made by a node, a table's are stored
    told = {n.output[0]: n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] not in made}
    found = []
    for node in nodes:
        table = told.get(node.input[0]) if node.op_type == "Gather" else None
        along = next((a.i for a in table.attribute if a.name == "axis"), None) if table is not None else None
        if table is None or along == 0 or any(a.name == "axis" and a.i for a in node.attribute):
            found.append(node)
            continue
        rows = f"{node.output[0]}.q"
        found.append(helper.make_node("Gather", [table.input[0], node.input[1]], [rows]))
        found.append(
            helper.make_node(
                "DequantizeLinear",
                [rows, *table.input[1:]],
                list(node.output),
                **({} if along is None else {"axis": -1}),
            )
        )
    return found


def _bias(
    node: onnx.NodeProto, weights: Mapping[str, Any], scales: Mapping[str, np.ndarray], constant: Any, helper: Any
) -> list[onnx.NodeProto]:
    """The node, its float bias replaced by int32 at the product of its operands' scales."""
    from onnx import numpy_helper

    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.input[0] in scales and node.input[1] in weights:
        return _kept_float(node, weights, constant, helper)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3 or node.input[2] not in weights:
        return [node]
    if node.input[0] not in scales or node.input[1] not in scales:
        return [node]
    bias = numpy_helper.to_array(weights[node.input[2]])
    scale = np.broadcast_to(scales[node.input[0]] * scales[node.input[1]], bias.shape).astype(np.float32)
    rounded = np.clip(np.round(bias / scale), -(2.0**31), 2.0**31 - 128).astype(np.int32)
    name = f"{node.output[0]}.bias"
    made = helper.make_node(
        "DequantizeLinear", [constant(f"{name}.q", rounded), constant(f"{name}.s", scale)], [name], axis=0
    )
    node.input[2] = name
    return [made, node]


def _kept_float(node: onnx.NodeProto, weights: Mapping[str, Any], constant: Any, helper: Any) -> list[onnx.NodeProto]:
    """A layer of a quantized value with float weights, its bias told as int32 times powers of two, which is the same
    numbers.

    onnxruntime (core/optimizer/qdq_transformer/weight_bias_quantization.cc) rounds the weight of such a layer to int8
    with one scale, unless the bias is no stored float."""
    from onnx import numpy_helper

    stored = weights.get(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) > 2 and node.input[2] and stored is None:
        return [node]  # computed, so it is no stored float
    bias = (
        np.zeros(_outputs(node, weights[node.input[1]].dims), np.float32)
        if stored is None
        else numpy_helper.to_array(stored).ravel()
    )
    name = f"{node.output[0]}.bias"
    q, scale = exactly(bias)
    made = helper.make_node(
        "DequantizeLinear", [constant(f"{name}.q", q), constant(f"{name}.s", scale)], [name], axis=0
    )
    node.input[:] = [*node.input[:2], name]
    return [made, node]


def _outputs(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    """Output channels of a layer by its weight's shape."""
    given = {a.name: a.i for a in node.attribute}
    if node.op_type == "ConvTranspose":
        return shape[1] * given.get("group", 1)
    return shape[1] if node.op_type == "Gemm" and not given.get("transB", 0) else shape[0]


def _integers(array: np.ndarray, scale: np.ndarray, axis: int | None, low: int, high: int) -> np.ndarray:
    """int8 of a weight: clamp(round_half_even(w / s)), as ONNX QuantizeLinear defines it."""
    shaped = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(array.ndim)])
    return np.clip(np.round(array / shaped), low, high).astype(np.int8)
