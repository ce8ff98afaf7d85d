"""A split of a task as arrays or columns, so that batches are gathers and keys can contain the data's digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data import Arrays
from edgekd.data.column import Column, cast, column
from edgekd.errors import Problem, UsageError
from edgekd.inputs import each
from edgekd.records import Batch, Task
from edgekd.store import fingerprint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Columns:
    """A loaded split. `inputs` [N, ...] or {name: [N, ...]}, arrays or columns (`inputs.Column`); `labels` [N, ...] or
    None; `tags`: N tuples, or None where no sample has any; `digest`: sha256 of all of it."""

    split: str
    inputs: Any
    labels: np.ndarray | None
    ids: list
    weight: np.ndarray
    digest: str
    tags: list[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.weight)


def load(task: Task, split: str) -> Columns:
    """Reads a whole split of `task`. Raises UsageError if it is empty or its samples can't be stacked."""
    samples = task.data(split)
    place = f"task {task.name}: data({split!r})"
    if samples is None or len(samples) == 0:
        raise UsageError(
            Problem(place, "the split is empty", "return at least one sample for each of train, validation and test")
        )
    if task.collate is None and isinstance(samples, Arrays):  # nothing to stack
        inputs, labels = samples.inputs, samples.labels
        ids = list(samples.ids)
        weight, tags = np.ones(len(samples), np.float32), samples.tags
    else:
        rows = [samples[i] for i in range(len(samples))]
        inputs, labels = _stack(task, rows, place)
        ids = [i if row.id is None else row.id for i, row in enumerate(rows)]
        weight = np.array([row.weight for row in rows], np.float32)
        tags = [tuple(row.tags) for row in rows]
    inputs = each(inputs, _single)
    labels = None if labels is None else np.asarray(labels)
    tags = list(tags) if tags is not None and any(tags) else None
    return Columns(split, inputs, labels, ids, weight, fingerprint.data(inputs, labels, ids, weight, tags), tags)


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
        return each(inputs, np.asarray), None if labels is None else np.asarray(labels)
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
    return inputs, np.asarray([row.label for row in rows]) if all(labelled) else None


def take(columns: Columns, index: np.ndarray, view: int = 0) -> Batch:
    """The rows `index` as a batch of tensors, not augmented."""
    import torch

    def gather(array: Any) -> torch.Tensor:
        return torch.from_numpy(array[index])

    labels = None if columns.labels is None else gather(columns.labels)
    tags = None if columns.tags is None else [columns.tags[i] for i in index]
    return Batch(each(columns.inputs, gather), labels, torch.from_numpy(index), gather(columns.weight), view, tags)


def batches(columns: Columns, size: int) -> Iterator[Batch]:
    """The split in order, in batches of at most `size`."""
    for start in range(0, len(columns), size):
        yield take(columns, np.arange(start, min(start + size, len(columns)), dtype=np.int64))
