"""A teacher that ran once per view: its saved outputs, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekd.data.column import Mapped
from edgekd.errors import RunFailed
from edgekd.models.device import moved, positions
from edgekd.models.scores import as_given
from edgekd.outputs import Output
from edgekd.records import Artifact, Batch, Signals

if TYPE_CHECKING:
    import torch


def cached(answers: Artifact, rows: int, views: int, output: Output | None = None) -> Callable[[Batch], Signals]:
    """Reads an artifact of the answer stage, onto the batch's device: logits.npy [views, rows, C], or the part of them
    that a grey or black box shows. `output`: what the task says of it. Raises RunFailed if its shape does not fit the
    data."""
    import numpy as np
    import torch

    def read(name: str) -> Callable[[Batch], torch.Tensor]:
        array = np.load(answers.folder / name, mmap_mode="r", allow_pickle=False)
        if array.shape[:2] != (views, rows):
            raise RunFailed(
                f"the teacher's cached {name[:-4]} have shape {list(array.shape)}, but the data needs [{views}, "
                f"{rows}, ...]"
            )
        every = Mapped(array.reshape(views * rows, *array.shape[2:]))
        return lambda batch: moved(torch.from_numpy(every[batch.view * rows + positions(batch)]), batch.index.device)

    if (answers.folder / "labels.npy").is_file():
        labels = read("labels.npy")
        return lambda batch: Signals(None, label=labels(batch))
    if (answers.folder / "classes.npy").is_file():
        values, classes, count = read("values.npy"), read("classes.npy"), _count(answers.facts["outputs"], output)
        return lambda batch: Signals(as_given(output, spread(values(batch), classes(batch).long(), count)))
    logits = read("logits.npy")
    return lambda batch: Signals(logits(batch))


def _count(shape: Sequence[int], output: Output | None) -> int:
    """The number of classes of an output [n, *shape]."""
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
