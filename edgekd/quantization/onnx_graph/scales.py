"""The quantization parameters of a placed ONNX graph: of values from their ranges, of weights from themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekd.quantization.onnx_graph.placement import Layer, Placement
from edgekd.quantization.parameters import BIAS_BITS, PAIR, SMALLEST, scale_and_zero_point
from edgekd.quantization.qdq.graph import Graph
from edgekd.records import Scheme, Site


def sites(
    graph: Graph, placement: Placement, ranges: Mapping[str, tuple[float, float]], scheme: Scheme
) -> dict[str, Site]:
    """{value or weight: Site} from the `ranges` of the values that are quantized."""
    found: dict[str, Site] = {}
    steps = 2**scheme.activation_bits - 1
    for name, limits in placement.values.items():
        one, zero_point = scale_and_zero_point(*ranges[name], steps, limits)
        found[name] = Site((one,), zero_point, 0, steps)
    for name, readers in _by_weight(placement).items():
        found[name] = _weight(graph, name, readers, found, scheme)
    return found


def _weight(graph: Graph, name: str, readers: Sequence[Layer], values: Mapping[str, Site], scheme: Scheme) -> Site:
    """Of a weight, by the layers that read it: no scale that is too narrow for one of them."""
    axes = {known.axis for known in readers}
    axis = axes.pop() if scheme.per_channel and len(axes) == 1 else None  # read along two axes: one scale in all
    high, weight = 2 ** (scheme.weight_bits - 1) - 1, graph.constants[name]
    scale = widest(weight, axis, high)
    if scheme.pairs16 and 2 * high > PAIR:  # once for readers that sum alike
        for known in {(k.kind, k.axis): k for k in readers if k.pairs}.values():
            scale = _at_least(scale, within_pairs(weight, known), axis)
    for known in readers:
        if known.bias is not None:
            scale = _at_least(scale, _holding(graph.constants[known.bias], values[known.x]), axis)
    return Site(tuple(float(s) for s in scale.astype(np.float32)), 0, -high, high, axis)


def _at_least(scale: np.ndarray, needed: np.ndarray, axis: int | None) -> np.ndarray:
    return np.maximum(scale, needed if axis is not None else needed.max())


def _holding(bias: np.ndarray, x: Site) -> np.ndarray:
    """[outputs] scales of a weight with which an int32 has room for the bias and the sum."""
    return np.abs(bias) / (np.float32(x.scale[0]) * np.float32(2.0**BIAS_BITS))


def widest(weight: np.ndarray, axis: int | None, high: int) -> np.ndarray:
    """[channels] scales that no weight exceeds. A dead channel takes the widest of the others: any scale holds its
    zeros."""
    dims = tuple(d for d in range(weight.ndim) if axis is None or d != axis)
    scale = np.abs(weight).max(dims).reshape(-1) / np.float32(high)
    largest = scale.max()
    return np.where(scale > SMALLEST, scale, largest if largest > SMALLEST else np.float32(1)).astype(np.float32)


def within_pairs(weight: np.ndarray, known: Layer) -> np.ndarray:
    """[outputs] scales with which no two neighbours' products leave 16 bits (see `saturation`; the rule is that of
    `torch_graph.modules.Weight`): in the order of the sum, kernel position and then input channel, those of a pair that
    have one sign are PAIR steps at most, after rounding."""
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
