"""Keeps the channels with the largest weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def magnitude(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of a channel in each layer, over that layer's mean norm, averaged over the layers of the group
    (Fang et al. 2023, "DepGraph", section 3.3: group importance)."""
    norms = [w.norm(dim=1) for w in weights]
    return sum(n / n.mean().clamp_min(1e-12) for n in norms) / len(norms)
