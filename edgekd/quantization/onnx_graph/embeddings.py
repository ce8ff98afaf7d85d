"""Tables that an ONNX file looks rows up in, word embeddings above all: stored as int8 with a scale per column, told in
float after the look-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.onnx_graph.render import widest
from edgekd.quantization.qdq.operands import attribute

if TYPE_CHECKING:
    import onnx

LEAST, HIGH = 4096, 127  # elements below which a table isn't worth its scales


@dataclass(frozen=True)
class Table:
    """One that is stored as integers: its name in the float file, its elements, its columns."""

    name: str
    elements: int
    columns: int


def shrink(model: onnx.ModelProto) -> tuple[Table, ...]:
    """Stores the float tables [rows, columns] of `model` as integers, in place, that nothing reads but look-ups of rows
    (Gather along axis 0).

    What is looked up is scale * q, float32: within half a step of the column, which is its largest value over 127."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    readers: dict[str, list] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    taken = {n for node in graph.node for n in (*node.input, *node.output)} | {i.name for i in graph.initializer}
    shown = {v.name for v in (*graph.input, *graph.output)}
    found = {}
    for tensor in graph.initializer:
        looked_up = all(
            n.op_type == "Gather" and place == 0 and not attribute(n, "axis", 0)
            for n, place in readers.get(tensor.name, ())
        )
        large = len(tensor.dims) == 2 and int(np.prod(tensor.dims)) >= LEAST and tensor.data_type == TensorProto.FLOAT
        if large and looked_up and readers.get(tensor.name) and tensor.name not in shown:
            found[tensor.name] = numpy_helper.to_array(tensor)
    if not found:
        return ()

    def fresh(wanted: str) -> str:
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        return wanted

    kept = [i for i in graph.initializer if i.name not in found]
    stored = {}
    for name, array in found.items():
        scale = widest(array, 1, HIGH)
        q = np.clip(np.round(array / scale), -HIGH, HIGH).astype(np.int8)
        parts = {fresh(f"{name}.q"): q, fresh(f"{name}.s"): scale, fresh(f"{name}.z"): np.zeros(len(scale), np.int8)}
        stored[name] = list(parts)
        kept += [numpy_helper.from_array(a, n) for n, a in parts.items()]
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in stored:
            nodes.append(node)
            continue
        table, scale, zero = stored[node.input[0]]
        rows = fresh(f"{node.output[0]}.rows")
        nodes.append(helper.make_node("Gather", [table, node.input[1]], [rows], axis=0, name=node.name))
        nodes.append(helper.make_node("DequantizeLinear", [rows, scale, zero], list(node.output), axis=-1))
    nodes, kept = [*map(_copy, nodes)], [*map(_copy, kept)]  # out of the lists that are emptied
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return tuple(Table(name, array.size, array.shape[1]) for name, array in found.items())


def _copy(message):
    made = type(message)()
    made.CopyFrom(message)
    return made
