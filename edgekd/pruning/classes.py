"""Classes of channels that go together, from what a trace notes, and why the others can't go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekd.pruning.planes import NONE, Notes

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = "they meet values that are no channels of a layer"


class Classes:
    """`of` [labels]: the class of each label; `pinned` {class: why it can't go}."""

    def __init__(self, notes: Notes, pins: Sequence[tuple[Sequence[int], str]], pairs: Sequence[Sequence[int]]):
        self.notes = notes
        self.edges = [(a.reshape(-1).numpy(), b.reshape(-1).numpy()) for a, b in notes.pairs]
        for a, b in pairs:
            self._join(np.asarray(a), np.asarray(b))
        self.of = np.arange(notes.labels)
        self.unequal: list[tuple[np.ndarray, str]] = []
        self._settle()
        self.pinned = self._pins(pins)

    def at(self, plane: Tensor) -> np.ndarray:
        """The classes of a plane, of its shape."""
        return self.of[plane.numpy()]

    def _join(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        self.edges.append((a.reshape(-1), b.reshape(-1)))

    def _components(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if self.edges:
            rows, columns = (np.concatenate(side) for side in zip(*self.edges, strict=True))
            graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (self.notes.labels,) * 2)
            self.of = connected_components(graph, directed=False)[1]
            kept = np.full(self.of.max() + 1, -1)  # a class is named by its first label
            first = np.unique(self.of, return_index=True)[1]
            kept[self.of[first]] = first
            self.of = kept[self.of]

    def _settle(self) -> None:
        """Joins classes until all parts lose equally many and all planes stay rectangles."""
        while True:
            self._components()
            if not (self._levelled() or self._parted() or self._squared()):
                return

    def _levelled(self) -> bool:
        count = len(self.edges)
        for plane, axis in self.notes.level:
            found = self.at(plane)
            if varied(found, axis):
                self._join(found, found.take([0], axis))
        return len(self.edges) > count

    def _parted(self) -> bool:
        count = len(self.edges)
        self.unequal = []
        for plane, axis, sizes, place in self.notes.parts:
            found = self.at(plane)
            if not varied(found, axis):
                continue
            parts = np.split(found, np.cumsum(sizes)[:-1], axis)
            if len(np.unique(sizes)) > 1:
                why = f"`{place}` cuts them into parts of different sizes"
                self.unequal.append((found, why))
            elif any((np.sort(p, axis) != np.sort(parts[0], axis)).any() for p in parts):
                for part in parts[1:]:
                    self._join(part, parts[0])
        return len(self.edges) > count

    def _squared(self) -> bool:
        count = len(self.edges)
        for plane in self.notes.grids:
            found = self.at(plane)
            axes = [a for a in range(found.ndim) if varied(found, a)]
            if len(axes) > 1:
                axis = min(axes, key=lambda a: found.shape[a])
                self._join(found, found.take([0], axis))
        return len(self.edges) > count

    def _pins(self, pins: Sequence[tuple[Sequence[int], str]]) -> dict[int, str]:
        found: dict[int, str] = {}

        def pin(classes: np.ndarray, why: str) -> None:
            for each in np.unique(classes).tolist():
                found.setdefault(each, why)

        for labels, why in (*pins, *((p.numpy().reshape(-1), why) for p, why in self.notes.pins)):
            pin(self.of[np.asarray(labels, np.int64)], why)
        for classes, why in self.unequal:
            pin(classes, why)
        for plane, axis, why in self.notes.fixed:
            classes = self.at(plane)
            if varied(classes, axis):
                pin(classes, why)
        for mean, plane, why in self.notes.means:
            classes = self.at(mean)
            if plane is None or set(np.unique(classes)) != set(np.unique(self.at(plane))):
                pin(classes, why)
        pin(self.of[[NONE]], OUTSIDE)
        return found


def varied(classes: np.ndarray, axis: int) -> bool:
    return classes.shape[axis] > 1 and bool((classes != classes.take([0], axis)).any())
