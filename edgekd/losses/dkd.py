"""Decoupled distillation: separate weights for the teacher's confidence in the label and its ranking of other
classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from edgekd.losses._standardize import standardized
from edgekd.losses._takes import class_numbers, scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def dkd(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    alpha: Annotated[float, Ge(0)] = 1.0,
    beta: Annotated[float, Ge(0)] = 8.0,
    temperature: Annotated[float, Gt(0)] = 4.0,
    standardize: bool = False,
) -> torch.Tensor:
    """T^2 (alpha TCKD + beta NCKD) per row: logits [B, C], labels [B] -> [B].

    Zhao et al. 2022, "Decoupled Knowledge Distillation": TCKD is the KL of [p_y, 1 - p_y], NCKD that of the
    distributions over the other classes; `kl` is alpha = 1, beta = 1 - p_y. The defaults are those of the authors'
    code, where `beta` is 1 to 8, by pair of models. It raises the term's weight over the first 20 epochs; here the
    weight is constant. It masks the label by subtracting 1000 and takes logs of sums of probabilities; here the label's
    logit is left out and all is in logs, so that saturated logits stay finite. `standardize`: as in `kl`.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> dkd(student, teacher, batch)
    tensor([1.2612, 1.7500])
    """
    import torch
    from torch.nn import functional as F

    z_s, z_t = scores(student), scores(teacher)
    if standardize:
        z_s, z_t = standardized(z_s), standardized(z_t)
    own = class_numbers(batch, z_s.shape[-1])[:, None]
    others = torch.arange(z_s.shape[-1] - 1, device=z_s.device).expand(len(z_s), -1)
    others = others + (others >= own)  # gathered: a mask would be counted, which waits for a GPU
    (target_s, rest_s), (target_t, rest_t) = (_decoupled(z / temperature, own, others) for z in (z_s, z_t))
    target = F.kl_div(target_s, target_t, reduction="none", log_target=True).sum(-1)
    rest = F.kl_div(rest_s, rest_t, reduction="none", log_target=True).sum(-1)
    return temperature**2 * (alpha * target + beta * rest)


def _decoupled(z: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log [p_y, 1 - p_y] as [B, 2], log of the distribution over the other classes as [B, C - 1])."""
    import torch
    from torch.nn import functional as F

    target, rest = z.gather(1, own).squeeze(1), z.gather(1, others)
    return F.log_softmax(torch.stack((target, rest.logsumexp(-1)), -1), dim=-1), F.log_softmax(rest, dim=-1)
