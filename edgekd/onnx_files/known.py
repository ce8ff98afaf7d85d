"""What is known of the values of an ONNX graph before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
PLAIN = ("", "ai.onnx")  # the domain of onnx's own operators


@dataclass
class Known:
    """What is known of the values of a graph before it runs.

    types     {value: its TypeProto}
    numbers   {value: array} of small values that do not depend on what the inputs hold
    inside    {(position of a node, attribute): what is known inside its subgraph}
    problem   what contradicts itself, or "" """

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    inside: dict[tuple[int, str], Known] = field(default_factory=dict)
    problem: str = ""

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor; None if a dimension is not known."""
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        dims = kind.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: shape for name in self.types if (shape := self.shape(name)) is not None}
