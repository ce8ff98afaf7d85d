"""Hints: the student's features match the teacher's after a learned projection."""

import torch
from torch import nn

from edgekd.losses._taps import pairs, projector, same_size
from edgekd.records import Batch, Signals


class Hint(nn.Module):
    """Mean square of r(f_s) - f_t per row: maps [B, C, H, W], vectors [B, D] or tokens [B, T, D] -> [B]; r: see
    `_taps.projector`.

    FitNets, Romero et al. 2015, eq. 3, with a mean instead of half the sum, r linear with BatchNorm instead of a
    convolution with ReLU, and trained together with the other terms instead of in a stage before them. Maps of
    different size are averaged down to the smaller; a usual weight is 100.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(None, {"layer1": torch.zeros(2, 8)})
    >>> teacher = Signals(None, {"layer3": torch.zeros(2, 16)})
    >>> loss = Hint(student, teacher, batch)
    >>> [tuple(p.shape) for p in loss.parameters()]  # the projector learns
    [(16, 8), (16,)]
    >>> loss(student, teacher, batch).shape
    torch.Size([2])
    """

    def __init__(self, student: Signals, teacher: Signals, batch: Batch):
        super().__init__()
        self.projectors = nn.ModuleList(projector(s, t) for s, t in pairs(student, teacher))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
        rows = []
        for project, (s, t) in zip(self.projectors, pairs(student, teacher), strict=True):
            s, t = same_size(s, t) if s.ndim == 4 else (s, t)
            rows.append((project(s) - t).square().flatten(1).mean(1))
        return torch.stack(rows).mean(0)
