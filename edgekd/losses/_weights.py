"""Weights of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError

if TYPE_CHECKING:
    import torch


def of_classes(weights: Sequence[float], logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The weight of each row's label [B]; 1 where none are given. Raises UsageError for another number of weights than
    classes, and for negative ones."""
    if not weights:
        return logits.new_ones(len(labels))
    if len(weights) != logits.shape[-1]:
        text = f"{len(weights)} weights for {logits.shape[-1]} classes"
        raise UsageError(Problem("", text, "one weight for each class; two for yes-or-no labels, of no and of yes"))
    if min(weights) < 0 or not max(weights) > 0:
        raise UsageError(Problem("", f"weights {list(weights)} are not positive", "numbers of at least 0, one above"))
    return logits.new_tensor(weights)[labels]
