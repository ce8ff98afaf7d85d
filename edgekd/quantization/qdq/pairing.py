"""A float file and the int8 file made of it, side by side: the layers that both have, and what of them is quantized.

Names differ in the two files, since each numbers its values for itself. What agrees is the order of the operators once
QuantizeLinear, DequantizeLinear and clips are left out: these an int8 file drops where rounding clips as they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import CLIPS, QUANTIZERS, Graph, Parameters
from edgekd.quantization.qdq.integers import Quantized

if TYPE_CHECKING:
    import onnx

PARTS = ("weights", "values")  # what of a layer is quantized


@dataclass(frozen=True)
class Weights:
    """A weight as the int8 file holds it and as it was: `stored` the file's integers, `scale` [channels] or [1], `axis`
    of the channels (None: one scale), `plain` float32 in the same layout, `dequantized` what the file computes with."""

    stored: np.ndarray
    scale: np.ndarray
    axis: int | None
    plain: np.ndarray
    dequantized: np.ndarray


@dataclass(frozen=True)
class Layer:
    """One operator of both files with what is quantized of it.

    name        `Conv(v29)`, by its output in the int8 file, as `float_kernels` says it; `input` for an input itself
    before      the value that is quantized, and `after` what the next operators read, both by their names in the int8
                file; '' where it is not
    parameters  of its value; None where that stays float
    weights     None where it has none that are quantized; `bias`: the float file's, or None"""

    name: str
    kind: str
    before: str
    after: str
    parameters: Parameters | None
    weights: Weights | None
    bias: np.ndarray | None
    depthwise: bool = False


@dataclass(frozen=True)
class Pair:
    """Both files, their layers in graph order, and how to leave one out: `quantizers` {layer: its QuantizeLinear nodes'
    outputs}, `operands` {layer: {dequantized operand: (float array, the int8 file's array)}}, `clips` {layer: the Relu
    or Clip that the int8 file does without}."""

    plain: Graph
    quantized: Graph
    layers: tuple[Layer, ...]
    quantizers: Mapping[str, tuple[str, ...]]
    operands: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]
    clips: Mapping[str, onnx.NodeProto]


def pair(plain: onnx.ModelProto, quantized: onnx.ModelProto) -> Pair:
    """Finds the layers that both files have. Raises UsageError where they are not the same network."""
    p, q = graphs.of(plain), graphs.of(_inlined(quantized, plain))
    quantized = q.model
    owned = _owned(q)
    dequantized = {n.input[0]: n.output[0] for n in q.nodes if n.op_type == "DequantizeLinear"}
    layers, quantizers, operands, clips = [], {}, {}, {}

    def add(layer: Layer, nodes: Sequence[onnx.NodeProto]) -> None:
        layers.append(layer)
        quantizers[layer.name] = tuple(n.output[0] for n in nodes)

    for name in (value.name for value in quantized.graph.input if value.name in owned):
        first = owned[name][0]
        label = name if name.startswith("input") else f"input {name}"
        add(Layer(label, "input", name, dequantized[first.output[0]], q.parameters(first), None, None), owned[name])
    for ours, theirs in _operators(p, q):
        nodes, given = owned.get(theirs.output[0], []), _operands(ours, theirs, p, q)
        if not nodes and not given:
            continue
        ends = (nodes[0].input[0], dequantized[nodes[0].output[0]]) if nodes else ("", "")
        layer = _layer(theirs, ends, q.parameters(nodes[0]) if nodes else None, given)
        add(layer, nodes)
        operands[layer.name] = {k: (w.plain, w.dequantized) if isinstance(w, Weights) else w for k, w in given.items()}
        clip = p.reader(ours.output[0])
        if nodes and clip is not None and clip.op_type in CLIPS and q.makers[ends[0]].op_type not in CLIPS:
            clips[layer.name] = clip
    return Pair(p, q, tuple(layers), quantizers, operands, clips)


