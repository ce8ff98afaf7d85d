"""Standardized logits, for the terms that offer it (a name with an underscore is not listed as a loss)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def standardized(logits: torch.Tensor) -> torch.Tensor:
    """(z - mean) / deviation of each row [..., C]; the deviation is the sample's (divided by C - 1), as in the authors'
    code.

    Raises ValueError for two classes or fewer: of two standardized logits only their order is left."""
    if logits.shape[-1] < 3:
        raise ValueError(f"logits of {logits.shape[-1]} classes can't be standardized: only their order would be left")
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1) + 1e-12).sqrt()
