"""Kullback-Leibler divergence to a mixture of both distributions: bounded where one of them has almost no mass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Lt

from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def skewed_kl(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.1,
    reverse: bool = False,
    temperature: Annotated[float, Gt(0)] = 4.0,
) -> torch.Tensor:
    """T^2 KL(p || alpha p + (1 - alpha) q) per row: logits [B, C] -> [B]; p the teacher's softened distribution, q the
    student's.

    `reverse`: T^2 KL(q || alpha q + (1 - alpha) p). Ko et al. 2024 ("DistiLLM"), skew KL and skew reverse KL, alpha as
    there. Never above T^2 ln(1 / alpha). The authors' code leaves out the teacher's entropy, which has no gradient;
    here the value is the divergence. T and T^2 as in `kl`, which they have not.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> skewed_kl(student, teacher, batch, alpha=0.1, temperature=1.0)
    tensor([0.0794, 0.2896])
    """
    import torch
    from torch.nn import functional as F

    q = F.log_softmax(scores(student) / temperature, dim=-1)
    p = F.log_softmax(scores(teacher) / temperature, dim=-1)
    near, far = (q, p) if reverse else (p, q)
    mixture = torch.logaddexp(near + math.log(alpha), far + math.log1p(-alpha))
    return temperature**2 * F.kl_div(mixture, near, reduction="none", log_target=True).sum(-1)
