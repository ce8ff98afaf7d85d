"""A split of a task as arrays or columns, so that batches are gathers and keys can contain the data's digest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd import system
from edgekd.data import Arrays, ragged, workers
from edgekd.data.arrays import labels_of
from edgekd.data.column import cast, column, held, stamp_of
from edgekd.data.ragged import Ragged
from edgekd.data.reading import Notes, Reader, every_problem, size
from edgekd.errors import Problem, UsageError
from edgekd.inputs import Column, each, named
from edgekd.records import Batch, Task
from edgekd.store import fingerprint

ROOM = 2**21  # values of inputs that a model is asked at once
Kept = Callable[[Callable[[], Any], Callable[[], dict[str, Any]]], Any]


@dataclass(frozen=True)
class Columns:
    """A loaded split. `inputs` [N, ...] or {name: [N, ...]}, arrays or columns (`inputs.Column`); `labels` [N, ...],
    {output: [N, ...]} or None; `tags`: N tuples, or None where no sample has any; `digest`: sha256 of all of it. Of
    samples of different length an input is `Ragged`, `lengths` [N] says them, and where each step has a label,
    `stepwise`, labels [N, longest] are filled with what does not count. Labels that are strings, `strings`, are [N, L];
    outputs then have frames, and are `stepwise` where samples differ in length."""

    split: str
    inputs: Any
    labels: Any
    ids: list
    weight: np.ndarray
    digest: str
    tags: list[tuple[str, ...]] | None = None
    lengths: np.ndarray | None = None
    stepwise: bool = False
    strings: bool = False

    def __len__(self) -> int:
        return len(self.weight)


def load(task: Task, split: str, kept: Kept = lambda identity, make: make()) -> Columns:
    """Reads a split of `task`: into memory if it is small, else only for its digest, by parts; a `collate` of the task
    gets all samples at once. `kept(identity, make)`: what `make` made for this identity before, or makes now. Raises
    UsageError if the split is empty, or samples can't be read or stacked."""
    found = _load(task, split, kept)
    if _is_far(found):
        system.steady_allocation()
    return found


def _is_far(columns: Columns) -> bool:
    """Whether the inputs are not in memory."""
    return any(isinstance(values, Column) for values in named(columns.inputs).values())


def _load(task: Task, split: str, kept: Kept) -> Columns:
    samples = task.data(split)
    place = f"task {task.name}: data({split!r})"
    if samples is None or len(samples) == 0:
        raise UsageError(
            Problem(place, "the split is empty", "return at least one sample for each of train, validation and test")
        )
    if task.collate is None and isinstance(samples, Arrays):  # nothing to stack
        inputs, lengths = measured(task, each(samples.inputs, _single))
        steps = _steps(task, samples.labels, lengths)
        labels = None if samples.labels is None else filled(task, samples.labels, place)
        rest = labels, list(samples.ids), np.ones(len(samples), np.float32), _tags(samples.tags)
        return Columns(split, inputs, *rest[:3], _digest(inputs, rest, kept), rest[3], lengths, *steps)
    if task.collate is None and not task.lengths and not held(size(samples[0].inputs) * len(samples)):
        return _far(samples, split, place)
    rows = [samples[i] for i in range(len(samples))]
    inputs, labels = _stack(task, rows, place)
    inputs, lengths = measured(task, each(inputs, _single))
    steps = _steps(task, labels, lengths)
    labels = None if labels is None else filled(task, labels, place)
    ids = [i if row.id is None else row.id for i, row in enumerate(rows)]
    weight, tags = np.array([row.weight for row in rows], np.float32), _tags([tuple(row.tags) for row in rows])
    digest = fingerprint.data(_flat(inputs), labels, ids, weight, tags)
    return Columns(split, inputs, labels, ids, weight, digest, tags, lengths, *steps)


def _steps(task: Task, labels: Any, lengths: np.ndarray | None) -> tuple[bool, bool]:
    """(whether outputs have an entry for each step of samples that differ in length, whether labels are strings)"""
    strings = task.output is not None and task.output.blank is not None
    return lengths is not None if strings else isinstance(labels, Ragged), strings


def _tags(tags: Sequence[tuple[str, ...]] | None) -> list[tuple[str, ...]] | None:
    return list(tags) if tags is not None and any(tags) else None


