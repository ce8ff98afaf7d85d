"""Columns of samples that are not in memory: a mapped file, some rows of another column, another type of its values,
several columns one after another."""

from __future__ import annotations

import functools
import hashlib
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import system
from edgekd.inputs import Column, unload

HELD = 2**26  # bytes of a split that is held in memory
SETTLED = 2 * 10**9  # ns after which another change of a file shows in its time, on every file system
RESIDENT = 2**23  # bytes of a mapped file that may stay in memory
AROUND = 2**16  # bytes that the system maps around one that is read, at least


@dataclass(frozen=True, eq=False)
class Mapped(Column):
    """A memory-mapped array. Its file is read where it is known: what is read through a map counts as memory of the
    process, in pages of up to some megabytes."""

    array: np.memmap = field(repr=False)
    read: list[int] = field(default_factory=lambda: [0], repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.array.dtype

    @functools.cached_property
    def place(self) -> tuple[Path, int, int] | None:
        """The file, its inode, and the byte at which the array begins in it; None where these are not known, or the
        map may hold what the file does not."""
        base: Any = self.array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if self.array.mode not in ("r", "r+", "w+") or not self.array.filename or not self.array.flags.c_contiguous:
            return None
        address, begin = (a.__array_interface__["data"][0] for a in (self.array, base))
        file = Path(self.array.filename)
        try:
            inode = file.stat().st_ino
        except OSError:
            return None
        if system.mapped_inode(begin) not in (None, inode):  # another file took its name
            return None
        return file, inode, address - begin + base.offset

    def stamp(self) -> Any:
        # a write through a map shows in the file's time at the first change of a page only
        if self.array.mode != "r" or self.place is None:
            return None
        file, inode, start = self.place
        state = stamp([file]) if file.is_file() and file.stat().st_ino == inode else None
        return None if state is None else [state, start, list(self.shape), self.dtype.str]

    @functools.cached_property
    def opened(self) -> int | None:
        """A descriptor of the file, which is closed with this column; None where the map is read."""
        if self.place is None or not hasattr(os, "preadv"):
            return None
        try:
            descriptor = os.open(self.place[0], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return None
        weakref.finalize(self, os.close, descriptor)
        return descriptor if os.fstat(descriptor).st_ino == self.place[1] else None

    def rows(self, index: np.ndarray) -> np.ndarray:
        if self.opened is not None and self.place is not None:
            return self._from_file(self.opened, self.place[2], index)
        found = np.asarray(self.array[index])
        self.read[0] += max(found.nbytes, AROUND * len(index))
        # pages of a private map may hold changes, which the file does not have
        if self.read[0] > RESIDENT and self.array.mode != "c":
            unload(self.array)
            self.read[0] = 0
        return found

    def _from_file(self, descriptor: int, start: int, index: np.ndarray) -> np.ndarray:
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        size = found.nbytes // max(1, len(index))
        if not size:
            return found
        room = memoryview(found.reshape(-1).view(np.uint8))
        ends = [*(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]  # of rows that follow one another
        for first, last in zip([0, *ends], ends, strict=False):
            part, at = room[first * size : last * size], start + int(index[first]) * size
            while part:
                count = os.preadv(descriptor, [part], at)
                if not count:
                    raise OSError(f"{self.array.filename} has become shorter: byte {at} is not there")
                part, at = part[count:], at + count
        return found


@dataclass(frozen=True, eq=False)
class Over(Column):
    """Another array or column, changed as it is read. `told`: what tells the change."""

    of: Any = field(repr=False)

    @property
    def decoded(self) -> bool:  # type: ignore[override]
        return getattr(self.of, "decoded", False)

    def stamp(self) -> Any:
        known = stamp_of(self.of)
        return None if known is None else [known, self.told()]

    def told(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Rows(Over):
    """The rows `index` of an array or column."""

    index: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.index), *self.of.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.of.dtype

    def told(self) -> str:
        return hashlib.sha256(self.index.astype(np.int64).tobytes()).hexdigest()

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.of[self.index[index]]


@dataclass(frozen=True, eq=False)
class Cast(Over):
    """A column with another type, to which rows are converted as they are read."""

    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.of.shape

    def told(self) -> str:
        return self.dtype.str

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


def held(size: int) -> bool:
    """Whether a split of so many bytes is held in memory, whatever it is read from: to read it again costs more."""
    return size <= HELD


def stamp_of(values: Any) -> Any:
    return values.stamp() if isinstance(values, Column) else None


def stamp(files: Sequence[Path]) -> Any:
    """What changes with the files: names, sizes and times; None where one is so new that its time may not show the next
    change. The change time can't be set, so that a file which keeps its size and time is still found."""
    found = [(str(path.resolve()), path.stat()) for path in files]
    newest = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in found), default=0)
    if newest > time.time_ns() - SETTLED:
        return None
    told = repr([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found])
    return hashlib.sha256(told.encode()).hexdigest()


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
    return values[index] if not isinstance(values, Column) and held(values.nbytes) else Rows(values, index)


def joined(parts: Sequence[Any]) -> Any:
    """The rows of all parts: one array if all are small arrays in memory, else a column."""
    small = all(not isinstance(p, Column) for p in parts) and held(sum(p.nbytes for p in parts))
    return np.concatenate(parts) if small else Chain(tuple(parts))
