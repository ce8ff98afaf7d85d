"""Keep the channels that others can't stand in for: those far from the middle of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekd.pruning import Channels


def geometric_median(group: Channels) -> torch.Tensor:
    """Sum of the distances of a channel's weights to those of all channels, mean over the layers that compute the
    channels: He et al. 2019 (FPGM, arXiv:1811.00250, equation 6). Layers that read them count where none computes them.

    >>> import torch
    >>> from edgekd.pruning import Channels, Slice
    >>> weight = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])  # the first and the last are the same
    >>> group = Channels("layer", 3, (Slice("layer", "linear", "out", weight),))
    >>> geometric_median(group)
    tensor([ 5., 10.,  5.])
    """
    import torch

    every = [s for s in group.slices if s.kind in ("conv", "linear")] or list(group.slices)
    made = [s for s in every if s.side == "out"] or every
    exact = "donot_use_mm_for_euclid_dist"
    return torch.stack([torch.cdist(v, v, compute_mode=exact).sum(1) for v in (s.values for s in made)]).mean(0)
