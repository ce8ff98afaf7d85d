"""Keep channels at random: a control for other criteria."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekd.pruning import Channels


def random(group: Channels) -> torch.Tensor:
    """Uniform scores from torch's generator, which the stage seeds.

    >>> import torch
    >>> from edgekd.pruning import Channels, Slice
    >>> weight = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])  # 3 channels
    >>> group = Channels("layer", 3, (Slice("layer", "linear", "out", weight),))
    >>> random(group).shape
    torch.Size([3])
    """
    import torch

    return torch.rand(group.channels)
