"""Keeps channels by lot: the control for every other criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def random(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores from torch's generator, which a stage seeds."""
    import torch

    return torch.rand(len(weights[0]))
