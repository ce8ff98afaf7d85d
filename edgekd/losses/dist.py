"""Correlation with the teacher's probabilities, within each row and within each class, in place of equality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def dist(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    beta: Annotated[float, Ge(0)] = 1.0,
    gamma: Annotated[float, Ge(0)] = 1.0,
    tau: Annotated[float, Gt(0)] = 1.0,
) -> torch.Tensor:
    """tau^2 (beta (1 - mean over rows of r) + gamma (1 - mean over classes of r)): logits [B, C] -> [].

    r is Pearson's correlation of softmax(z_s / tau) with softmax(z_t / tau), over the classes of a row ("inter") and
    over the rows of a class ("intra"). Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher"; tau^2 and
    the defaults as in the authors' code. A row of sample weight w counts as w rows. Like theirs, a class or row without
    spread has r = 0: a batch of one row learns from its row alone.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> dist(Signals(teacher.output.flip(-1)), teacher, batch)  # classes in the other order
    tensor(2.1081)
    """
    from torch.nn import functional as F

    q, p = (F.softmax(scores(z) / tau, dim=-1) for z in (student, teacher))
    share = batch.weight.float() / batch.weight.sum()
    inter = 1 - (share * _pearson(q, p)).sum()
    # weights of mean 1: the spread then has the size that it has without weights, beside _pearson's constant
    intra = 1 - _pearson(q.T, p.T, share * len(share)).mean()
    return tau**2 * (beta * inter + gamma * intra)


def _pearson(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Correlation of the rows of a with those of b, [N, M] -> [N]; `weight` [M] says how much each of the M counts,
    with mean 1."""
    import torch

    weight = a.new_ones(a.shape[1]) if weight is None else weight
    a, b = (weight.sqrt() * (x - (weight * x).mean(1, keepdim=True)) for x in (a, b))
    # a norm has a finite gradient at 0, the root of a sum of squares has none
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + 1e-8)