def _digest(inputs: Any, rest: tuple[Any, list, np.ndarray, Any], kept: Kept) -> str:
    """The digest of a split. Inputs in files that nobody changed since it was computed are not read again."""
    stamps = {name: stamp_of(values) for name, values in named(inputs).items()}

    def make() -> dict[str, Any]:
        with every_problem(inputs):
            return {"digest": fingerprint.data(_flat(inputs), *rest)}

    if None in stamps.values():
        return make()["digest"]
    forms = {name: (values.dtype.str, values.shape) for name, values in named(inputs).items()}
    return kept(lambda: (stamps, forms, fingerprint.data({}, *rest)), make)["digest"]


def _far(samples: Any, split: str, place: str) -> Columns:
    """A split of samples that are read again whenever they are asked for. One pass finds its digest, what comes with
    the inputs, and all samples that can't be read."""
    notes = Notes(len(samples), place)
    inputs = Reader(len(samples), lambda i: notes.noted(i, samples[i]).inputs, place).columns()
    with every_problem(inputs):
        digest = fingerprint.data_read(inputs, notes.rest)
    notes.check()
    labels, ids, weight, tags = notes.rest()
    return Columns(split, inputs, labels, ids, weight, digest, tags)


def measured(task: Task, inputs: Any) -> tuple[Any, np.ndarray | None]:
    """(inputs with the lengths that the task asks for, these [N] or None)."""
    place = f"task {task.name}: lengths"
    given = named(inputs, task.inputs[0])
    lost = [name for name, values in given.items() if isinstance(values, Ragged) and name not in task.lengths]
    if lost:
        hint = f'lengths={{"{lost[0]}": "lengths"}} names the input that gets them'
        raise UsageError(Problem(place, f"samples of {', '.join(lost)} differ in length", hint))
    if not task.lengths:
        return inputs, None
    counts = {name: _lengths(given[name]) for name in task.lengths if name in given}
    if len(counts) < len(task.lengths) or len(set(task.lengths.values())) > 1:
        text = f"are of {', '.join(task.lengths)}, for {', '.join(sorted(set(task.lengths.values())))}"
        hint = f"the data has the inputs {', '.join(given)}; those with lengths share one input for them"
        raise UsageError(Problem(place, text, hint))
    first, *others = counts.values()
    if any((other != first).any() for other in others):
        raise UsageError(Problem(place, f"those of {', '.join(counts)} differ within a sample", "make them equal"))
    return {**given, next(iter(task.lengths.values())): first}, first


def filled(task: Task, labels: Any, place: str = "") -> Any:
    """Labels as an array: those of steps are filled with the label that does not count."""
    if isinstance(labels, Mapping):
        if steps := [name for name, values in labels.items() if isinstance(values, Ragged)]:
            hint = "several outputs take one label for each sample"
            raise UsageError(Problem(place, f"labels of {', '.join(steps)} differ in length", hint))
        return each(labels, np.asarray)
    if not isinstance(labels, Ragged):
        return np.asarray(labels)
    if task.output is None or task.output.ignore_index is None:
        hint = 'outputs={"name": edgekd.classes(axis=2, ignore_index=-100)}, or yes_no(ignore_index=-100)'
        raise UsageError(Problem(place, "each step has a label, and none is said not to count", hint))
    return labels.filled(fill=task.output.ignore_index)


def _lengths(values: Any) -> np.ndarray:
    return values.lengths if isinstance(values, Ragged) else np.full(len(values), values.shape[1], np.int64)


def _flat(inputs: Any) -> Any:
    """The inputs as arrays whose values tell them: samples of different length as both their arrays."""
    if not isinstance(inputs, Mapping) or not any(isinstance(values, Ragged) for values in inputs.values()):
        return inputs
    parts = {name: ragged.parts(values) for name, values in inputs.items()}
    flat = {name: values for name, values in parts.items() if not isinstance(values, dict)}
    return flat | {f"{n}.{part}": a for n, held in parts.items() if isinstance(held, dict) for part, a in held.items()}


def _single(array: Any) -> Any:
    """Floating-point inputs as float32, the type of models; integers are unchanged."""
    if isinstance(array, Ragged):
        return array.typed(np.float32) if array.dtype.kind == "f" else array
    array = column(array)
    if isinstance(array, Column):
        return cast(array, np.float32) if array.dtype.kind == "f" else array
    array = np.asarray(array)
    return np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)


