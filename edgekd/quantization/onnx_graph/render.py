"""A grid for a placed ONNX graph, and its rendering: QuantizeLinear and DequantizeLinear behind each value with a
lattice, weights as int8, biases as int32 at the product of their operands' scales. The form is that of `formats.onnx`,
which onnxruntime fuses to integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.onnx_graph.placement import ASKED, Layer, Placement, clip
from edgekd.quantization.parameters import (
    BIAS_BITS,
    BIAS_HIGH,
    PAIR,
    SMALLEST,
    clips_itself,
    exactly,
    scale_and_zero_point,
)
from edgekd.quantization.qdq.graph import Graph, attribute
from edgekd.records import Scheme, Site

if TYPE_CHECKING:
    import onnx


def sites(
    graph: Graph, placement: Placement, ranges: Mapping[str, tuple[float, float]], scheme: Scheme
) -> dict[str, Site]:
    """{value or weight: Site} from the `ranges` of the values that have a lattice."""
    found: dict[str, Site] = {}
    steps = 2**scheme.activation_bits - 1
    for name, limits in placement.values.items():
        one, zero_point = scale_and_zero_point(*ranges[name], steps, limits)
        found[name] = Site((one,), zero_point, 0, steps)
    for name, readers in _by_weight(placement).items():
        axes = {known.axis for known in readers}
        axis = axes.pop() if scheme.per_channel and len(axes) == 1 else None  # read along two axes: one scale in all
        high = 2 ** (scheme.weight_bits - 1) - 1
        scale = widest(graph.constants[name], axis, high)
        for known in (k for k in readers if scheme.pairs16 and k.pairs and 2 * high > PAIR):
            needed = within_pairs(graph.constants[name], known)
            scale = np.maximum(scale, needed if axis is not None else needed.max())
        # a channel whose bias would not fit takes a wider scale
        for known in (k for k in readers if k.bias is not None):
            needed = np.abs(graph.constants[known.bias]) / (
                np.float32(found[known.x].scale[0]) * np.float32(2.0**BIAS_BITS)
            )
            scale = np.maximum(scale, needed if axis is not None else needed.max())
        found[name] = Site(tuple(float(s) for s in scale.astype(np.float32)), 0, -high, high, axis)
    return found


def widest(weight: np.ndarray, axis: int | None, high: int) -> np.ndarray:
    """[channels] scales that no weight exceeds. A dead channel takes the widest of the others: any scale holds its
    zeros."""
    dims = tuple(d for d in range(weight.ndim) if axis is None or d != axis)
    scale = np.abs(weight).max(dims).reshape(-1) / np.float32(high)
    largest = scale.max()
    return np.where(scale > SMALLEST, scale, largest if largest > SMALLEST else np.float32(1)).astype(np.float32)


def within_pairs(weight: np.ndarray, known: Layer) -> np.ndarray:
    """[outputs] scales with which no two neighbours' products leave 16 bits (see `saturation`; the rule is that of
    `fake.Weight`): in the order of the sum, kernel position and then input channel, those of a pair that have one sign
    are PAIR steps at most, after rounding."""
    if known.kind == "Conv":
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    else:
        rows = weight if known.axis == 0 else np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])
    rows = np.pad(rows, [(0, 0), (0, rows.shape[1] % 2)]).reshape(len(rows), -1, 2)
    furthest = np.maximum(rows.clip(0).sum(2), -rows.clip(None, 0).sum(2)).max(1)
    return furthest / np.float32(PAIR - 2)  # each of two may be rounded up, even by a whole step


def _by_weight(placement: Placement) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for known in placement.layers:
        if known.weight is not None and not known.reason:
            found.setdefault(known.weight, []).append(known)
    return found


def render(model: onnx.ModelProto, graph: Graph, placement: Placement, grid: Mapping[str, Site]) -> onnx.ModelProto:
    """The file with the grid's numbers; it changes none. Names of the file's own values stay: they are those behind
    DequantizeLinear."""
    import onnx
    from onnx import helper, numpy_helper

    made, nodes, tensors, taken = onnx.ModelProto(), [], {}, set(graph.makers) | set(graph.readers)
    made.CopyFrom(model)
    on = {name: name for name in placement.values} | placement.tied
    by_output = {known.name: known for known in placement.layers if not known.reason}
    float_layers = {
        known.name for known in placement.layers if known.reason == ASKED and known.kind in ("Conv", "Gemm")
    }

    def name_of(wanted: str) -> str:
        while wanted in taken:
            wanted += "_"
        return wanted

    def constant(wanted: str, array: np.ndarray) -> str:
        name = name_of(wanted)
        tensors.setdefault(name, numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def rounded(raw: str, name: str, output: str) -> list[onnx.NodeProto]:
        site = grid[on[name]]
        step = constant(f"{on[name]}.s", np.array(site.scale[0], np.float32))
        zero = constant(f"{on[name]}.z", np.array(site.zero_point, np.uint8))
        q = name_of(f"{name}.q")
        return [
            helper.make_node("QuantizeLinear", [raw, step, zero], [q]),
            helper.make_node("DequantizeLinear", [q, step, zero], [output]),
        ]

    def stored(known: Layer) -> str:
        name, site, weight = name_of(f"{known.weight}.dq"), grid[known.weight], graph.constants[known.weight]
        if name not in weights:
            scale = np.array(site.scale, np.float32)
            shaped = (
                scale if site.axis is None else scale.reshape([-1 if d == site.axis else 1 for d in range(weight.ndim)])
            )
            q = np.clip(np.round(weight / shaped), site.low, site.high).astype(np.int8)
            scale = scale[0] if site.axis is None else scale
            # Gemm stays in float without it
            zero = constant(f"zeros.{'x'.join(map(str, scale.shape))}", np.zeros(scale.shape, np.int8))
            operands = [constant(f"{known.weight}.q", q), constant(f"{known.weight}.s", np.array(scale)), zero]
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", operands, [name], **({} if site.axis is None else {"axis": site.axis})
                )
            )
            weights.add(name)
        return name

    def offset(known: Layer) -> str:
        bias = graph.constants[known.bias]
        scale = np.float32(grid[known.x].scale[0]) * np.array(grid[known.weight].scale, np.float32)
        scale = np.broadcast_to(scale, bias.shape)
        q = np.clip(np.round(bias / scale), -(2.0**31), BIAS_HIGH).astype(np.int32)
        name = name_of(f"{known.name}.bias")
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [constant(f"{name}.q", q), constant(f"{name}.s", scale)], [name], axis=0
            )
        )
        return name

    def told(node: onnx.NodeProto) -> str:
        """The bias of a layer that stays float, as int32 times powers of two: else onnxruntime rounds the layer's
        weight to int8 with one scale (core/optimizer/qdq_transformer/weight_bias_quantization.cc)."""
        stored, shape = graph.constants.get((*node.input, "")[2]), graph.constants[node.input[1]].shape
        outputs = shape[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else shape[1]
        q, scale = exactly(np.zeros(outputs, np.float32) if stored is None else stored.ravel())
        name = name_of(f"{node.output[0]}.bias")
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [constant(f"{name}.q", q), constant(f"{name}.s", scale)], [name], axis=0
            )
        )
        return name

    renamed, weights = {}, set()
    for value in model.graph.input:
        if value.name in on:
            renamed[value.name] = name_of(f"{value.name}.dq")
            nodes += rounded(value.name, value.name, renamed[value.name])
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.output[0] in on and superfluous(node, graph, placement, grid):
            nodes += rounded(node.input[0], node.output[0], node.output[0])
            continue
        copy.input[:] = [renamed.get(n, n) for n in node.input]
        known = by_output.get(node.output[0])
        if known is not None and known.weight is not None:
            copy.input[1] = stored(known)
            if known.bias is not None:
                copy.input[2] = offset(known)
        if node.output[0] in float_layers and (len(node.input) < 3 or node.input[2] in ("", *graph.constants)):
            copy.input[:] = [*copy.input[:2], told(node)]
        copy.output[:] = [name_of(f"{n}.raw") if n in on else n for n in node.output]
        nodes.append(copy)
        for name, raw in zip(node.output, copy.output, strict=True):
            nodes += rounded(raw, name, name) if name in on else []
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    read = {n for node in nodes for n in node.input} | {n for n, readers in graph.readers.items() if None in readers}
    kept = [i for i in model.graph.initializer if i.name in read]
    del made.graph.initializer[:], made.graph.value_info[:]
    made.graph.initializer.extend([*kept, *tensors.values()])
    return made


def superfluous(node: onnx.NodeProto, graph: Graph, placement: Placement, grid: Mapping[str, Site]) -> bool:
    """Whether a clip's lattice cuts by itself where the clip does. It is left out then: onnxruntime recognizes few, and
    keeps the layer before the others in float."""
    name, before = node.output[0], node.input[0]
    if name not in placement.values or clip(node, graph) is None or before not in graph.makers:
        return False
    if before in placement.values or before in placement.tied or len(graph.readers.get(before, [])) != 1:
        return False
    site = grid[name]
    return clips_itself(placement.values[name], site.scale[0], site.zero_point, site.high)
