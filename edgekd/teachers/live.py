"""A teacher that runs on every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekd.models.precision import Precision, laid_out
from edgekd.models.taps import watch
from edgekd.records import Batch, Signals, Task

if TYPE_CHECKING:
    from torch import nn


def live(
    model: nn.Module, task: Task, precision: Precision = "float32", paths: Sequence[str] = ()
) -> Callable[[Batch], Signals]:
    """The frozen `model` (evaluation mode: its dropout and batch statistics stand still) on the batch's own view, with
    its values at `paths`."""
    import torch

    model = model.eval().requires_grad_(False)
    tapped = watch(model, paths)

    def teach(batch: Batch) -> Signals:
        with torch.no_grad(), laid_out(model, precision) as autocast, autocast():
            return Signals(task.call(model, batch.inputs), tapped())

    return teach
