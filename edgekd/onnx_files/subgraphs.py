"""The graphs inside of a graph: the branches of an If, the bodies of a Loop and a Scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def direct(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node."""
    for a in node.attribute:
        yield from [a.g] if a.HasField("g") else a.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those inside of it at any depth."""
    yield graph
    for node in graph.node:
        for inner in direct(node):
            yield from graphs(inner)


def nested(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes in the subgraphs of a node, at any depth."""
    for graph in direct(node):
        for inner in graphs(graph):
            yield from inner.node


def read(node: onnx.NodeProto) -> Iterator[str]:
    """The names of values that the subgraphs of a node read or give, those of the graph around it among them."""
    for graph in direct(node):
        for inner in graphs(graph):
            yield from (o.name for o in inner.output)
            for one in inner.node:
                yield from filter(None, one.input)
