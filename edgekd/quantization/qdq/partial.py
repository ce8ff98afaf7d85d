"""Files between a float file and the int8 file made of it, where only some layers are quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import external
from edgekd.quantization.qdq.pairing import Pair

if TYPE_CHECKING:
    import onnx


def render(p: Pair, quantized: Iterable[tuple[str, str]], *, own: bool = False) -> onnx.ModelProto:
    """The network with the (layer, part) pairs in `quantized` as in the int8 file and all else in float. `own`: float
    weights are the int8 file's own, dequantized, for a file that was trained and so has no others."""
    from onnx import numpy_helper

    keep = set(quantized)
    floats = _floats(p, keep, own)
    left_out = _left_out(p, keep)
    clips = {n: p.plain.constants[n] for clip in left_out.values() if clip is not None for n in clip.input[1:] if n}
    model = external.copied(p.quantized.model)
    del model.graph.node[:]
    model.graph.node.extend(_nodes(p, floats, left_out))
    added = {name: np.ascontiguousarray(a) for name, a in floats.items()} | {f"clip.{n}": a for n, a in clips.items()}
    known = p.quantized.constants
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in added.items() if n not in known)
    return model


def _floats(p: Pair, keep: set[tuple[str, str]], own: bool) -> dict[str, np.ndarray]:
    """{dequantized operand: its array in float} of the layers whose weights are not kept."""
    found: dict[str, np.ndarray] = {}
    for layer in p.layers:
        if (layer.name, "weights") not in keep:
            found |= {value: both[own] for value, both in p.operands.get(layer.name, {}).items()}
    return found


def _left_out(p: Pair, keep: set[tuple[str, str]]) -> dict[str, onnx.NodeProto | None]:
    """{integers: the clip that their parameters imply} of the layers whose values are not kept."""
    found: dict[str, onnx.NodeProto | None] = {}
    for layer in p.layers:
        if (layer.name, "values") not in keep:
            found |= {q: p.clips.get(layer.name) for q in p.quantizers[layer.name]}
    return found


def _nodes(
    p: Pair, floats: Mapping[str, np.ndarray], left_out: Mapping[str, onnx.NodeProto | None]
) -> Iterable[onnx.NodeProto]:
    from onnx import helper

    for node in p.quantized.nodes:
        if node.op_type == "DequantizeLinear" and node.output[0] in floats:
            continue
        if node.op_type == "QuantizeLinear" and node.output[0] in left_out:
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in left_out:
            source, clip = p.quantized.makers[node.input[0]].input[0], left_out[node.input[0]]
            ends = [f"clip.{n}" if n else "" for n in clip.input[1:]] if clip is not None else []
            yield helper.make_node("Identity" if clip is None else clip.op_type, [source, *ends], [node.output[0]])
        else:
            yield node
