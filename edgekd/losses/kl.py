"""Kullback-Leibler divergence from the teacher's softened distribution to the student's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def kl(student: Signals, teacher: Signals, batch: Batch, *, temperature: Annotated[float, Gt(0)] = 4.0) -> torch.Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) per row: logits [B, C] -> [B].

    Hinton, Vinyals, Dean 2015, section 2: T^2 keeps the gradient's size independent of T. Summed over classes, never averaged."""
    from torch.nn import functional as F

    q = F.log_softmax(student.output.float() / temperature, dim=-1)
    p = F.log_softmax(teacher.output.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
