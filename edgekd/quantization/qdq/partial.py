"""A float file and the int8 file made of it, side by side: the layers that they share, and files in between, where only
some layers are quantized.

Names differ in the two files, since each numbers its values for itself. What agrees is the order of the operators once
QuantizeLinear, DequantizeLinear and clipping activations are left out: these an int8 file drops where the lattice cuts
as they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.quantization.qdq.operands import Lattice, attribute, lattice

if TYPE_CHECKING:
    import onnx

CLIPS = ("Relu", "Clip")
LATTICES = ("QuantizeLinear", "DequantizeLinear")
MOVES = {
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Slice",
    "Gather",
    "Identity",
    "Expand",
    "Split",
}
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

    name      `Conv(v29)`, by its output in the int8 file, as `float_kernels` says it; `input` for an input's own
              lattice
    before    what its lattice rounds, and `after` what the next operators read, both by their names in the int8 file;
              '' without a lattice
    lattice   of its value; None where that stays float
    weights   None where it has none on a lattice; `bias`: the float file's, or None"""

    name: str
    kind: str
    before: str
    after: str
    lattice: Lattice | None
    weights: Weights | None
    bias: np.ndarray | None
    depthwise: bool = False


@dataclass(frozen=True)
class Pair:
    """Both files, their layers in graph order, and how to leave one out: `quantizers` {layer: its QuantizeLinear nodes'
    outputs}, `operands` {layer: {dequantized operand: (float array, the int8 file's array)}}, `clips` {layer: the
    activation that its lattice stands for}."""

    plain: onnx.ModelProto
    quantized: onnx.ModelProto
    layers: tuple[Layer, ...]
    quantizers: Mapping[str, tuple[str, ...]]
    operands: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]
    clips: Mapping[str, onnx.NodeProto]


