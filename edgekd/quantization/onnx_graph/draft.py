"""Changes to an ONNX graph that are collected and then written at once, so that a thousand of them take no longer than
one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.onnx_files import subgraphs

if TYPE_CHECKING:
    import onnx


class Draft:
    """A graph that is to be changed in place."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.taken: set[str] = set()
        for inner in subgraphs.graphs(graph):
            self.taken |= {i.name for i in (*inner.initializer, *inner.input)}
            self.taken |= {name for node in inner.node for name in (*node.input, *node.output)}
        self.made: dict[tuple[str, ...], Sequence[onnx.NodeProto]] = {}

    def fresh(self, wanted: str) -> str:
        """A name that nothing in the graph has yet."""
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    def store(self, wanted: str, array: np.ndarray) -> str:
        """The name of a new initializer."""
        from onnx import numpy_helper

        name = self.fresh(wanted)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def rename(self, name: str, new: str) -> None:
        """Has whatever reads a value read another one, in subgraphs too, at once."""
        for inner in subgraphs.graphs(self.graph):
            for node in inner.node:
                if name in node.input:
                    node.input[:] = [new if n == name else n for n in node.input]
            for value in inner.output if inner is not self.graph else ():
                value.name = new if value.name == name else value.name

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Puts `new` where the last of the `old` nodes is."""
        self.made |= {tuple(n.output): () for n in old} | {tuple(old[-1].output): new}

    def write(self, without: Collection[str] = ()) -> None:
        """Replaces the nodes, and drops the initializers in `without`."""
        nodes = [copied(n) for node in self.graph.node for n in self.made.get(tuple(node.output), (node,))]
        tensors = [copied(i) for i in self.graph.initializer if i.name not in without]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(tensors)


def copied(message: Any) -> Any:
    """A message of its own, out of a list that is emptied."""
    made = type(message)()
    made.CopyFrom(message)
    return made
