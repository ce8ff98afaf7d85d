"""Samples for an ONNX file: whether they fit its inputs, which of them calibrate and which compare, in what batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem
from edgekd.inputs import length
from edgekd.probes import static

if TYPE_CHECKING:
    import onnx

ENOUGH = 128  # samples of which every fourth is kept for comparing
KEPT = 512  # of these at most


def fixed_rows(model: onnx.ModelProto) -> int | None:
    """The number of samples that a file takes at once; None where it is open."""
    for value in _inputs(model).values():
        dims = value.shape.dim
        if dims and dims[0].HasField("dim_value"):
            return max(1, dims[0].dim_value)
    return None


def batches(arrays: Mapping[str, np.ndarray], rows: int) -> Iterable[dict[str, np.ndarray]]:
    """Samples in order, `rows` at a time. A file of fixed size can't take the rest; where the size is open it may be
    smaller."""
    count = length(arrays)
    for start in range(0, count, rows):
        yield {name: a[start : start + rows] for name, a in arrays.items()}


def divided(count: int, samples: int, model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """(rows to calibrate on, rows to compare on that are none of these; none of `count` below ENOUGH): up to `samples`
    and KEPT, spread evenly over the data, which may be sorted; whole batches where the file takes only these."""
    size, every = fixed_rows(model) or 1, np.arange(count)
    kept = every[3::4] if count >= max(ENOUGH, 4 * size) else every[:0]
    return _spread(np.delete(every, kept), samples, size), _spread(kept, KEPT, size) if len(kept) else kept


def _spread(rows: np.ndarray, samples: int, size: int) -> np.ndarray:
    wanted = max(size, min(len(rows), samples) // size * size)
    return rows[np.linspace(0, len(rows) - 1, wanted).round().astype(np.int64)]


def inputs_of(
    model: onnx.ModelProto, given: Mapping[str, np.ndarray], place: str, rows: Callable[[int], np.ndarray] = np.arange
) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """({input: samples in its type, those that `rows` takes of so many}, problems): names, shapes, types, numbers that
    are not finite."""
    wanted = _inputs(model)
    if not wanted:
        hint = "a file that computes the same every time has no ranges"
        return {}, [Problem(place, "is for a model that takes no input", hint)]
    if "" in given:
        if len(wanted) > 1:
            what = f"has one array `inputs`, and the model takes {', '.join(wanted)}"
            return {}, [Problem(place, what, "give one array per input name")]
        given = {next(iter(wanted)): given[""]}
    problems = [
        Problem(place, f"has no array for the input {name}", f"it has {', '.join(given)}")
        for name in wanted
        if name not in given
    ]
    problems += [
        Problem(place, f"{name} is not an input of the model", f"its inputs: {', '.join(wanted)}")
        for name in given
        if name not in wanted
    ]
    found = {}
    for name, array in ((n, a) for n, a in given.items() if n in wanted):
        wrong = _unfit(name, array, wanted[name])
        if wrong:
            problems.append(Problem(place, *wrong))
        else:
            found[name] = np.ascontiguousarray(array[rows(len(array))].astype(static.dtype(wanted[name].elem_type)))
    return found, problems


def _inputs(model: onnx.ModelProto) -> dict[str, Any]:
    """{input: its TensorProto type}; old files list their initializers as inputs too."""
    stored = {i.name for i in model.graph.initializer}
    return {i.name: i.type.tensor_type for i in model.graph.input if i.name not in stored}


def _unfit(name: str, array: np.ndarray, wanted: Any) -> tuple[str, ...]:
    """(message, hint) of what is wrong with the samples of an input; () if nothing."""
    kind = static.dtype(wanted.elem_type)
    shape = [d.dim_value if d.HasField("dim_value") else None for d in wanted.shape.dim]
    if wanted.HasField("shape") and not _fits(array.shape, shape):
        shown = ", ".join("n" if i == 0 else "any" if d is None else str(d) for i, d in enumerate(shape))
        return (f"{name} has samples of shape {list(array.shape[1:])}, the model takes [{shown}]",)
    if shape and shape[0] is not None and len(array) < shape[0]:
        return (f"{name} has {len(array)} samples, the model takes {shape[0]} at once",)
    if kind is None or array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, kind, "same_kind"):
        return (f"{name} is {array.dtype}, the model takes {kind}",)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = int((~np.isfinite(array.reshape(len(array), -1))).any(1).sum())
        what = f"{name} holds numbers that are not finite, in {rows} of {len(array)} samples"
        return what, "leave these samples out"
    return ()


def _fits(shape: tuple[int, ...], wanted: list[int | None]) -> bool:
    """Whether an array's shape is the wanted one, but for the number of samples."""
    return len(wanted) == len(shape) and all(w in (None, h) for w, h in zip(wanted[1:], shape[1:], strict=True))
