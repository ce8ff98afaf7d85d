"""Patient distillation of transformers: hidden vectors of several layers, in direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgekd.losses._taps import pairs, unit, unpaired
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def patient(
    student: Signals, teacher: Signals, batch: Batch, *, tokens: Literal["first", "all"] = "first"
) -> torch.Tensor:
    """Mean square of h_s / |h_s| - h_t / |h_t| per row: vectors [B, D] or tokens [B, T, D] -> [B].

    Sun et al. 2019, section 3.2, on the first token ([CLS]) as there, or the mean over all tokens (padding included).
    As in the authors' code the squares are averaged over D, not summed, and here over layers: a usual weight is 10 to
    1000. Widths must match.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> teacher = Signals(None, {"layer": rows})
    >>> patient(Signals(None, {"layer": 2 * rows}), teacher, batch)  # the length does not count
    tensor([0., 0.])
    >>> patient(Signals(None, {"layer": rows.flip(-1)}), teacher, batch)
    tensor([1., 1.])
    """
    import torch

    rows = []
    for s, t in pairs(student, teacher):
        if s.ndim not in (2, 3) or s.ndim != t.ndim or s.shape[-1] != t.shape[-1]:
            raise unpaired("both must be vectors [B, D] or tokens [B, T, D] of the same width", s, t)
        if s.ndim == 3 and tokens == "first":
            s, t = s[:, 0], t[:, 0]
        elif s.shape != t.shape:
            raise unpaired("both must have the same number of tokens", s, t)
        rows.append((unit(s) - unit(t)).square().flatten(1).mean(1))
    return torch.stack(rows).mean(0)
