"""Similarity preserving: rows that are alike to the teacher shall be alike to the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._taps import pairs, unit
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def similarity(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """|G_s - G_t|_F^2 / B^2, G = f f^T of the flattened features with its rows scaled to length 1: taps [B, ...] ->
    [].

    Tung and Mori 2019, section 3, with a mean over layers instead of a sum. Shapes may differ in all but B; a usual
    weight is 3000. Sample weights don't enter: an entry of G is of two rows. Small batches (below 32 or so) show few
    relations.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> teacher = Signals(None, {"layer": rows})
    >>> similarity(Signals(None, {"layer": rows.flip(-1)}), teacher, batch)  # which feature does not count
    tensor(0.)
    >>> similarity(Signals(None, {"layer": rows + 1}), teacher, batch)
    tensor(0.0856)
    """
    import torch

    terms = []
    for s, t in pairs(student, teacher):
        g_s, g_t = (unit(f @ f.T) for f in (s.flatten(1), t.flatten(1)))
        terms.append((g_s - g_t).square().mean())
    return torch.stack(terms).mean()
