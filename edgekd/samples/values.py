"""The one rule for the values of samples: they fit the type that the model takes, without a change, and are finite and
of a size that float32 can compute with. What is wrong is told with the first bad sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgekd.errors import Problem
from edgekd.inputs import MAPPED, room, unload

CHUNK = 2**19  # values that are looked at together
NUMBERS = "fiub"  # kinds of types


def wrong(
    name: str, array: np.ndarray, dtype: np.dtype[Any] | None, place: str, names: Sequence[str] = ()
) -> list[Problem]:
    """What is wrong with samples [n, ...] for a model that takes `dtype`. `names` of samples, else they are
    numbered."""
    if dtype is None or dtype.kind not in NUMBERS:
        text = f"the input {name} of the model is not a tensor of numbers"
        return [Problem(place, text, "samples are floats, integers or booleans")]
    kinds = {np.dtype(a.dtype) for a in each(array)}
    unlike = next((k for k in kinds if not _convertible(k, dtype)), None)
    if unlike is not None:
        hint = f'convert them, for example with .astype("{dtype}")'
        return [Problem(place, f"{name} is {unlike}, the model takes {dtype}", hint)]
    for reason, hint, bad in _rules(dtype):
        rows = [i for i, found in enumerate(_bad(array, bad)) if found]
        if rows:
            which = names[rows[0]] if len(names) else f"sample {rows[0]}"
            more = f", in {len(rows)} of {len(array)} samples" if len(array) > 1 else ""
            return [Problem(place, f"{name} {reason}{more}; the first is {which}", hint)]
    return []


def labels(values: np.ndarray, place: str, classes: int | None, names: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with labels: no numbers, not finite, or class numbers that the model does not have."""
    kind = next(each(values)).dtype.kind if len(values) else "f"
    if kind not in NUMBERS:
        text = f"labels are {next(each(values)).dtype}, not numbers"
        return [Problem(place, text, "number the classes from 0")]
    which = lambda row: names[row] if len(names) else f"sample {row}"
    if kind == "f":
        broken = [i for i, found in enumerate(_bad(values, lambda a: ~np.isfinite(a))) if found]
        text = "labels hold numbers that are not finite"
        return [Problem(place, f"{text}; the first is of {which(broken[0])}")] if broken else []
    if values.ndim != 1 or values.dtype == object:
        return []
    top = np.iinfo(np.int64).max if classes is None else classes - 1
    bad = np.flatnonzero((values < 0) | (values > top))
    if not len(bad):
        return []
    text = f"labels hold {int(values[bad[0]])}, the first of {which(int(bad[0]))}, in {len(bad)} of {len(values)}"
    known = "class numbers are from 0" if classes is None else f"the model has the classes 0 to {classes - 1}"
    return [Problem(place, f"{text}: {known}", "labels that are values, not classes, are floats")]


def each(array: np.ndarray) -> Iterator[np.ndarray]:
    """The samples of an array of arrays; any other array itself."""
    yield from (np.asarray(a) for a in array) if array.dtype == object else (array,)


def taken(array: np.ndarray, rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """These rows of samples [n, ...] in another type; from MAPPED bytes on a part of them at a time, into a file."""
    everything = len(rows) == len(array) and bool((rows == np.arange(len(array))).all())
    if array.dtype == object or math.prod(array.shape[1:]) * len(rows) * dtype.itemsize < MAPPED:
        made = changed(array if everything else array[rows], dtype)
        made = np.array(made) if isinstance(made, np.memmap) else made
        return made if made.dtype == object else np.ascontiguousarray(made)
    there = array.flags.writeable or not isinstance(array, np.memmap)  # in memory, or in a file of this process
    if everything and there and array.dtype == dtype and array.flags.c_contiguous:
        return array
    found, count = room((len(rows), *array.shape[1:]), dtype), max(1, CHUNK // max(1, array[:1].size))
    for start in range(0, len(rows), count):
        found[start : start + count] = array[rows[start : start + count]]
        unload(found)
        unload(array)
    return found


def changed(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Samples in another type."""
    if array.dtype != object:
        return array if array.dtype == dtype else array.astype(dtype)
    return ragged([np.asarray(a).astype(dtype, copy=False) for a in array])


def ragged(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """[n] arrays of different shapes."""
    found = np.empty(len(arrays), object)
    for i, array in enumerate(arrays):
        found[i] = array
    return found


def _convertible(kind: np.dtype[Any], dtype: np.dtype[Any]) -> bool:
    """Whether values of a type may be given where another is wanted, as far as the types say it."""
    if kind.kind not in NUMBERS:
        return False
    return {"f": True, "i": kind.kind in "iub", "u": kind.kind in "iub", "b": kind.kind == "b"}[dtype.kind]


def _rules(dtype: np.dtype[Any]) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """(what is wrong, hint, test of each value) of values that become `dtype`."""
    out = "leave these samples out"
    if dtype.kind == "f":
        yield "holds numbers that are not finite", out, lambda a: ~np.isfinite(a) if a.dtype.kind == "f" else _none(a)
        top = float(np.finfo(dtype).max)
        limit, why = (top, "it holds none larger") if dtype.itemsize < 4 else (top**0.5, "their squares overflow")
        text = f"holds values above {limit:.1e}, too large for {dtype}: {why}"
        yield text, f"{out}, or scale them as the model was trained", lambda a: _above(a, limit)
        whole = 2 ** (np.finfo(dtype).nmant + 1)
        text = f"holds integers above {whole}, which {dtype} can't tell apart"
        yield (
            text,
            "scale them as the model was trained",
            lambda a: _above(a, whole) if a.dtype.kind in "iu" else _none(a),
        )
    elif dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        text = f"holds integers outside of {dtype}, {low} to {high}"
        yield text, out, lambda a: _outside(a, low, high)


def _none(a: np.ndarray) -> np.ndarray:
    return np.zeros(a.shape, bool)


def _above(a: np.ndarray, limit: float) -> np.ndarray:
    # float16 can't hold the limit that it is compared with
    below = a.dtype.kind == "b" or (a.dtype.kind == "f" and float(np.finfo(a.dtype).max) <= limit)
    return _none(a) if below else (a > limit) | (a < -limit)


def _outside(a: np.ndarray, low: int, high: int) -> np.ndarray:
    if a.dtype.kind == "b":
        return _none(a)
    known = np.iinfo(a.dtype)
    found = _none(a)
    if known.max > high:
        found |= a > a.dtype.type(high)
    if known.min < low:
        found |= a < a.dtype.type(low)
    return found


def _bad(array: np.ndarray, test: Callable[[np.ndarray], np.ndarray]) -> Iterator[bool]:
    """Of every sample whether a value in it is bad; a part of them at a time."""
    if array.dtype == object:
        yield from (bool(test(np.asarray(a)).any()) for a in array)
        return
    rows = max(1, CHUNK // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        yield from test(part).reshape(len(part), -1).any(1)
        unload(array)
