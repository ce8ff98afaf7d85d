"""Generalized Jensen-Shannon divergence of the softened distributions: bounded, between forward and reverse KL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Lt

from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def jsd(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    beta: Annotated[float, Gt(0), Lt(1)] = 0.5,
    temperature: Annotated[float, Gt(0)] = 4.0,
) -> torch.Tensor:
    """T^2 (beta KL(p || m) + (1 - beta) KL(q || m)) per row, m = beta p + (1 - beta) q: logits [B, C] -> [B]; p the
    teacher's, q the student's.

    The generalized divergence of Agarwal et al. 2024 ("On-Policy Distillation of Language Models"). Not rescaled: near
    beta = 0 it is beta KL(p || q), near 1 it is (1 - beta) KL(q || p). T and T^2 as in `kl`, which they have not.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> jsd(student, teacher, batch, temperature=1.0)
    tensor([0.0272, 0.0992])
    """
    import torch
    from torch.nn import functional as F

    q = F.log_softmax(scores(student) / temperature, dim=-1)
    p = F.log_softmax(scores(teacher) / temperature, dim=-1)
    m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    parts = (
        beta * F.kl_div(m, p, reduction="none", log_target=True),
        (1 - beta) * F.kl_div(m, q, reduction="none", log_target=True),
    )
    return temperature**2 * sum(parts).sum(-1)
