"""A split of a task as arrays or columns, so that batches are gathers and keys can contain the data's digest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd import system
from edgekd.data import Arrays, workers
from edgekd.data.arrays import labels_of
from edgekd.data.column import cast, column, held, stamp_of
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
    {output: [N, ...]} or None; `tags`: N tuples, or None where no sample has any; `digest`: sha256 of all of it."""

    split: str
    inputs: Any
    labels: Any
    ids: list
    weight: np.ndarray
    digest: str
    tags: list[tuple[str, ...]] | None = None

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
        inputs, labels = each(samples.inputs, _single), samples.labels
        rest = labels, list(samples.ids), np.ones(len(samples), np.float32), _tags(samples.tags)
        return Columns(split, inputs, *rest[:3], _digest(inputs, rest, kept), rest[3])
    if task.collate is None and not held(size(samples[0].inputs) * len(samples)):
        return _far(samples, split, place)
    rows = [samples[i] for i in range(len(samples))]
    inputs, labels = _stack(task, rows, place)
    inputs = each(inputs, _single)
    labels = None if labels is None else each(labels, np.asarray)
    ids = [i if row.id is None else row.id for i, row in enumerate(rows)]
    weight, tags = np.array([row.weight for row in rows], np.float32), _tags([tuple(row.tags) for row in rows])
    return Columns(split, inputs, labels, ids, weight, fingerprint.data(inputs, labels, ids, weight, tags), tags)


def _tags(tags: Sequence[tuple[str, ...]] | None) -> list[tuple[str, ...]] | None:
    return list(tags) if tags is not None and any(tags) else None


def _digest(inputs: Any, rest: tuple[Any, list, np.ndarray, Any], kept: Kept) -> str:
    """The digest of a split. Inputs in files that nobody changed since it was computed are not read again."""
    stamps = {name: stamp_of(values) for name, values in named(inputs).items()}

    def make() -> dict[str, Any]:
        with every_problem(inputs):
            return {"digest": fingerprint.data(inputs, *rest)}

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


def _single(array: Any) -> Any:
    """Floating-point inputs as float32, the type of models; integers are unchanged."""
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
            inputs = {name: np.stack([np.asarray(row.inputs[name]) for row in rows]) for name in rows[0].inputs}
        else:
            inputs = np.stack([np.asarray(row.inputs) for row in rows])
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


def _tensors(labels: Any, index: np.ndarray) -> Any:
    import torch

    return each(labels, lambda array: torch.from_numpy(array[index]))


def take(columns: Columns, index: np.ndarray, view: int = 0) -> Batch:
    """The rows `index` as a batch of tensors, not augmented."""
    return next(taken(columns, [index], view))


def taken(columns: Columns, indices: Sequence[np.ndarray], view: int = 0) -> Iterator[Batch]:
    """The rows of each index in turn as batches of tensors, not augmented. Other processes read ahead what takes
    long."""
    import torch

    for index, inputs in zip(indices, workers.rows(columns.inputs, indices), strict=True):
        labels = None if columns.labels is None else _tensors(columns.labels, index)
        tags = None if columns.tags is None else [columns.tags[i] for i in index]
        weight = torch.from_numpy(columns.weight[index])
        yield Batch(each(inputs, torch.from_numpy), labels, torch.from_numpy(index), weight, view, tags)


def few(columns: Columns, most: int = 256) -> int:
    """Rows of a batch that a model answers: `most`, fewer of large samples, whose inner values take memory."""
    row = sum(math.prod(values.shape[1:]) for values in named(columns.inputs).values())
    return max(16, min(most, ROOM // max(1, row)))


def batches(columns: Columns, size: int, view: int = 0) -> Iterator[Batch]:
    """The split in order, in batches of at most `size`."""
    starts = range(0, len(columns), size)
    indices = [np.arange(a, min(a + size, len(columns)), dtype=np.int64) for a in starts]
    for batch in taken(columns, indices, view):
        yield batch
        if _is_far(columns):
            system.free_unused()  # what was computed with it
