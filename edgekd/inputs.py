"""What a model takes or gives: one array, or {name: array}; tensors alike. Either is handled in one way here. An array
of samples that is not in memory is a `Column`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import system

MAPPED = 2**23  # bytes of an array that is not held in memory
CHUNK = 2**23  # bytes that are read at once where all rows are gone through


class Column:
    """The values [n, ...] of one input, which are not in memory: rows are read when they are asked for, and not kept.
    `column[i]`, `column[a:b]` and `column[numbers]` are new arrays, as of an array; a subclass has `shape`, `dtype` and
    `rows`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    decoded: bool = False  # whether reading takes so long that other processes should do it

    def stamp(self) -> Any:
        """A JSON value that changes whenever the samples may have changed; None where only their values tell."""
        return None

    def rows(self, index: np.ndarray) -> np.ndarray:
        """[len(index), ...]: the samples at these positions, none of which is negative."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            return self.rows(np.arange(*index.indices(len(self))))
        numbers = np.asarray(index)
        if numbers.dtype == bool and numbers.shape == (len(self),):
            numbers = np.flatnonzero(numbers)
        if numbers.dtype.kind not in "iu":
            raise IndexError(f"{index!r} is not in a column of {len(self)} samples")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"{index!r} is not in a column of {len(self)} samples")
        return self.rows(numbers) if numbers.ndim else self.rows(numbers[None])[0]

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(f"{len(self)} samples that are not in memory are read in parts: column[a:b]")


def chunks(values: Any, size: int = 0) -> Iterator[np.ndarray]:
    """The rows of an array or column [n, ...] in order, `size` (CHUNK) bytes at a time, one row at least."""
    step = max(1, (size or CHUNK) // max(1, math.prod(values.shape[1:]) * values.dtype.itemsize))
    for start in range(0, len(values), step):
        yield values[start : start + step]


def save(path: Path, values: Any) -> None:
    """Writes an array or column as .npy."""
    if not isinstance(values, Column):
        np.save(path, values, allow_pickle=False)
        return
    header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks(values):
            file.write(np.ascontiguousarray(chunk).data)


def named(values: Any, name: str = "") -> dict[str, Any]:
    """{name: array}; one array is called `name`."""
    return dict(values) if isinstance(values, Mapping) else {name: values}


def bare(values: Mapping[str, Any]) -> Any:
    """The only array, or {name: array} where there is another number of them."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def each(values: Any, change: Callable[[Any], Any]) -> Any:
    """The same form with every array changed."""
    return {name: change(v) for name, v in values.items()} if isinstance(values, Mapping) else change(values)


def positional(values: Any) -> tuple[Any, ...]:
    """The arrays in their order, as a captured graph takes them."""
    return tuple(values.values()) if isinstance(values, Mapping) else (values,)


def length(values: Any) -> int:
    """How many samples there are."""
    return len(positional(values)[0])


def sample(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{input: shape [1, ...] of one of its samples [n, ...]}"""
    return {name: (1, *array.shape[1:]) for name, array in values.items()}


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array for samples: from MAPPED bytes on in a file without a name, where the disk has room for it."""
    size = math.prod(shape) * dtype.itemsize
    if size < MAPPED:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="edgekd-") as file:
        return np.memmap(file, dtype, "r+", 0, shape) if system.reserve(file.fileno(), size) else np.empty(shape, dtype)


def unload(array: np.ndarray) -> None:
    """Takes an array that lies in a file out of memory, until it is read again."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        system.unload(mapped)


class Block:
    """Keeps arrays of one shape and type, at most `count`, where `room` puts as many; others as they are."""

    def __init__(self, count: int):
        self.count, self.held = count, 0
        self.block: np.ndarray | None = None

    def keep(self, array: np.ndarray) -> np.ndarray:
        """The same array, where it is kept."""
        if self.block is None:
            self.block = room((self.count, *array.shape), array.dtype)
        if array.shape != self.block.shape[1:] or array.dtype != self.block.dtype or array.dtype.hasobject:
            return array
        place: np.ndarray = self.block[self.held, ...]  # of a scalar an array, too
        place[...] = array
        self.held += 1
        unload(self.block)
        return place

    def stacked(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """[n, ...] of arrays of one shape."""
        for part in parts:
            self.keep(part)
            unload(part)
        assert self.block is not None
        return self.block
