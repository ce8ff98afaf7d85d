"""A teacher that runs on every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekd.models.precision import Precision, forward_in
from edgekd.models.taps import watch
from edgekd.records import Batch, Signals, Task

if TYPE_CHECKING:
    from torch import nn


def live(
    model: nn.Module, task: Task, precision: Precision = "float32", paths: Sequence[str] = ()
) -> Callable[[Batch], Signals]:
    """Runs the frozen `model` in evaluation mode on the batch's own view; returns its outputs, with the outputs of the
    layers at `paths`. The model keeps the memory format of its precision: to change it takes longer than a batch."""
    import torch

    model = model.eval().requires_grad_(False)
    tapped, autocast = watch(model, paths), forward_in(model, precision)

    def teach(batch: Batch) -> Signals:
        with torch.no_grad(), autocast():
            return Signals(task.call(model, batch.inputs), tapped())

    return teach
