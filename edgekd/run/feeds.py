"""The samples of splits as files are asked for their outputs and timed: of different lengths each alone, at its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data.column import joined
from edgekd.data.ragged import Ragged
from edgekd.inputs import named
from edgekd.outputs import gap
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

    def parts(array: np.ndarray) -> list[np.ndarray]:
        """Those of each split."""
        pairs = list(zip(ends, ends[1:], strict=False))
        counts = None if lengths is None or len(array) == ends[-1] else _frames(task, lengths, len(array))
        if counts is None:  # of samples, or of steps of equally many
            return [array[start:stop] for start, stop in pairs]
        at = np.cumsum([0, *counts])
        rows = lambda start, stop: Ragged(array[at[start] : at[stop]], at[start : stop + 1] - at[start])
        return [_steps(task, rows(start, stop)) for start, stop in pairs]

    found = {name: parts(array) for name, array in outputs.items()}
    return [{name: each[i] for name, each in found.items()} for i in range(len(splits))]


def _frames(task: Task, lengths: np.ndarray, rows: int) -> np.ndarray | None:
    """[n]: how many of an output's rows belong to each sample: its steps, or its frames where the output has a blank.
    None where they are not of steps."""
    if lengths.sum() == rows:
        return lengths
    if task.output is None or task.output.blank is None:
        return None
    tried = (-(-lengths // k) for k in range(2, int(lengths.max()) + 1))
    return next((counts for counts in tried if counts.sum() == rows), None)


def _steps(task: Task, rows: Ragged) -> np.ndarray:
    """[n, longest, ...] of outputs of steps, as the task has its axes."""
    output, filled = task.output, rows.filled()
    if output is None:
        return filled
    if output.kind != "classes":
        return filled[..., 0] if filled.shape[-1] == 1 else filled
    if output.blank is not None:
        behind = np.arange(filled.shape[1]) >= rows.lengths[:, None]
        filled[behind] = gap(output, filled.shape[-1])
    return np.moveaxis(filled, -1, output.axis)
