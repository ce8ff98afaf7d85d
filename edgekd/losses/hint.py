"""Hints: the student's features, through a projector that learns, like the teacher's."""

import torch
from torch import nn

from edgekd.losses._taps import pairs, projector, same_size
from edgekd.records import Batch, Signals


class Hint(nn.Module):
    """Mean square of r(f_s) - f_t per row: maps [B, C, H, W], vectors [B, D] or tokens [B, T, D] -> [B]; r: see
    `_taps.projector`.

    FitNets, Romero et al. 2015, eq. 3, with a mean instead of half the sum, r linear with BatchNorm instead of a
    convolution with ReLU, and trained together with the other terms instead of in a stage before them. Maps of
    different size are averaged down to the smaller; a usual weight is 100."""

    def __init__(self, student: Signals, teacher: Signals, batch: Batch):
        super().__init__()
        self.projectors = nn.ModuleList(projector(s, t) for s, t in pairs(student, teacher))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
        rows = []
        for project, (s, t) in zip(self.projectors, pairs(student, teacher), strict=True):
            s, t = same_size(s, t) if s.ndim == 4 else (s, t)
            rows.append((project(s) - t).square().flatten(1).mean(1))
        return torch.stack(rows).mean(0)
