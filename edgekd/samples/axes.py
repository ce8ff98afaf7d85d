"""Which axis of an array holds the samples, and the arrays with the samples first.

The symbolic dimension that inputs share is that of the samples; else the first axis is, or the one axis along which
there is more than the model takes at once. What is said by name goes before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekd.errors import Problem
from edgekd.inputs import Block
from edgekd.samples import values
from edgekd.samples.rows import WHOLE, Axis
from edgekd.samples.signature import Dim, Signature, Tensor

HINT = "--axis NAME=K names the axis of an input's samples, --axis NAME=none an array that is the same for all"


@dataclass(frozen=True)
class Placed:
    """`arrays` {input: [n, ...]}, the samples first; `axes` {input: where the model takes them}. `total` samples."""

    arrays: dict[str, np.ndarray]
    axes: dict[str, Axis]
    total: int
    note: str = ""


def expected(signature: Signature, asked: Mapping[str, int | None]) -> dict[str, int | None]:
    """{input: the axis of its samples, None if it has none}, by the model alone."""
    dim = signature.sample_dim()
    found: dict[str, int | None] = {}
    for name, tensor in signature.inputs.items():
        dims = tensor.dims
        known = dims.index(dim) if dims and dim is not None and dim in dims else 0
        found[name] = asked.get(name, None if dims == () else known)
    return found


def settled(signature: Signature, asked: Mapping[str, int | None], given: Mapping[str, np.ndarray]) -> Signature:
    """The signature; with the symbolic dimension that is named, which outputs may have too; with samples along the
    first axis of its only input where another than the open one is named, or the array `given` has them there."""
    inputs = {n: signature.inputs[n].dims or () for n in asked if n in signature.inputs}
    named = {dims[k] for n, dims in inputs.items() if (k := asked[n]) is not None and 0 <= k < len(dims)}
    symbols = [d for d in named if isinstance(d, str)]
    if len(symbols) == 1:
        return replace(signature, named=symbols[0])
    dim, name = signature.sample_dim(), next(iter(signature.inputs), "")
    dims = signature.inputs[name].dims if len(signature.inputs) == 1 else None
    if dims is None or dim is None:
        return signature
    axis = dims.index(dim)
    shape = given[name].shape if name in given else None
    taken = shape is None or fits(shape, dims, axis) or fits(shape[1:], dims[:axis] + dims[axis + 1 :])
    there = shape is not None and not taken and fits(shape, dims, 0)
    return replace(signature, first=True) if there or asked.get(name, axis) != axis else signature


def unknown(signature: Signature, asked: Mapping[str, int | None]) -> list[Problem]:
    """What is wrong with axes that are named."""
    hint = f"its inputs: {', '.join(signature.inputs)}"
    wrong = [Problem("--axis", f"{n} is not an input of the model", hint) for n in asked if n not in signature.inputs]
    for name, axis in asked.items():
        dims = signature.inputs[name].dims if name in signature.inputs else None
        if axis is not None and dims is not None and not 0 <= axis < len(dims):
            wrong.append(Problem("--axis", f"{name} has {len(dims)} axes, and none is {axis}", "they count from 0"))
    return wrong


def shown(found: Mapping[str, Axis], asked: Mapping[str, int | None]) -> list[str]:
    """A line on the axes that nobody named, if there are some."""
    axis = lambda k: "the same for all" if k is None else "one sample" if k == WHOLE else f"axis {k}"
    guessed = ", ".join(f"{name} {axis(k)}" for name, k in found.items() if name not in asked)
    return [f"samples are taken along: {guessed}; --axis NAME=K names another"] if guessed else []


def doubtful(signature: Signature, found: Mapping[str, Axis], asked: Mapping[str, int | None]) -> list[str]:
    """`shown`, but where samples lie along the first axis of the only input, whose others are fixed: nothing else can
    be meant."""
    only = next(iter(found.items())) if len(found) == 1 else None
    plain = only is not None and only[1] == 0
    if only is not None and plain:
        dims = signature.inputs[only[0]].dims
        plain = dims is None or all(isinstance(d, int) for d in dims[1:])
    return [] if plain else shown(found, asked)


def placed(
    signature: Signature, given: Mapping[str, np.ndarray], asked: Mapping[str, int | None], place: str
) -> tuple[Placed, list[Problem]]:
    """Arrays of many samples each, as a file has them."""
    dim, axes = signature.sample_dim(), expected(signature, asked)
    problems: list[Problem] = []
    arrays: dict[str, np.ndarray] = {}
    found: dict[str, Axis] = {}
    constants: dict[str, np.ndarray] = {}
    rows = {n: _rows(signature.inputs[n], axes[n]) for n in given if axes[n] is not None}
    sure = {n for n in given if n in asked or (dim is not None and dim in (signature.inputs[n].dims or ()))}
    for name, array in given.items():
        tensor, axis = signature.inputs[name], axes[name]
        if axis is None and _is_row(array, tensor):
            array = array[0]
        where = _place(array, tensor, axis, name in sure, len(set(rows.values())) > 1)
        if where is None:
            problems.append(Problem(place, _unfit(name, array, tensor, axis)))
        elif where == (None, None):
            constants[name], found[name] = array, None
        else:
            arrays[name], found[name] = np.moveaxis(array, int(where[0] or 0), 0), where[1]
    counts, note = {name: len(a) for name, a in arrays.items()}, ""
    if len(set(counts.values())) > 1:
        if sure & set(counts) or not _independent(signature, counts):
            return Placed({}, {}, 0), [*problems, uneven(counts, place)]
        shown = ", ".join(f"{n}: {c}" for n, c in counts.items())
        note = (
            f"the inputs have different numbers of rows ({shown}), and the model relates none of them: they are taken "
        )
        note += "as one sample; a folder with one .npz per sample gives several"
        arrays, found = {n: given[n][None] for n in counts}, {**found, **dict.fromkeys(counts, WHOLE)}
    problems += _at_once(signature, found, place)
    total = len(next(iter(arrays.values()))) if arrays else 1
    arrays |= {name: np.broadcast_to(array, (total, *array.shape)) for name, array in constants.items()}
    return Placed({n: arrays[n] for n in given if n in arrays}, found, total, note), problems


def alone(
    signature: Signature,
    given: Sequence[Mapping[str, np.ndarray]],
    asked: Mapping[str, int | None],
    place: str,
    names: Sequence[str],
) -> tuple[Placed, list[Problem]]:
    """Arrays of one sample each, as the files of a folder have them: all of an input, or what is left without the axis
    of samples. Samples of one shape that the model takes side by side become [n, ...]."""
    axes = expected(signature, asked)
    problems: list[Problem] = []
    parts: dict[str, list[np.ndarray]] = {}
    for name in given[0]:
        tensor, axis = signature.inputs[name], axes[name]
        completed = [_completed(one[name], tensor, axis) for one in given]
        wrong = next((i for i, array in enumerate(completed) if array is None), None)
        if wrong is not None:
            text = _unfit(name, given[wrong][name], tensor, axis, one=True)
            problems.append(Problem(f"{place}: {names[wrong]}", text))
        parts[name] = [array for array in completed if array is not None]
    if problems:
        return Placed({}, {}, len(given)), problems
    side = all(_stackable(parts[n], axes[n]) for n in parts if axes[n] is not None)
    arrays: dict[str, np.ndarray] = {}
    found: dict[str, Axis] = {}
    for name, several in parts.items():
        axis, tensor = axes[name], signature.inputs[name]
        if axis is None and all(np.array_equal(several[0], a) for a in several[1:]):
            found[name], arrays[name] = None, np.broadcast_to(several[0], (len(several), *several[0].shape))
        elif side and axis is not None:
            found[name], arrays[name] = axis, _stacked([np.moveaxis(a, axis, 0)[0] for a in several])
        else:
            same = len({a.shape for a in several}) == 1
            found[name], arrays[name] = WHOLE, _stacked(several) if same else values.ragged(several)
            dims = tensor.dims
            wrong = next((i for i, a in enumerate(several) if dims is not None and not fits(a.shape, dims)), None)
            if wrong is not None:
                problems.append(
                    Problem(f"{place}: {names[wrong]}", _unfit(name, several[wrong], tensor, None, one=True))
                )
    return Placed(arrays, found, len(given)), problems


def size(signature: Signature, found: Mapping[str, Axis]) -> int | None:
    """The number of samples that a model takes at once; None where that is open."""
    if WHOLE in found.values():
        return None
    each = (_rows(signature.inputs[name], axis) for name, axis in found.items() if isinstance(axis, int))
    return next((max(1, rows) for rows in each if rows is not None), None)


def uneven(counts: Mapping[str, int | None], place: str) -> Problem:
    shown = ", ".join(f"{name}: {'none' if n is None else n}" for name, n in counts.items())
    text = f"the arrays must have the same number of rows, at least one ({shown})"
    return Problem(place, text, HINT if len(counts) > 1 else "")


def dims_of(tensor: Tensor, axis: int | None) -> str:
    """[n, 3, any]"""
    of = lambda i, dim: "n" if i == axis else str(dim) if isinstance(dim, int) else "any"
    return f"[{', '.join(of(i, dim) for i, dim in enumerate(tensor.dims or ()))}]"


def _place(
    array: np.ndarray, tensor: Tensor, axis: int | None, sure: bool, differ: bool
) -> tuple[int | None, Axis] | None:
    """(axis of the array's samples, that of the model's or WHOLE), two None of a constant; None where it does not
    fit. `sure`: the axis is named or shared; `differ`: the model takes other numbers of rows of other inputs."""
    dims, shape = tensor.dims, array.shape
    if dims is None:
        return (axis, axis) if axis is None or array.ndim > axis else None
    if axis is None:
        if fits(shape, dims):
            return None, None
        # a scalar for each sample
        return (0, WHOLE) if array.ndim == len(dims) + 1 and fits(shape[1:], dims) else None
    if array.ndim == len(dims):
        fixed = all(isinstance(d, int) for d in dims)
        if not sure and fixed and differ and shape == dims:
            return None, None
        if fits(shape, dims, axis):
            return axis, axis
        if fits(shape[1:], dims[:axis] + dims[axis + 1 :]):
            return 0, axis
        more = [i for i, want in enumerate(dims) if isinstance(want, int) and shape[i] != want]
        if not sure and fixed and len(more) == 1:
            return more[0], more[0]
    if array.ndim == len(dims) + 1 and fits(shape[1:], dims):
        return 0, WHOLE
    return None


def _is_row(array: np.ndarray, tensor: Tensor) -> bool:
    """Whether an array is one row of values that an input without samples takes: one value for all of them."""
    dims, shape = tensor.dims, array.shape
    return dims is not None and not fits(shape, dims) and shape[:1] == (1,) and fits(shape[1:], dims)


def _completed(array: np.ndarray, tensor: Tensor, axis: int | None) -> np.ndarray | None:
    """One sample with the axis of samples; None where it does not fit."""
    dims = tensor.dims
    if dims is None or (array.ndim == len(dims) and fits(array.shape, dims, axis)):
        return array
    if axis is not None and array.ndim == len(dims) - 1 and fits(array.shape, dims[:axis] + dims[axis + 1 :]):
        return np.expand_dims(array, axis)
    return None


def _stackable(parts: Sequence[np.ndarray], axis: int | None) -> bool:
    shape = parts[0].shape
    return axis is not None and len({a.shape for a in parts}) == 1 and len(shape) > axis and shape[axis] == 1


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[n, ...] of arrays of one shape, in the type that holds all."""
    dtype = np.result_type(*{a.dtype for a in parts})
    return Block(len(parts)).stacked([a.astype(dtype, copy=False) for a in parts])


