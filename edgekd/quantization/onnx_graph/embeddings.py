"""Tables that an ONNX file looks rows up in, word embeddings above all: stored as int8 with a scale per column, told in
float after the look-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.onnx_graph.draft import Draft
from edgekd.quantization.onnx_graph.scales import widest
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph, attribute

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
    found, draft = _tables(graphs.of(model)), Draft(model.graph)
    stored = {name: _integers(name, array, draft) for name, array in found.items()}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in stored:
            draft.replace([node], _looked_up(node, stored[node.input[0]], draft))
    if found:
        draft.write(without=found)
    return tuple(Table(name, array.size, array.shape[1]) for name, array in found.items())


def _tables(graph: Graph) -> dict[str, np.ndarray]:
    """{initializer: array} of what is large enough and only looked up in."""
    inputs = {v.name for v in graph.model.graph.input}
    return {
        name: array
        for name, array in graph.constants.items()
        if array.ndim == 2 and array.size >= LEAST and array.dtype == np.float32
        if name not in inputs and graph.readers.get(name) and all(_looks_up(n, name) for n in graph.readers[name])
    }


def _looks_up(node: onnx.NodeProto | None, name: str) -> bool:
    return (
        node is not None
        and node.op_type == "Gather"
        and node.input[0] == name
        and node.input[1] != name
        and not attribute(node, "axis", 0)
    )


def _integers(name: str, table: np.ndarray, draft: Draft) -> list[str]:
    """The initializers of a table's integers, scales and zero points."""
    scale = widest(table, 1, HIGH)
    q = np.clip(np.round(table / scale), -HIGH, HIGH).astype(np.int8)
    parts = {"q": q, "s": scale, "z": np.zeros(len(scale), np.int8)}
    return [draft.store(f"{name}.{part}", array) for part, array in parts.items()]


def _looked_up(node: onnx.NodeProto, table: Sequence[str], draft: Draft) -> list[onnx.NodeProto]:
    """Rows are looked up in integers, and then dequantized."""
    from onnx import helper

    rows = draft.fresh(f"{node.output[0]}.rows")
    return [
        helper.make_node("Gather", [table[0], node.input[1]], [rows], axis=0, name=node.name),
        helper.make_node("DequantizeLinear", [rows, *table[1:]], list(node.output), axis=-1),
    ]
