"""A graph with markers becomes a file in QDQ form: QuantizeLinear and DequantizeLinear with the grid's numbers, weights
as int8 and biases as int32 initializers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.quantization.parameters import bias_integers, weight_integers
from edgekd.quantization.qdq.graph import attribute, exact_bias
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
        if axes == [2, 3] and attribute(node, "keepdims", 1):
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
        name = attribute(node, "site", b"").decode()
        site, output = grid.sites[name], node.output[0]
        scale = np.array(site.scale, np.float32)
        if node.input[0] in weights and site.low < 0:  # a value that does not depend on inputs is no weight
            array, axis = numpy_helper.to_array(weights[node.input[0]]), site.axis
            q = weight_integers(array, scale, axis, site.low, site.high)
            turned = transposed.get(output)
            if turned is not None:  # a weight is stored as it is read
                order = attribute(turned, "perm", list(range(array.ndim))[::-1])
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
        along = attribute(table, "axis", None) if table is not None else None
        if table is None or along == 0 or attribute(node, "axis", 0):
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
    return _integer_bias(node, *bias_integers(bias, scales[node.input[0]], scales[node.input[1]]), constant, helper)


def _kept_float(node: onnx.NodeProto, weights: Mapping[str, Any], constant: Any, helper: Any) -> list[onnx.NodeProto]:
    """A layer of a quantized value with float weights, its bias as integers too."""
    from onnx import numpy_helper

    stored = weights.get(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) > 2 and node.input[2] and stored is None:
        return [node]  # computed, so it is no stored float
    bias = None if stored is None else numpy_helper.to_array(stored)
    return _integer_bias(node, *exact_bias(node, weights[node.input[1]].dims, bias), constant, helper)


def _integer_bias(
    node: onnx.NodeProto, q: np.ndarray, scale: np.ndarray, constant: Any, helper: Any
) -> list[onnx.NodeProto]:
    """The node with the bias `q` times `scale`, and the DequantizeLinear that makes it."""
    name = f"{node.output[0]}.bias"
    operands = [constant(f"{name}.q", q), constant(f"{name}.s", scale)]
    node.input[:] = [*node.input[:2], name]
    return [helper.make_node("DequantizeLinear", operands, [name], axis=0), node]