def _at_once(signature: Signature, found: Mapping[str, Axis], place: str) -> list[Problem]:
    """What is wrong where the model fixes different numbers of samples for its inputs."""
    each = {name: _rows(signature.inputs[name], axis) for name, axis in found.items() if isinstance(axis, int)}
    fixed = {name: rows for name, rows in each.items() if rows is not None}
    if len(set(fixed.values())) < 2:
        return []
    shown = ", ".join(f"{name}: {rows}" for name, rows in fixed.items())
    return [Problem(place, f"the model takes different numbers of samples at once ({shown})", HINT)]


def _independent(signature: Signature, names: Mapping[str, int]) -> bool:
    """Whether the first axes of these inputs are open, each by a name of its own."""
    dims = [(signature.inputs[n].dims or (0,))[0] for n in names]
    return all(isinstance(d, str) for d in dims) and len(set(dims)) == len(dims)


def _rows(tensor: Tensor, axis: int | None) -> int | None:
    """The number of samples that an input takes at once; None where it is open."""
    dim = tensor.dims[axis] if tensor.dims and axis is not None else None
    return dim if isinstance(dim, int) else None


def fits(shape: Sequence[int], dims: Sequence[Dim], axis: int | None = None) -> bool:
    """Whether an array has the shape that is wanted, but for the number of samples along an axis."""
    if len(shape) != len(dims):
        return False
    both = enumerate(zip(shape, dims, strict=True))
    return all(i == axis or not isinstance(want, int) or want == have for i, (have, want) in both)


def _unfit(name: str, array: np.ndarray, tensor: Tensor, axis: int | None, one: bool = False) -> str:
    if axis is None or one:
        return f"{name} has the shape {list(array.shape)}, the model takes {dims_of(tensor, axis)}"
    rest = [n for i, n in enumerate(array.shape) if i != axis]
    return f"{name} has samples of shape {rest}, the model takes {dims_of(tensor, axis)}"
