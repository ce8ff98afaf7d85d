"""Kullback-Leibler divergence from the teacher's softened distribution to the student's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from edgekd.losses._standardize import standardized
from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def kl(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    temperature: Annotated[float, Gt(0)] = 4.0,
    standardize: bool = False,
) -> torch.Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) per row: logits [B, C] -> [B].

    Hinton, Vinyals, Dean 2015, section 2: T^2 keeps the gradient's size independent of T. Summed over classes, never
    averaged. `standardize`: each row of logits is first scaled to mean 0 and deviation 1, so that a small student need
    not reach the teacher's scale (Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1).

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> kl(student, teacher, batch, temperature=1.0)
    tensor([0.0928, 0.3409])
    """
    from torch.nn import functional as F

    z_s, z_t = scores(student), scores(teacher)
    if standardize:
        z_s, z_t = standardized(z_s), standardized(z_t)
    q = F.log_softmax(z_s / temperature, dim=-1)
    p = F.log_softmax(z_t / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
