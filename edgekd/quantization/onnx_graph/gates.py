"""Hard sigmoids that gate the value they are made of, as a hard swish does: x * max(0, min(1, alpha x + beta)). Below
-beta / alpha that is 0, and no range needs to hold what lies there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.qdq.graph import Graph, attribute

if TYPE_CHECKING:
    import onnx


STEPS = 128  # of 1, that widths are whole numbers of


@dataclass(frozen=True)
class Gate:
    """What reads a value: the `hard` sigmoid, and the `product` of both; `widths` [channels]: what the sigmoid's
    operand is multiplied by first, or ones."""

    hard: onnx.NodeProto
    product: onnx.NodeProto
    widths: np.ndarray

    @property
    def low(self) -> float:
        """The number below which a value gives 0, in its narrowest channel."""
        return float((ends(self.hard)[0] / self.widths).min())


def ends(hard: onnx.NodeProto) -> tuple[float, float]:
    """Where a hard sigmoid begins to be 0 and 1; no limits of one that is 0 or 1 at 0."""
    alpha, beta = attribute(hard, "alpha", 0.2), attribute(hard, "beta", 0.5)
    return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 and 0 <= beta <= 1 else (-math.inf, math.inf)


def widths(node: onnx.NodeProto, graph: Graph) -> np.ndarray | None:
    """Those that a product multiplies by what a hard sigmoid alone reads, where 8 bits hold them exactly; None of other
    nodes."""
    if node.op_type != "Mul" or node.input[1] not in graph.constants:
        return None
    found, reader = graph.constants[node.input[1]], graph.reader(node.output[0])
    if reader is None or reader.op_type != "HardSigmoid" or found.ndim != 4 or found.dtype != np.float32:
        return None
    steps = found * STEPS
    if not ((steps >= 1) & (steps <= STEPS)).all():
        return None
    return found if (np.frexp(found)[0] == 0.5).all() else None  # powers of two


def of(value: str, graph: Graph) -> Gate | None:
    """The gate of a value that nothing else reads."""
    readers = graph.readers.get(value, [])
    if len(readers) != 2 or any(r is None for r in readers):
        return None
    for first, product in (readers, readers[::-1]):
        factors = widths(first, graph)
        hard = first if factors is None or first.input[0] != value else graph.reader(first.output[0])
        if hard is None or hard.op_type != "HardSigmoid" or product.op_type != "Mul":
            continue
        if set(product.input) == {value, hard.output[0]} and graph.reader(hard.output[0]) is product:
            return Gate(hard, product, np.ones(1, np.float32) if factors is None else factors)
    return None


def alive(graph: Graph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """{value: its range, without what a hard sigmoid makes 0 or 1 of}: the network computes the same."""
    found = dict(ranges)
    for name, (low, high) in ranges.items():
        readers = graph.readers.get(name, [])
        gate = of(name, graph)
        if gate is not None:
            found[name] = max(low, gate.low), high
        elif len(readers) == 1 and readers[0] is not None and readers[0].op_type == "HardSigmoid":
            least, most = ends(readers[0])
            found[name] = max(low, least), min(high, most)
    return found