def _stack(task: Task, rows: list, place: str):
    if task.collate is not None:
        inputs, labels = task.collate(rows)
        return each(inputs, np.asarray), None if labels is None else each(labels, np.asarray)
    try:
        if isinstance(rows[0].inputs, Mapping):
            inputs = {n: _stacked(task, n, [np.asarray(row.inputs[n]) for row in rows]) for n in rows[0].inputs}
        else:
            inputs = _stacked(task, task.inputs[0], [np.asarray(row.inputs) for row in rows])
    except (ValueError, KeyError) as error:
        raise UsageError(
            Problem(place, f"samples can't be stacked: {error}", "give all inputs one shape, or the task a `collate`")
        ) from None
    labelled = [row.label is not None for row in rows]
    if any(labelled) and not all(labelled):
        raise UsageError(
            Problem(
                place,
                f"{labelled.count(False)} of {len(rows)} samples have no label",
                "label all samples of a split, or none",
            )
        )
    try:
        return inputs, labels_of([row.label for row in rows])
    except (ValueError, KeyError) as error:
        hint = "give every sample one label, or {output: label} of the same outputs"
        raise UsageError(Problem(place, f"labels can't be stacked: {error}", hint)) from None


def _stacked(task: Task, name: str, parts: list[np.ndarray]) -> Any:
    return ragged.of(parts) if name in task.lengths else np.stack(parts)


def _tensors(labels: Any, index: np.ndarray) -> Any:
    import torch

    return each(labels, lambda array: torch.from_numpy(array[index]))


def _of_steps(labels: Any, steps: int | None) -> Any:
    """Labels [n, steps, ...] of steps, where samples have some, up to the longest sample."""
    return labels if steps is None else labels[:, :steps]


def take(columns: Columns, index: np.ndarray, view: int = 0) -> Batch:
    """The rows `index` as a batch of tensors, not augmented."""
    return next(taken(columns, [index], view))


def taken(columns: Columns, indices: Sequence[np.ndarray], view: int = 0) -> Iterator[Batch]:
    """The rows of each index in turn as batches of tensors, not augmented. Other processes read ahead what takes
    long."""
    import torch

    for index, inputs in zip(indices, workers.rows(columns.inputs, indices), strict=True):
        steps = int(columns.lengths[index].max()) if columns.stepwise and columns.lengths is not None else None
        ends = None if columns.strings else steps
        labels = None if columns.labels is None else _of_steps(_tensors(columns.labels, index), ends)
        lengths = None if columns.lengths is None else torch.from_numpy(columns.lengths[index])
        tags = None if columns.tags is None else [columns.tags[i] for i in index]
        weight = torch.from_numpy(columns.weight[index])
        inputs = each(inputs, torch.from_numpy)
        yield Batch(inputs, labels, torch.from_numpy(index), weight, view, tags, steps=steps, lengths=lengths)


def few(columns: Columns, most: int = 256) -> int:
    """Rows of a batch that a model answers: `most`, fewer of large samples, whose inner values take memory."""
    row = sum(math.prod(values.shape[1:]) for values in named(columns.inputs).values())
    return max(16, min(most, ROOM // max(1, row)))


def batches(columns: Columns, size: int, view: int = 0) -> Iterator[Batch]:
    """The split in order, in batches of at most `size`; of samples of different length in such of one, so that nothing
    is filled."""
    for batch in taken(columns, list(even(columns, np.arange(len(columns), dtype=np.int64), size)), view):
        yield batch
        if _is_far(columns):
            system.free_unused()  # what was computed with it


def even(columns: Columns, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The rows in their order, at most `size` at a time, and of one length."""
    changes = [] if columns.lengths is None else np.flatnonzero(np.diff(columns.lengths[rows])) + 1
    for run in np.split(rows, changes):
        yield from (run[start : start + size] for start in range(0, len(run), size))


def some(columns: Columns, rows: np.ndarray) -> Columns:
    """These rows of a split, with the digest of all."""
    cut = columns.stepwise and not columns.strings
    steps = int(columns.lengths[rows].max()) if cut and columns.lengths is not None else None
    return dataclasses.replace(
        columns,
        inputs=each(columns.inputs, lambda values: ragged.pick(values, rows)),
        labels=None if columns.labels is None else each(columns.labels, lambda array: _of_steps(array[rows], steps)),
        ids=[columns.ids[i] for i in rows],
        weight=columns.weight[rows],
        tags=None if columns.tags is None else [columns.tags[i] for i in rows],
        lengths=None if columns.lengths is None else columns.lengths[rows],
    )
