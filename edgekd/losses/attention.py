"""Attention transfer: where in the picture the features are strong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._taps import pairs, same_size, unit
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def attention(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """Mean over positions of (a_s - a_t)^2 per row, a = the squares' mean over channels, brought to length 1: maps [B,
    C, H, W] -> [B].

    Zagoruyko and Komodakis 2017, eq. 2 with F^2_sum; channels may differ. As in the authors' code the squares are
    averaged over positions, not rooted and summed: a usual weight is 1000. Maps of different size are averaged down to
    the smaller first."""
    import torch

    rows = []
    for s, t in pairs(student, teacher):
        a_s, a_t = (unit(x.square().mean(1).flatten(1)) for x in same_size(s, t))
        rows.append((a_s - a_t).square().mean(1))
    return torch.stack(rows).mean(0)
