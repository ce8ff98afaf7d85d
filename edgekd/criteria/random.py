"""Keep channels at random: the control that shows what another criterion is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekd.pruning import Channels


def random(group: Channels) -> torch.Tensor:
    """Uniform scores from torch's generator, which the stage seeds."""
    import torch

    return torch.rand(group.channels)
