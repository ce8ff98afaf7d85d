"""Attention transfer: the student's spatial attention maps match the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._taps import pairs, same_size, unit
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def attention(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """Mean over positions of (a_s - a_t)^2 per row, a = the squares' mean over channels, scaled to length 1: maps [B,
    C, H, W] -> [B].

    Zagoruyko and Komodakis 2017, eq. 2 with F^2_sum; channels may differ. As in the authors' code the squares are
    averaged over positions, not rooted and summed: a usual weight is 1000. Maps of different size are averaged down to
    the smaller first.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> maps = torch.tensor([3.0, 1, 0, 2, 1, 0, 5, 1, 2, 2, 1, 0, 0, 4, 1, 3]).reshape(2, 2, 2, 2)
    >>> teacher = Signals(None, {"layer": maps})
    >>> attention(Signals(None, {"layer": 2 * maps}), teacher, batch)  # the scale does not count
    tensor([0., 0.])
    >>> attention(Signals(None, {"layer": maps.flip(-1)}), teacher, batch)
    tensor([0.3202, 0.3044])
    """
    import torch

    rows = []
    for s, t in pairs(student, teacher):
        a_s, a_t = (unit(x.square().mean(1).flatten(1)) for x in same_size(s, t))
        rows.append((a_s - a_t).square().mean(1))
    return torch.stack(rows).mean(0)
