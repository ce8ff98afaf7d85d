"""Squared error with labels that are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._values import labels, numbers
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def mse(student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
    """(1/D) sum_d (z_d - y_d)^2 per row: numbers [B, ...], labels of the same size -> [B].

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[1.0, 0.0], [0.5, 4.0]]))
    >>> mse(student, None, batch)
    tensor([2.0000, 0.1250])
    """
    values = numbers(student)
    return (values - labels(batch, values)).square().mean(-1)
