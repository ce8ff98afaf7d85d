"""A teacher that ran once per view: its saved outputs, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.data.column import Mapped
from edgekd.errors import RunFailed
from edgekd.models.device import moved, positions
from edgekd.models.scores import as_given, file_of, steps_of
from edgekd.outputs import Output
from edgekd.records import Artifact, Batch, Signals

if TYPE_CHECKING:
    import torch


def cached(
    answers: Artifact, rows: int, views: int, output: Output | Mapping[str, Output] | None = None
) -> Callable[[Batch], Signals]:
    """Reads an artifact of the answer stage, onto the batch's device: logits.npy [views, rows, C], or the part of them
    that a grey or black box shows; of several outputs each. `output`: what the task says of it. Raises RunFailed if its
    shape does not fit the data."""
    if not isinstance(output, Mapping):
        return _one(answers, rows, views, output, "")
    each = {name: _one(answers, rows, views, kind, name) for name, kind in output.items()}

    def seen(batch: Batch) -> Signals:
        found = {name: read(batch) for name, read in each.items()}
        labels = {name: s.label for name, s in found.items() if s.label is not None}
        return Signals(None if labels else {name: s.output for name, s in found.items()}, label=labels or None)

    return seen


def _one(answers: Artifact, rows: int, views: int, output: Output | None, of: str) -> Callable[[Batch], Signals]:
    """Reads one output of a teacher: `of` several, or "", the only one."""
    import numpy as np
    import torch

    def there(what: str) -> bool:
        return (answers.folder / file_of(what, of)).is_file()

    def read(name: str) -> Callable[[Batch], torch.Tensor]:
        array = np.load(answers.folder / file_of(name, of), mmap_mode="r", allow_pickle=False)
        if array.shape[:2] != (views, rows):
            raise RunFailed(
                f"the teacher's cached {name} have shape {list(array.shape)}, but the data needs [{views}, {rows}, ...]"
            )
        every = Mapped(array.reshape(views * rows, *array.shape[2:]))
        axis = steps_of(output) if name == "logits" else 1

        def rows_of(batch: Batch) -> torch.Tensor:
            found: torch.Tensor = torch.from_numpy(every[batch.view * rows + positions(batch)])
            found = found if batch.steps is None else found.narrow(axis, 0, batch.steps)
            there: torch.Tensor = moved(found, batch.index.device)
            return there

        return rows_of

    if there("labels"):
        labels = read("labels")
        return lambda batch: Signals(None, label=labels(batch))
    if there("classes"):
        values, classes, count = read("values"), read("classes"), _count(answers.facts["outputs"], output, of)
        return lambda batch: Signals(as_given(output, spread(values(batch), classes(batch).long(), count)))
    logits = read("logits")
    return lambda batch: Signals(logits(batch))


def _count(shapes: Any, output: Output | None, of: str) -> int:
    """The number of classes of an output [n, *shape]; `of` several {name: shape}."""
    shape: Sequence[int] = shapes[of] if of else shapes
    if output is not None and output.kind == "yes_no":
        return 2
    return (0, *shape)[-1 if output is None else output.axis]


def spread(values: torch.Tensor, classes: torch.Tensor, count: int) -> torch.Tensor:
    """Log-probabilities [B, ..., C] from the largest k ones [B, ..., k] and their classes [B, ..., k]; the other
    classes share the remaining probability evenly."""
    import torch

    left = (1 - values.exp().sum(-1, keepdim=True)).clamp_min(1e-7)
    every = torch.log(left / max(1, count - values.shape[-1])).expand(*values.shape[:-1], count).clone()
    return every.scatter_(-1, classes, values)
