"""Keep the channels that norms scale up most."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekd.pruning import Channels


def norm_scale(group: Channels) -> torch.Tensor:
    """Absolute scale of a channel in batch norms and other norms, mean over those that it passes: Liu et al. 2017
    (network slimming, arXiv:1708.06519), without its sparse training, and compared within a group only. By `magnitude`
    where the channels pass no norm with a scale.

    >>> import torch
    >>> from edgekd.pruning import Channels, Slice
    >>> scale = torch.tensor([[0.5], [-2.0], [0.0]])  # 3 channels
    >>> group = Channels("layer", 3, (Slice("norm", "norm", "out", scale),))
    >>> norm_scale(group)
    tensor([0.5000, 2.0000, 0.0000])
    """
    import torch

    scales = [s.values.abs().mean(1) for s in group.slices if s.kind == "norm"]
    others = [s.values.square().sum(1) for s in group.slices if s.kind in ("conv", "linear")]
    return torch.stack(scales or others).mean(0)
