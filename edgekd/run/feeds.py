"""The samples of splits as files are asked for their outputs and timed: of different lengths each alone, at its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data.column import joined
from edgekd.data.ragged import Ragged
from edgekd.inputs import each, named
from edgekd.records import Task
from edgekd.samples.rows import WHOLE, Samples

if TYPE_CHECKING:
    from edgekd.data.columns import Columns


def of(task: Task, *splits: Columns) -> Mapping[str, np.ndarray] | Samples:
    """{input: samples [n, ...] of the splits in their order}, or samples that a file takes one at a time."""
    parts = [named(columns.inputs, task.inputs[0]) for columns in splits]
    if not any(isinstance(column, Ragged) for part in parts for column in part.values()):
        if len(parts) == 1:
            return parts[0]
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    arrays = {name: _alone([row for part in parts for row in _rows(part[name])]) for name in parts[0]}
    return Samples(arrays, dict.fromkeys(arrays, WHOLE))


def _rows(column: Any) -> list[np.ndarray]:
    return [np.asarray(column[i])[None] for i in range(len(column))]


def _alone(rows: list[np.ndarray]) -> np.ndarray:
    """[n] arrays [1, ...]"""
    found = np.empty(len(rows), object)
    found[:] = rows
    return found


def answered(task: Task, outputs: Mapping[str, np.ndarray], *splits: Columns) -> list[Any]:
    """{output: [n, ...]} of each split, of what a file answered to all. Rows of steps are filled with zeros up to the
    longest sample of the split."""
    ends = np.cumsum([0, *map(len, splits)])
    lengths = None if splits[0].lengths is None else np.concatenate([c.lengths for c in splits])
    at = ends if lengths is None else np.cumsum([0, *lengths])

    def part(array: np.ndarray, start: int, stop: int) -> np.ndarray:
        if len(array) != at[-1] or len(array) == ends[-1]:  # of samples, or of steps of equally many
            return array[start:stop]
        return _steps(task, array[at[start] : at[stop]], Ragged(np.empty(0), at[start : stop + 1] - at[start]))

    pairs = zip(ends, ends[1:], strict=False)
    return [each(outputs, lambda a, start=start, stop=stop: part(a, start, stop)) for start, stop in pairs]


def _steps(task: Task, flat: np.ndarray, like: Ragged) -> np.ndarray:
    """[n, longest, ...] of outputs of steps [sum of lengths, ...], as the task has its axes."""
    filled = Ragged(flat, like.offsets).filled()
    if task.output is not None and task.output.kind != "classes":
        return filled[..., 0] if filled.shape[-1] == 1 else filled
    return np.moveaxis(filled, -1, task.output.axis) if task.output is not None else filled
