"""What ensembles of distributions are given: scores of classes, of every teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def is_soft(batch: Batch) -> bool:
    """Whether the labels of rows are probabilities of classes [B, C]."""
    return bool(batch.labels.ndim == 2 and batch.labels.is_floating_point())


def targets(batch: Batch) -> torch.Tensor:
    """The labels as torch's cross_entropy takes them: class numbers [B], or probabilities [B, C] in float32."""
    found: torch.Tensor = batch.labels.float() if is_soft(batch) else batch.labels.long()
    return found


def class_numbers(batch: Batch) -> torch.Tensor:
    """Class numbers [B]; of soft labels the most probable class."""
    found: torch.Tensor = batch.labels.argmax(1) if is_soft(batch) else batch.labels.long()
    return found


def check_scores(signals: Mapping[str, Signals]) -> None:
    """Raises ValueError where a teacher shows labels only, or its output is declared as no scores: a softmax of one
    number is always 1."""
    check_shown(signals)
    for signal in signals.values():
        if signal.kind not in ("", "classes", "yes_no"):
            raise ValueError(
                f"takes scores of classes, and the output is declared as {signal.kind}; mean_logits takes any output"
            )


def check_shown(signals: Mapping[str, Signals]) -> None:
    """Raises ValueError where a teacher shows labels only."""
    for name, signal in signals.items():
        if signal.output is None:
            raise ValueError(
                f"the teacher {name} shows labels only (a black box): several teachers are combined by their outputs; "
                'name one for each loss, { use = "hard", teacher = "..." }'
            )
