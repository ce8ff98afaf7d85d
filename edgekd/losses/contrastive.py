"""Contrastive distillation: a student's row must be more similar to the teacher's same row than to other rows."""

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import nn
from torch.nn import functional as F

from edgekd.losses._taps import pairs, pooled, unit
from edgekd.records import Batch, Signals


class Contrastive(nn.Module):
    """-log softmax of <g_s(s_i), g_t(t_j)> / temperature at j = i, per row, the mean of both directions (i and j
    changed): taps -> [B].

    After Tian et al. 2020 (CRD), with two departures: the negatives are the other rows of the batch, not a memory bank,
    and so the loss is the softmax over one positive and them (InfoNCE) instead of the binary one against N samples of
    noise. As there, rows of the same class are not negatives (if labels are class numbers), and g are two linear
    embeddings to `dim`, scaled to length 1; both learn. Maps and tokens are averaged over positions first. A row's
    value depends on its batch; large batches give more negatives.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(None, {"layer1": torch.zeros(2, 8)})
    >>> teacher = Signals(None, {"layer3": torch.zeros(2, 16)})
    >>> loss = Contrastive(student, teacher, batch, dim=4)
    >>> [tuple(p.shape) for p in loss.parameters()]  # two embeddings
    [(4, 8), (4,), (4, 16), (4,)]
    >>> loss(student, teacher, batch).shape
    torch.Size([2])
    """

    changing: ClassVar = ("temperature",)

    def __init__(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        *,
        dim: Annotated[int, Ge(1)] = 128,
        temperature: Annotated[float, Gt(0)] = 0.07,
    ):
        super().__init__()
        shapes = [(pooled(s).shape[1], pooled(t).shape[1]) for s, t in pairs(student, teacher)]
        self.student = nn.ModuleList(nn.Linear(s, dim) for s, _ in shapes)
        self.teacher = nn.ModuleList(nn.Linear(t, dim) for _, t in shapes)
        self.temperature = temperature

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
        left_out = same_class(batch)
        rows = []
        for g_s, g_t, (s, t) in zip(self.student, self.teacher, pairs(student, teacher), strict=True):
            near = unit(g_s(pooled(s))) @ unit(g_t(pooled(t))).T / self.temperature
            own = torch.arange(len(near), device=near.device)
            if left_out is not None:
                near = near.masked_fill(left_out, float("-inf"))
            rows.append(
                (F.cross_entropy(near, own, reduction="none") + F.cross_entropy(near.T, own, reduction="none")) / 2
            )
        return torch.stack(rows).mean(0)


def same_class(batch: Batch) -> torch.Tensor | None:
    """[B, B]: which other rows have the row's own class. None where labels are not class numbers."""
    labels = batch.labels
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return None
    return (labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
