"""A teacher that runs on every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekd.records import Batch, Signals, Task
from edgekd.train import Precision, laid_out

if TYPE_CHECKING:
    from torch import nn


def live(model: nn.Module, task: Task, precision: Precision = "float32") -> Callable[[Batch], Signals]:
    """The frozen `model` (evaluation mode: its dropout and batch statistics stand still) on the batch's own view."""
    import torch

    model = model.eval().requires_grad_(False)
    forward = task.forward or (lambda model, inputs: model(inputs))

    def teach(batch: Batch) -> Signals:
        with torch.no_grad(), laid_out(model, precision) as autocast, autocast():
            return Signals(forward(model, batch.inputs))

    return teach