def pair(plain: onnx.ModelProto, quantized: onnx.ModelProto) -> Pair:
    """Finds the layers that both files have. Raises UsageError where they are not the same network."""
    from onnx import numpy_helper

    ours, theirs = _skeleton(plain), _skeleton(quantized)
    if [n.op_type for n in ours] != [n.op_type for n in theirs]:
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a.op_type != b.op_type),
            min(len(ours), len(theirs)),
        )
        seen = [f"{n[at].op_type}({n[at].output[0]})" if at < len(n) else "the end" for n in (ours, theirs)]
        message = (
            f"the files are not the same network: operator {at + 1} is {seen[0]} in the float file, {seen[1]} "
            "in the int8 file"
        )
        raise UsageError(Problem("", message, "give the float file that the int8 file was made of"))
    constants = {i.name: numpy_helper.to_array(i) for i in quantized.graph.initializer}
    floats = {i.name: numpy_helper.to_array(i) for i in plain.graph.initializer}
    makers = {o: n for n in quantized.graph.node for o in n.output}
    readers = _readers(plain)
    owned = _owned(quantized, makers)
    seen = {n.input[0]: n.output[0] for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    layers, quantizers, operands, clips = [], {}, {}, {}
    for value in quantized.graph.input:
        if value.name in owned:
            found = lattice(owned[value.name][0], constants)
            name = value.name if value.name.startswith("input") else f"input {value.name}"
            layers.append(Layer(name, "input", value.name, seen[owned[value.name][0].output[0]], found, None, None))
            quantizers[name] = tuple(n.output[0] for n in owned[value.name])
    for a, b in zip(ours, theirs, strict=True):
        nodes = owned.get(b.output[0], [])
        given = _operands(a, b, floats, constants, makers)
        if not nodes and not given:
            continue
        name = f"{b.op_type}({b.output[0]})"
        users = readers.get(a.output[0], [])
        clip = users[0] if len(users) == 1 and users[0] is not None and users[0].op_type in CLIPS else None
        weights = next((w for w in given.values() if isinstance(w, Weights)), None)
        bias = next((w[0] for w in given.values() if not isinstance(w, Weights)), None)
        deep = (
            b.op_type == "Conv"
            and weights is not None
            and weights.plain.shape[1] == 1
            and attribute(b, "group", 1) == len(weights.plain)
        )
        ends = (nodes[0].input[0], seen[nodes[0].output[0]]) if nodes else ("", "")
        layers.append(
            Layer(name, b.op_type, *ends, lattice(nodes[0], constants) if nodes else None, weights, bias, deep)
        )
        quantizers[name] = tuple(n.output[0] for n in nodes)
        operands[name] = {k: (w.plain, w.dequantized) if isinstance(w, Weights) else w for k, w in given.items()}
        if clip is not None and nodes and makers[nodes[0].input[0]].op_type not in CLIPS:
            clips[name] = clip
    return Pair(plain, quantized, tuple(layers), quantizers, operands, clips)


def render(p: Pair, quantized: Iterable[tuple[str, str]], *, own: bool = False) -> onnx.ModelProto:
    """The network with the (layer, part) pairs in `quantized` as in the int8 file and all else in float. `own`: float
    weights are the int8 file's own, dequantized, for a file that was trained and so has no others."""
    import onnx
    from onnx import helper, numpy_helper

    keep = set(quantized)
    model = onnx.ModelProto()
    model.CopyFrom(p.quantized)
    constants = {i.name: numpy_helper.to_array(i) for i in p.plain.graph.initializer}
    added, plain, bypassed = [], {}, {}
    for layer in p.layers:
        if (layer.name, "weights") not in keep:
            plain |= {value: both[1 if own else 0] for value, both in p.operands.get(layer.name, {}).items()}
        if (layer.name, "values") not in keep:
            bypassed |= {q: p.clips.get(layer.name) for q in p.quantizers[layer.name]}
    nodes, sources = [], {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in plain:
            added.append(numpy_helper.from_array(np.ascontiguousarray(plain[node.output[0]]), node.output[0]))
        elif node.op_type == "QuantizeLinear" and node.output[0] in bypassed:
            continue
        elif node.op_type == "DequantizeLinear" and node.input[0] in bypassed:
            source = sources[node.input[0]]
            clip = bypassed[node.input[0]]
            if clip is None:
                nodes.append(helper.make_node("Identity", [source], [node.output[0]]))
            else:
                ends = [f"clip.{n}" if n else "" for n in clip.input[1:]]
                added += [numpy_helper.from_array(constants[n], f"clip.{n}") for n in clip.input[1:] if n]
                nodes.append(helper.make_node(clip.op_type, [source, *ends], [node.output[0]]))
        else:
            nodes.append(node)
    kept = [_copied(n) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    known = {i.name for i in model.graph.initializer}
    model.graph.initializer.extend({t.name: t for t in added if t.name not in known}.values())
    return model


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _skeleton(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The operators in the file's order, without lattices, clipping activations and what only moves values: an exporter
    leaves out other moves where lattices are in between."""
    return [n for n in model.graph.node if n.op_type not in (*CLIPS, *LATTICES, *MOVES)]


def _readers(model: onnx.ModelProto) -> dict[str, list]:
    found: dict[str, list] = {o.name: [None] for o in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _owned(model: onnx.ModelProto, makers: Mapping[str, onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """{output of the operator, or input, that makes a value: the QuantizeLinear nodes of its lattice}: one, and one
    more where it is moved."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        name = node.input[0]
        while name in makers and makers[name].op_type in (*MOVES, *CLIPS, *LATTICES):
            name = makers[name].input[0]
        found.setdefault(name, []).append(node)
    return found


def _operands(a: onnx.NodeProto, b: onnx.NodeProto, floats: Mapping, constants: Mapping, makers: Mapping) -> dict:
    """{dequantized operand of the int8 operator: Weights, or (float bias, the file's bias)}."""
    found = {}
    for ours, theirs in zip(a.input, b.input, strict=False):
        node = makers.get(theirs)
        if ours not in floats or node is None or node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        stored, scale = constants[node.input[0]], constants[node.input[1]]
        axis = attribute(node, "axis", 1) if scale.ndim else None
        zero = constants[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.float32(0)
        shape = [-1 if d == axis else 1 for d in range(stored.ndim)] if axis is not None else []
        real = (stored.astype(np.float32) - np.reshape(zero, shape if np.ndim(zero) else [])) * (
            scale.reshape(shape) if axis is not None else scale
        )
        if stored.dtype == np.int32:
            found[theirs] = (floats[ours], real.astype(np.float32))
        else:
            found[theirs] = Weights(stored, scale.ravel(), axis, floats[ours], real.astype(np.float32))
    return found
