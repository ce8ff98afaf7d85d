"""Squared distance of the logits, averaged over classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._values import same
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def logit_mse(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """(1/C) sum_c (z_s,c - z_t,c)^2 per row: logits [B, C], or numbers to be predicted [B, ...] -> [B].

    Ba and Caruana 2014, regression on logits, but the mean over classes where they take half the sum. Where both rows
    of logits have the same mean, half of it is what `kl` tends to at high temperature.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> logit_mse(student, teacher, batch)
    tensor([1.6667, 3.3333])
    """
    same(student.output, teacher.output)
    return (student.output.float() - teacher.output.float()).square().reshape(len(student.output), -1).mean(-1)
