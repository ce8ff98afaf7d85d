"""Relational distillation: the distances and angles between rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from edgekd.losses._taps import EPS, pairs, unit
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def relational(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    distance: Annotated[float, Ge(0)] = 25.0,
    angle: Annotated[float, Ge(0)] = 50.0,
) -> torch.Tensor:
    """`distance` x Huber of distances over their mean + `angle` x Huber of the cosines of angles: taps [B, ...] -> [].

    Park et al. 2019, the distance-wise and the angle-wise loss (section 3.2). As in the authors' code the mean distance
    is that of unequal rows, and each Huber loss is averaged over all B^2 pairs, B^3 triples, a row with itself (0 on
    both sides) included. Features are flattened; their differences take B^2 x D numbers, the angles B^3: tap a pooled
    layer where that is much.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1, 2]), torch.arange(3), torch.ones(3))
    >>> rows = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    >>> teacher = Signals(None, {"layer": rows})
    >>> relational(Signals(None, {"layer": 2 * rows + 1}), teacher, batch)  # neither scale nor place counts
    tensor(0.)
    >>> relational(Signals(None, {"layer": rows * torch.tensor([1.0, 3.0])}), teacher, batch)
    tensor(1.0903)
    """
    import torch
    from torch.nn import functional as F

    terms = []
    for s, t in pairs(student, teacher):
        # [i, j] = x_i - x_j; a product f f^T would be smaller, but loses close rows to rounding
        e_s, e_t = (x.flatten(1)[:, None] - x.flatten(1)[None] for x in (s, t))
        value = distance * F.smooth_l1_loss(_distances(e_s), _distances(e_t))
        if angle:
            value = value + angle * F.smooth_l1_loss(_cosines(e_s), _cosines(e_t))
        terms.append(value)
    return torch.stack(terms).mean()


def _distances(differences: torch.Tensor) -> torch.Tensor:
    """Lengths [B, B] over the mean of those that are not 0."""
    import torch

    lengths = torch.linalg.vector_norm(differences, dim=-1)  # its gradient at 0 is 0
    return lengths / (lengths.sum() / (lengths > 0).sum().clamp_min(1)).clamp_min(EPS)


def _cosines(differences: torch.Tensor) -> torch.Tensor:
    """[j, i, k]: the cosine of the angle at x_j between x_i and x_k; 0 where one of them equals x_j."""
    towards = unit(differences).transpose(0, 1)
    return towards @ towards.transpose(1, 2)
