"""Columns of samples that are not in memory: a mapped file, some rows of another column, another type of its values,
several columns one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekd.inputs import Column, unload

__all__ = ["Cast", "Chain", "Column", "Mapped", "Rows", "cast", "column", "joined", "picked"]

HELD = 2**26  # bytes of a split that is held in memory, whatever it is read from
RESIDENT = 2**25  # bytes of a mapped file that may stay in memory
AROUND = 2**16  # bytes that the system maps around one that is read


@dataclass(frozen=True, eq=False)
class Mapped(Column):
    """A memory-mapped array. What was read of it leaves the memory of the process again."""

    array: np.memmap = field(repr=False)
    read: list[int] = field(default_factory=lambda: [0], repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.array.dtype

    def rows(self, index: np.ndarray) -> np.ndarray:
        found = np.asarray(self.array[index])
        self.read[0] += max(found.nbytes, AROUND * len(index))
        # pages of a private map may hold changes, which the file does not have
        if self.read[0] > RESIDENT and self.array.mode != "c":
            unload(self.array)
            self.read[0] = 0
        return found


@dataclass(frozen=True, eq=False)
class Rows(Column):
    """The rows `index` of an array or column."""

    of: Any = field(repr=False)
    index: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.index), *self.of.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.of.dtype

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.of[self.index[index]]


@dataclass(frozen=True, eq=False)
class Cast(Column):
    """A column with another type, to which rows are converted as they are read."""

    of: Any = field(repr=False)
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.of.shape

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.of[index].astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Chain(Column):
    """The rows of several arrays or columns of one shape and type, one after another."""

    parts: Sequence[Any] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (sum(map(len, self.parts)), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return np.result_type(*(part.dtype for part in self.parts))

    def rows(self, index: np.ndarray) -> np.ndarray:
        found, start = np.empty((len(index), *self.shape[1:]), self.dtype), 0
        for part in self.parts:
            here = (index >= start) & (index < start + len(part))
            if here.any():
                found[here] = part[index[here] - start]
            start += len(part)
        return found


def column(values: Any) -> Any:
    """A memory-mapped array as a column; anything else as it is."""
    return Mapped(values) if isinstance(values, np.memmap) and values.ndim and not values.dtype.hasobject else values


def cast(values: Any, dtype: Any) -> Any:
    """An array or column with this type; the same one where it has it."""
    if isinstance(values, Column):
        return values if values.dtype == dtype else Cast(values, np.dtype(dtype))
    return values.astype(dtype, copy=False)


def picked(values: Any, index: np.ndarray) -> Any:
    """The rows `index`: a copy of a small array in memory, else a column that reads them from where they are."""
    return values[index] if not isinstance(values, Column) and values.nbytes <= HELD else Rows(values, index)


def joined(parts: Sequence[Any]) -> Any:
    """The rows of all parts: one array if all are small arrays in memory, else a column."""
    small = all(not isinstance(p, Column) for p in parts) and sum(p.nbytes for p in parts) <= HELD
    return np.concatenate(parts) if small else Chain(tuple(parts))
