"""Squared error with the labels, only where the student is worse than its teacher: a teacher of numbers is a bound, not
a truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from edgekd.losses._values import labels, numbers, same
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def bounded(student: Signals, teacher: Signals, batch: Batch, *, margin: Annotated[float, Ge(0)] = 0.0) -> torch.Tensor:
    """|z_s - y|^2 where |z_s - y|^2 + margin > |z_t - y|^2, else 0, per row: numbers [B, ...] of both, labels of the
    same size -> [B]; |.|^2 is the mean over a row's numbers.

    Chen et al. 2017, "Learning Efficient Object Detection Models with Knowledge Distillation", eq. 6, with the mean
    where they take the sum. `margin` is in the labels' unit, squared.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[1.0, 0.0], [0.5, 4.0]]))
    >>> teacher = Signals(torch.tensor([[1.0, 1.0], [2.0, 4.0]]))
    >>> bounded(student, teacher, batch)  # in the second row the student is better than the teacher
    tensor([2., 0.])
    """
    ours, theirs = numbers(student), numbers(teacher)
    same(ours, theirs)
    wanted = labels(batch, ours)
    mine, bound = (ours - wanted).square().mean(-1), (theirs - wanted).square().mean(-1)
    return mine * (mine + margin > bound)