def _inlined(model: onnx.ModelProto, like: onnx.ModelProto) -> onnx.ModelProto:
    """A file without the operators that the other has as their definition (HardSwish as HardSigmoid and Mul), which
    onnxruntime writes where it has no kernel for them."""
    import onnx
    from onnx import inliner

    mine, theirs = ({n.op_type for n in m.graph.node if n.domain in ("", "ai.onnx")} for m in (model, like))
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    # a hard sigmoid may be a sum in an int8 file, see `graph.may_be`; a LeakyRelu may be a Relu
    extra = {k for k in mine - theirs - {*CLIPS, *QUANTIZERS, "HardSigmoid", "LeakyRelu"} if onnx.defs.has(k)}
    known = sorted(k for k in extra if _defined(onnx.defs.get_schema(k, version, "")))
    if not known:
        return model
    return inliner.inline_selected_functions(model, [("", k) for k in known], False, inline_schema_functions=True)


def _defined(schema: Any) -> bool:
    return bool(schema.has_function or schema.has_context_dependent_function)


def _operators(plain: Graph, quantized: Graph) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """The operators of both files, side by side, without the hard sigmoids that are sums in the int8 file: what rounds
    them clips them too, so that it is never left out."""
    ours = _skeleton(plain)
    theirs = _without_widths(ours, _skeleton(quantized), quantized)
    both = list(zip(ours, theirs, strict=False))
    at = next((i for i, (a, b) in enumerate(both) if not graphs.may_be(a.op_type, b, quantized)), len(both))
    if at == len(ours) == len(theirs):
        return [(a, b) for a, b in both if a.op_type == b.op_type]
    seen = [graphs.title(n[at]) if at < len(n) else "the end" for n in (ours, theirs)]
    what = f"operator {at + 1} is {seen[0]} in the float file, {seen[1]} in the int8 file"
    hint = "give the float file that the int8 file was made of"
    raise UsageError(Problem("", f"the files are not the same network: {what}", hint))


def _without_widths(
    ours: Sequence[onnx.NodeProto], theirs: Sequence[onnx.NodeProto], graph: Graph
) -> list[onnx.NodeProto]:
    """An int8 file's operators without the products with stored factors before hard sigmoids that the float file has
    not: with them channels are made equally wide, see `onnx_graph.equalize`."""
    found: list[onnx.NodeProto] = []
    for node in theirs:
        beside = ours[len(found)].op_type if len(found) < len(ours) else ""
        added = node.op_type == "Mul" and beside == "HardSigmoid" and any(n in graph.stored for n in node.input)
        found += [] if added else [node]
    return found


def _layer(node: onnx.NodeProto, ends: tuple[str, str], parameters: Parameters | None, given: Mapping) -> Layer:
    weights = next((w for w in given.values() if isinstance(w, Weights)), None)
    bias = next((w[0] for w in given.values() if not isinstance(w, Weights)), None)
    deep = weights is not None and graphs.depthwise(node, weights.plain)
    return Layer(graphs.title(node), node.op_type, *ends, parameters, weights, bias, deep)


def _skeleton(graph: Graph) -> list[onnx.NodeProto]:
    """The operators in the file's order, without QuantizeLinear, DequantizeLinear, clips and what only moves values: an
    exporter leaves out other moves where it quantizes in between."""
    left_out = lambda n: n.op_type in (*CLIPS, *QUANTIZERS) or graphs.moves(n) or graphs.rectifies(n)
    return [n for n in graph.nodes if not left_out(n)]


def _owned(graph: Graph) -> dict[str, list[onnx.NodeProto]]:
    """{output of the operator that makes a value, or input: its QuantizeLinear nodes}: one, and one more wherever it is
    moved."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            found.setdefault(graph.origin(node.output[0], clips=True), []).append(node)
    return found


def _operands(ours: onnx.NodeProto, theirs: onnx.NodeProto, plain: Graph, quantized: Graph) -> dict:
    """{dequantized operand of the int8 operator: Weights, or (float bias, the file's bias)}."""
    found: dict[str, Weights | tuple[np.ndarray, np.ndarray]] = {}
    for name, dequantized in zip(ours.input, theirs.input, strict=False):
        known = quantized.parameters(quantized.makers.get(dequantized))
        if name not in plain.constants or known is None or known.constant is None:
            continue
        stored = Quantized(known.constant, known.scale, known.zero_point, known.axis or 0)
        if known.constant.dtype == np.int32:
            found[dequantized] = (plain.constants[name], stored.real())
        else:
            found[dequantized] = Weights(known.constant, known.scale, known.axis, plain.constants[name], stored.real())
    return found
