"""Distillation by correlation: features are compared after each channel is scaled to mean 0 and deviation 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._taps import pairs, same_channels, unit
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def normalized_features(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """Half the mean square of (z_s - z_t) per row, z = each channel standardized over batch and positions: maps [B, C,
    H, W] -> [B].

    Cao et al. 2022 ("PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient"):
    the mean over rows is 1 - the mean of the channels' correlations; exactly, since the deviation divides by n. A row's
    value depends on its batch through mean and deviation. Channels must match; maps of different size are averaged down
    to the smaller first. A channel that is constant has no gradient.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> maps = torch.tensor([3.0, 1, 0, 2, 1, 0, 5, 1, 2, 2, 1, 0, 0, 4, 1, 3]).reshape(2, 2, 2, 2)
    >>> teacher = Signals(None, {"layer": maps})
    >>> normalized_features(Signals(None, {"layer": 2 * maps + 1}), teacher, batch)  # neither scale nor offset counts
    tensor([0., 0.])
    >>> normalized_features(Signals(None, {"layer": maps.flip(-1)}), teacher, batch)
    tensor([1.6993, 0.9310])
    """
    import torch

    rows = []
    for s, t in pairs(student, teacher):
        z_s, z_t = (_standardized(x) for x in same_channels(s, t))
        rows.append((z_s - z_t).square().mean((1, 2, 3)) / 2)
    return torch.stack(rows).mean(0)


def _standardized(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean((0, 2, 3), keepdim=True)
    n = x.shape[0] * x.shape[2] * x.shape[3]
    return unit(centred, dim=(0, 2, 3)) * n**0.5
