"""Samples of different length in one array, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.data.column import picked
from edgekd.inputs import Column


@dataclass(frozen=True, eq=False)
class Ragged(Column):
    """`flat` [sum of lengths, ...] (a memory map will do), `offsets` [n + 1] int64: where each sample begins, and the
    end. `self[5]` is a sample [T, ...]; a slice or numbers give an array [b, longest of them, ...], filled with
    zeros."""

    flat: np.ndarray
    offsets: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.flat.dtype

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64"""
        return np.diff(self.offsets)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """That of all samples, filled."""
        return (len(self.offsets) - 1, int(self.lengths.max(initial=0)), *self.flat.shape[1:])

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.filled(index)

    def filled(self, rows: Any = slice(None), fill: float = 0) -> np.ndarray:
        """[b, longest, ...] of these samples."""
        numbers = np.arange(len(self))[rows]
        lengths = self.lengths[numbers]
        made = np.full((len(numbers), int(lengths.max(initial=0)), *self.flat.shape[1:]), fill, self.dtype)
        for row, number, length in zip(made, numbers, lengths, strict=True):
            row[:length] = self.flat[self.offsets[number] : self.offsets[number] + length]
        return made

    def select(self, rows: Any) -> Ragged:
        """These samples."""
        return of([self[int(i)] for i in np.arange(len(self))[rows]])

    def typed(self, dtype: Any) -> Ragged:
        return self if self.dtype == dtype else Ragged(self.flat.astype(dtype), self.offsets)


def of(samples: Sequence[Any]) -> Ragged:
    """Of arrays [T_i, ...], equal but for their lengths. Raises ValueError where they are not."""
    arrays = [np.asarray(sample) for sample in samples]
    if not arrays or any(not a.ndim for a in arrays) or len({a.shape[1:] for a in arrays}) > 1:
        raise ValueError("samples may differ in their first axis alone")
    return Ragged(np.concatenate(arrays), np.cumsum([0, *map(len, arrays)], dtype=np.int64))


def pick(values: Any, rows: Any) -> Any:
    """The rows of an array or column, or of samples of different length."""
    return values.select(rows) if isinstance(values, Ragged) else picked(values, rows)


def parts(values: Any) -> Any:
    """Plain arrays of a column: itself, or its two."""
    return {"flat": values.flat, "offsets": values.offsets} if isinstance(values, Ragged) else values
