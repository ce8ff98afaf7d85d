"""The samples of splits as files are asked for their outputs and timed: of different lengths each alone, at its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from edgekd.models.streams import Stream


def of(task: Task, *splits: Columns, stream: Stream | None = None) -> Mapping[str, np.ndarray] | Samples:
    """{input: samples [n, ...] of the splits in their order}, or samples that a file takes one at a time; with `stream`
    the steps of sequences."""
    parts = [named(columns.inputs, task.inputs[0]) for columns in splits]
    if stream is not None:
        return _of_steps(stream, parts, splits)
    if not any(isinstance(column, Ragged) for part in parts for column in part.values()):
        if len(parts) == 1:
            return parts[0]
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    arrays = {name: _alone([row for part in parts for row in _rows(part[name])]) for name in parts[0]}
    return Samples(arrays, dict.fromkeys(arrays, WHOLE))


def _of_steps(stream: Stream, parts: list[dict[str, Any]], splits: Sequence[Columns]) -> Samples:
    """All steps of the splits, one sequence after another; the file makes its states itself."""
    counts = np.concatenate([_counts(stream, part, columns) for part, columns in zip(parts, splits, strict=True)])
    begins = np.zeros(counts.sum(), bool)
    begins[np.cumsum(counts) - counts] = True
    flat = {}
    for name in stream.sequences(parts[0]):
        columns = [part[name] for part in parts]
        if stream.moves(name):
            flat[name] = np.concatenate([_flat(column) for column in columns])
        else:  # the same at each step
            flat[name] = np.repeat(np.concatenate([c[:] for c in columns]), counts, axis=0)
    return Samples(flat, states=stream.states, begins=begins)


def _counts(stream: Stream, part: Mapping[str, Any], columns: Columns) -> np.ndarray:
    """[n] steps of each sequence."""
    if columns.lengths is not None:
        return columns.lengths
    first = next(values for name, values in stream.sequences(part).items() if stream.moves(name))
    return np.full(len(columns), first.shape[1], np.int64)


def _flat(column: Any) -> np.ndarray:
    """[sum of lengths, ...]"""
    if isinstance(column, Ragged):
        return column.flat
    return np.reshape(column[:], (-1, *column.shape[2:]))


def _rows(column: Any) -> list[np.ndarray]:
    return [np.asarray(column[i])[None] for i in range(len(column))]


def _alone(rows: list[np.ndarray]) -> np.ndarray:
    """[n] arrays [1, ...]"""
    found = np.empty(len(rows), object)
    found[:] = rows
    return found


def answered(
    task: Task, outputs: Mapping[str, np.ndarray], *splits: Columns, stream: Stream | None = None
) -> list[Any]:
    """{output: [n, ...]} of each split, of what a file answered to all. Rows of steps are filled with zeros up to the
    longest sample of the split."""
    if stream is not None:
        given = [named(columns.inputs, task.inputs[0]) for columns in splits]
        counts = [_counts(stream, part, columns) for part, columns in zip(given, splits, strict=True)]
        return _of_sequences(task, stream, {name: outputs[name] for name in stream.outputs}, counts)
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


def _of_sequences(
    task: Task, stream: Stream, outputs: Mapping[str, np.ndarray], splits: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """{output: [n, longest, ...] or, of last steps, [n, ...]} of each split; `splits`: the steps of their sequences."""
    found, start = [], 0
    for counts in splits:
        ends = np.cumsum(counts)
        at = slice(start, start + int(counts.sum()))
        if stream.last:
            found.append({name: steps[at][ends - 1] for name, steps in outputs.items()})
        else:
            offsets = np.concatenate([[0], ends])
            found.append({name: _filled(task, Ragged(steps[at], offsets)) for name, steps in outputs.items()})
        start = at.stop
    return found


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
    output, filled = task.output, _filled(task, rows)
    if output is None:
        return filled
    if output.kind != "classes":
        return filled[..., 0] if filled.shape[-1] == 1 else filled
    return np.moveaxis(filled, -1, output.axis)


def _filled(task: Task, rows: Ragged) -> np.ndarray:
    """[n, longest, ...]: filled with zeros, or with what says nothing where the output has a blank."""
    filled = rows.filled()
    if task.output is not None and task.output.blank is not None:
        behind = np.arange(filled.shape[1]) >= rows.lengths[:, None]
        filled[behind] = gap(task.output, filled.shape[-1])
    return filled
