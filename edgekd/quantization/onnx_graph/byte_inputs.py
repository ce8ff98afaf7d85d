"""Inputs of bytes: an int8 file without the QuantizeLinear nodes that its inputs come to. What stands between an input
and such a node only moves values, and moves bytes as it does floats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.onnx_files import subgraphs
from edgekd.quantization.onnx_graph.draft import Draft
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph, attribute

if TYPE_CHECKING:
    import onnx

PLACE = "--input uint8"
# operators that bytes go through as floats do, on the way to where the input is quantized
PASSED = ("Transpose", "Split", "Pad", "Concat", "Identity", "Reshape", "Flatten", "Slice", "Squeeze", "Unsqueeze")
PASSED += ("SpaceToDepth", "DepthToSpace")  # the former is what onnxruntime makes of slices that are put together
HINT = "--fold-preprocess has the file take pixels; or keep no layer in float that reads it"


@dataclass(frozen=True)
class Bytes:
    """An input of bytes: what it stands for is scale * (byte - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Way:
    """Where an input goes: the nodes `between` that only pass it on, the QuantizeLinear nodes (`ends`) that it comes
    to, the `values` of it, and why it can't be bytes (`wrong`), if it can't."""

    between: tuple[onnx.NodeProto, ...]
    ends: tuple[onnx.NodeProto, ...]
    values: frozenset[str]
    wrong: str = ""


def changed(model: onnx.ModelProto, draft: Draft, names: Sequence[str], pixels: Mapping[str, int]) -> dict[str, Bytes]:
    """Has the inputs of these names take bytes, in place; those that nothing reads stay as they are. `pixels` {image
    that takes pixels less a zero point: that one}: it takes pixels, as bytes even where float layers read it. Raises
    UsageError with every input that can't."""
    from onnx import TensorProto

    graph = graphs.of(model)
    ways = {name: way for name, way in _ways(graph, names).items() if way.ends or way.wrong}
    bad = [name for name, way in ways.items() if way.wrong and name not in pixels]
    if bad or not ways:
        nothing = [] if bad else [Problem(PLACE, "no layer reads an input of floats")]
        raise UsageError(*nothing, *(Problem(PLACE, f"{name} {ways[name].wrong}", _hint(ways[name])) for name in bad))
    whole = {name: way for name, way in ways.items() if not way.wrong}
    found = {name: _of(graph, way) for name, way in whole.items()}
    _unquantized(graph, draft, whole, found)
    for name in ways.keys() - whole.keys():
        less(draft, name, _cast(draft, name), pixels[name])
        found[name] = Bytes(1.0, pixels[name])
    for value in model.graph.input:
        if value.name in found:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    return {name: found[name] for name in ways}


def less(draft: Draft, name: str, pixels: str, zero_point: int) -> None:
    """Has what reads `pixels` read them less a zero point, in place; `name`: of the input."""
    from onnx import helper

    new = draft.fresh(f"{name}.less")
    draft.rename(pixels, new)
    at = draft.store(f"{name}.middle", np.array(zero_point, np.float32))
    maker = next((i for i, n in enumerate(draft.graph.node) if pixels in n.output), -1)
    draft.graph.node.insert(maker + 1, helper.make_node("Sub", [pixels, at], [new]))


def _cast(draft: Draft, name: str) -> str:
    """Has bytes become floats, in place; the name of these."""
    from onnx import TensorProto, helper

    new = draft.fresh(f"{name}.float")
    draft.rename(name, new)
    draft.graph.node.insert(0, helper.make_node("Cast", [name], [new], to=TensorProto.FLOAT))
    return new


def _ways(graph: Graph, names: Sequence[str]) -> dict[str, Way]:
    """{input: its way}. Where a Concat puts several together, all of them are bytes or none is."""
    found = {name: _way(graph, name) for name in names}
    while True:
        known = graph.constants.keys() | {v for way in found.values() if not way.wrong for v in way.values}
        beside = {
            name: [node for node in way.between if node.op_type == "Concat" and not known >= set(node.input)]
            for name, way in found.items()
            if not way.wrong
        }
        if not any(beside.values()):
            return found
        for name, nodes in beside.items():
            if nodes:
                text = f"is put together with values that are no bytes by {graphs.title(nodes[0])}"
                found[name] = replace(found[name], wrong=text)


def _way(graph: Graph, name: str) -> Way:
    outputs = {o.name for o in graph.model.graph.output}
    between: list[onnx.NodeProto] = []
    ends: list[onnx.NodeProto] = []
    wrong: list[str] = []
    waiting, seen, values = [name], set(), {name}
    while waiting:
        value = waiting.pop()
        for node in graph.readers.get(value, ()):
            if node is None:
                wrong.append("is an output of the file too" if value in outputs else "is read in a subgraph, in float")
            elif node.op_type == "QuantizeLinear" and value == node.input[0] and node.output[0] not in outputs:
                ends += [] if id(node) in seen else [node]
            elif not _passes(node, value, graph):
                wrong.append(f"is read by {graphs.title(node)} in float")
            elif id(node) not in seen:
                between.append(node)
                made = [n for n in node.output if n]
                waiting += made
                values |= set(made)
            seen.add(id(node))
    wrong += list(_unlike(graph, ends))
    return Way(tuple(between), tuple(ends), frozenset(values), next(iter(wrong), ""))


def _hint(way: Way) -> str:
    return HINT if way.wrong.endswith("in float") else ""


def _passes(node: onnx.NodeProto, value: str, graph: Graph) -> bool:
    """Whether a node moves bytes as it does floats: a value that it only moves, and no number that is computed."""
    if node.op_type not in PASSED or (node.op_type != "Concat" and value in node.input[1:]):
        return False
    fill = node.input[2] if node.op_type == "Pad" and len(node.input) > 2 else ""
    return not fill or fill in graph.constants


def _unlike(graph: Graph, ends: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """Why these nodes give no bytes of one scale and zero point."""
    known = [graph.parameters(node) for node in ends]
    if any(p is None or p.scale.size != 1 or p.zero_point.dtype != np.uint8 for p in known):
        yield "is not quantized to unsigned bytes of one scale"
    elif len({(float(p.scale[0]), int(p.zero_point[0])) for p in known if p is not None}) > 1:
        yield "is quantized in several ways"


def _of(graph: Graph, way: Way) -> Bytes:
    known = graph.parameters(way.ends[0])
    assert known is not None  # else the way is wrong
    return Bytes(float(known.scale[0]), int(known.zero_point[0]))


def _unquantized(graph: Graph, draft: Draft, ways: Mapping[str, Way], found: Mapping[str, Bytes]) -> None:
    """Drops the QuantizeLinear nodes behind inputs of bytes; numbers that inputs are padded and put together with
    become bytes."""
    values = frozenset().union(*(way.values for way in ways.values()))
    passed = {id(node): (node, found[name]) for name, way in ways.items() for node in way.between}
    for node, one in passed.values():
        if node.op_type == "Concat":
            node.input[:] = [n if n in values else _byte(graph.constants[n], n, draft, one) for n in node.input]
        elif node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"constant":
            fill = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.float32)
            node.input[:] = [*node.input[:2], _byte(fill.reshape(()), node.output[0], draft, one), *node.input[3:]]
        elif node.op_type == "Pad" and len(node.input) > 2:
            node.input[2] = ""  # floats that nothing is filled with
    ends = {id(node): node for way in ways.values() for node in way.ends}.values()
    for node in ends:
        draft.rename(node.output[0], node.input[0])
        draft.graph.node.remove(node)
    for value in [v for v in draft.graph.value_info if v.name in values]:
        draft.graph.value_info.remove(value)  # it says that they are floats
    read = {n for node in draft.graph.node for n in (*node.input, *subgraphs.read(node))}
    read |= {o.name for o in draft.graph.output}
    for tensor in [i for i in draft.graph.initializer if i.name not in read]:
        draft.graph.initializer.remove(tensor)


def _byte(number: np.ndarray, name: str, draft: Draft, one: Bytes) -> str:
    """The name of a stored number, quantized as QuantizeLinear does it."""
    steps = np.rint(number.astype(np.float32) / np.float32(one.scale)) + one.zero_point
    return draft.store(f"{name}.byte", np.clip(steps, 0, 255).astype(np.uint8))
