"""The inputs of terms on numbers and vectors: outputs and labels, or outputs of two models, of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError
from edgekd.losses._takes import BLACK
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch

CLASSES = "classes and yes-or-no labels: cross_entropy, focal from labels, kl and others from a teacher"


def numbers(signals: Signals) -> torch.Tensor:
    """The output as [B, values] in float32. Raises UsageError for scores of classes, and outputs that aren't one
    tensor."""
    import torch

    values = signals.output
    if values is None:
        raise UsageError(Problem("", BLACK, "a teacher that shows its output"))
    if not isinstance(values, torch.Tensor):
        raise UsageError(Problem("", f"takes one tensor [B, ...], not {type(values).__name__}", "write your own loss"))
    if signals.kind in ("classes", "yes_no"):
        raise UsageError(Problem("", f"takes numbers, and the output is declared as {signals.kind}", CLASSES))
    return values.float().reshape(len(values), -1)


def labels(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """The labels as [B, values] in float32. Raises UsageError where they are of another size than the output."""
    if batch.labels is None:
        raise UsageError(Problem("", "the samples have no labels", "use losses that need only a teacher"))
    wanted = batch.labels.reshape(len(batch.labels), -1)
    if wanted.shape != values.shape:
        text = f"labels have {wanted.shape[1]} values per sample, the output {values.shape[1]}"
        raise UsageError(Problem("", text, "one label for each number that the model gives"))
    return wanted.to(values.dtype)


def same(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Raises UsageError where the outputs of two models differ in size: they would be broadcast."""
    if student.shape != teacher.shape:
        text = f"takes outputs of one size, not {list(student.shape)} and {list(teacher.shape)}"
        raise UsageError(Problem("", text, "give both models the same output"))
