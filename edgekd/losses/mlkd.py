"""Multi-level logit distillation: each row's distribution, how rows resemble each other, and how classes go
together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, MinLen

from edgekd.losses._standardize import standardized
from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def mlkd(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    temperatures: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance_weight: Annotated[float, Ge(0)] = 1.0,
    batch_weight: Annotated[float, Ge(0)] = 1.0,
    class_weight: Annotated[float, Ge(0)] = 1.0,
    standardize: bool = False,
) -> torch.Tensor:
    """Sum over temperatures T of T^2 mean_i KL(p_i || q_i) + |P P' - Q Q'|^2 / B + |P' P - Q' Q|^2 / C: logits [B, C]
    -> [].

    P, Q are the probabilities [B, C] of teacher and student at T, |.|^2 the sum of squares. Jin, Wang, Lin 2023, the
    instance, batch and class levels, each with a weight. The class level grows with the square of B, as theirs. The
    authors' code multiplies means by a mask of the less confident rows or classes, which only scales them: here every
    row counts. It adds up a weak and a strong view: here is the batch's one. `standardize`: as in `kl`, on the instance
    level only (as Sun et al. 2024 do). A row of sample weight w counts as w rows.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> mlkd(student, teacher, batch)
    tensor(2.9078)
    """
    from torch.nn import functional as F

    z_s, z_t = scores(student), scores(teacher)
    n_s, n_t = (standardized(z_s), standardized(z_t)) if standardize else (z_s, z_t)
    w = batch.weight.float()
    total = z_s.new_zeros(())
    for t in temperatures:
        rows = F.kl_div(
            F.log_softmax(n_s / t, dim=-1), F.log_softmax(n_t / t, dim=-1), reduction="none", log_target=True
        ).sum(-1)
        q, p = F.softmax(z_s / t, dim=-1), F.softmax(z_t / t, dim=-1)
        between_rows = (p @ p.T - q @ q.T).square()
        between_classes = (p.T @ (w[:, None] * p) - q.T @ (w[:, None] * q)).square()
        total = total + instance_weight * t**2 * (w * rows).sum() / w.sum()
        total = total + batch_weight * (w @ between_rows @ w) / w.sum()
        total = total + class_weight * between_classes.sum() / z_s.shape[-1]
    return total
