"""Huber's error with labels that are numbers: squared near them, absolute further away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from edgekd.losses._values import labels, numbers
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def huber(
    student: Signals, teacher: Signals | None, batch: Batch, *, delta: Annotated[float, Gt(0)] = 1.0
) -> torch.Tensor:
    """(1/D) sum_d h(z_d - y_d) per row, h(e) = e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2): numbers [B,
    ...], labels of the same size -> [B].

    Huber 1964, "Robust Estimation of a Location Parameter". `delta` is in the labels' unit.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[1.0, 0.0], [0.5, 4.0]]))
    >>> huber(student, None, batch)
    tensor([0.7500, 0.0625])
    """
    from torch.nn import functional as F

    values = numbers(student)
    return F.huber_loss(values, labels(batch, values), reduction="none", delta=delta).mean(-1)
