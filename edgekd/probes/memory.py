"""Bytes of activations that a file needs at batch 1, planned as a runtime with one arena does: liveness, then greedy by
size.

Pisarchyk & Lee, arXiv 2001.03288, algorithm 3 (greedy by size for offsets). A value lives from the operator that makes
it to the last that reads it; graph inputs live from the start, graph outputs to the end. What takes no memory of its
own is merged with what it views or finishes in place: reshapes, activations that alone read their input, and the
dequantize/quantize pairs around an operator that an integer runtime computes as one.

onnxruntime 1.31.1 plans the same block for float networks (`tests/test_memory_oracle.py`), and less where it writes a
convolution over the operand that it adds. What its kernels work in is not counted: an int8 convolution unfolds its
input, which may take more than all activations.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import subgraphs
from edgekd.onnx_files.known import Known
from edgekd.probes import Subject, figure, static
from edgekd.probes._macs import batch, once, rows, unshaped
from edgekd.records import NOT_COUNTED, Measurement, Quantity

if TYPE_CHECKING:
    import onnx

MEASURES = (
    Quantity(
        "activation_bytes",
        "B",
        "planned memory of activations at batch 1",
        better="lower",
        origin="counted",
        heading="activations B",
        column=220,
    ),
)
ALIGN = 16  # bytes; what TFLM and CMSIS-NN ask of buffers
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
IN_PLACE = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"})


@dataclass(frozen=True)
class Buffer:
    """`size` bytes, in use from operator `first` to operator `last`, both included."""

    name: str
    size: int
    first: int
    last: int


def measure(subject: Subject) -> Iterator[Measurement]:
    """activation_bytes of a file: the arena that greedy-by-size plans; `note` holds the lower bound that no plan beats,
    and says that subgraphs are not planned.
    Nothing where a shape stays open: the note of file_bytes says so."""
    if subject.file is None or subject.model is None:
        return
    if unshaped(subject.model, subject.known):
        return
    found = planned(subject.model, subject.known)
    size, inside = arena(found, plan(found)), {n.op_type for n in subject.model.graph.node if any(subgraphs.nested(n))}
    left = f"{NOT_COUNTED}what is inside of {', '.join(sorted(inside))}" if inside else ""
    note = "; ".join(filter(None, (left, f"live set {live(found)} B", batch(rows(subject.model, subject.known), size))))
    yield figure(MEASURES[0], size, note=note)


def planned(model: onnx.ModelProto, values: Known) -> list[Buffer]:
    """The buffers of a graph, all of whose values have a known shape (`unshaped` says none)."""
    graph = model.graph
    shapes, types = values.shapes, {n: k.tensor_type.elem_type for n, k in values.types.items()}
    fixed = once(graph)
    nodes = [n for n in graph.node if not fixed.issuperset(filter(None, n.output))]
    inputs, outputs = [v.name for v in graph.input if v.name not in fixed], {v.name for v in graph.output}
    first = dict.fromkeys(inputs, 0)
    last = dict(first)
    for step, node in enumerate(nodes):
        for name in filter(None, node.output):
            first[name], last[name] = step, len(nodes) - 1 if name in outputs else step
        for name in (*node.input, *subgraphs.read(node)):
            if name in last:
                last[name] = max(last[name], step)
    groups = defaultdict(list)
    merged = _merge(nodes, fixed, set(inputs), outputs)
    for name in first:
        groups[merged.get(name, name)].append(name)
    found = []
    for name, members in groups.items():
        # a group is as wide as its narrowest type: the wider ones are what an integer operator never writes out
        width = min((kind.itemsize for m in members if (kind := static.dtype(types.get(m, 0))) is not None), default=4)
        size = max(math.prod(shapes[m]) for m in members) * width
        found.append(Buffer(name, size, min(first[m] for m in members), max(last[m] for m in members)))
    return [b for b in found if b.size]


def plan(found: Sequence[Buffer]) -> dict[str, int]:
    """{buffer: offset}: the largest first, each into the smallest gap that holds it between those that live at the same
    time."""
    ordered, offsets = sorted(found, key=lambda b: (-b.size, b.first, b.name)), {}
    first, last = (np.array([getattr(b, name) for b in ordered]) for name in ("first", "last"))
    for count, buffer in enumerate(ordered):
        size, end, best = _up(buffer.size), 0, None
        together = np.flatnonzero((first[:count] <= buffer.last) & (buffer.first <= last[:count]))
        for offset, taken in sorted((offsets[ordered[i].name], ordered[i].size) for i in together):
            gap = offset - end
            if gap >= size and (best is None or gap < best[0]):
                best = gap, end
            end = max(end, offset + _up(taken))
        offsets[buffer.name] = best[1] if best else end
    return offsets


def arena(found: Sequence[Buffer], offsets: Mapping[str, int]) -> int:
    """Bytes from the start of the arena to the end of the last buffer."""
    return max((offsets[b.name] + _up(b.size) for b in found), default=0)


def live(found: Sequence[Buffer]) -> int:
    """The most bytes in use at one operator: no plan needs less."""
    changes: Counter[int] = Counter()
    for b in found:
        changes[b.first] += _up(b.size)
        changes[b.last + 1] -= _up(b.size)
    return max(itertools.accumulate(changes[step] for step in sorted(changes)), default=0)


def _up(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _merge(nodes: Sequence[onnx.NodeProto], fixed: set[str], inputs: set[str], outputs: set[str]) -> dict[str, str]:
    """{value: the value whose memory it uses}."""
    maker = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)

    @cache
    def becomes_integer(name: str) -> bool:
        """Whether a value is quantized by every reader, at once or behind views and activations that it is finished
        with."""
        passing = {r.output[0] for r in readers[name] if r.op_type in IN_PLACE | VIEWS}
        direct = all(r.op_type == "QuantizeLinear" or r.output[0] in passing for r in readers[name])
        return name not in outputs and bool(readers[name]) and direct and all(becomes_integer(p) for p in passing)

    @cache
    def was_integer(name: str) -> bool:
        """Whether a value comes from a dequantize, at once or behind views."""
        node = maker.get(name)
        return node is not None and (
            node.op_type == "DequantizeLinear" or (node.op_type in VIEWS and was_integer(node.input[0]))
        )

    def computed_in_integers(node: onnx.NodeProto) -> bool:
        data = [name for name in node.input if name and name not in fixed]
        ends = node.op_type not in ("QuantizeLinear", "DequantizeLinear") and all(
            becomes_integer(name) for name in node.output if name
        )
        return ends and bool(data) and all(was_integer(name) for name in data)

    @cache
    def read_as_integers(name: str) -> bool:
        """Whether every reader of a dequantized value takes its integers instead."""
        views = [r.op_type in VIEWS and read_as_integers(r.output[0]) for r in readers[name]]
        whole = all(
            view or r.op_type == "QuantizeLinear" or computed_in_integers(r)
            for r, view in zip(readers[name], views, strict=True)
        )
        return name not in outputs and bool(readers[name]) and whole

    def finishes(name: str) -> bool:
        """Whether a value is the result of an integer operator, seen through the activations that finish it."""
        node = maker.get(name)
        while node is not None and node.op_type in IN_PLACE | VIEWS and not computed_in_integers(node):
            node = maker.get(node.input[0])
        return node is not None and computed_in_integers(node)

    def shares(node: onnx.NodeProto) -> bool:
        source = node.input[0]
        if node.op_type in IN_PLACE:
            return source not in inputs | outputs and len(readers[source]) == 1
        if node.op_type == "DequantizeLinear":
            return read_as_integers(node.output[0])
        return node.op_type in VIEWS or (
            node.op_type == "QuantizeLinear" and becomes_integer(source) and finishes(source)
        )

    for node in nodes:  # in an order that keeps each answer one call away: a chain may be longer than a stack is deep
        for name in node.output:
            was_integer(name)
    for node in reversed(nodes):
        for name in node.output:
            becomes_integer(name)
    for node in reversed(nodes):
        for name in node.output:
            read_as_integers(name)
    leader: dict[str, str] = {}
    for node in nodes:
        if node.input and node.input[0] not in fixed and shares(node):
            leader[node.output[0]] = leader.get(node.input[0], node.input[0])
    return leader
