"""The inputs of terms on the output: scores of two classes or more, and class numbers as labels. Checked at every call,
which takes microseconds; the values of labels only on the CPU, where losses are checked before a training: reading them
from a GPU would wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch

BLACK = "the teacher shows labels only (a black box), the term needs more"
SINGLE = (
    "give the model one output per class, or say what its output is: `outputs = {...: edgekd.yes_no()}` for a logit, "
    "`edgekd.numbers()` for a number, which `mse` learns from labels and `logit_mse` from a teacher"
)
OTHERS = {
    "numbers": "mse, mae and huber learn numbers from labels, logit_mse and bounded from a teacher",
    "embeddings": "cosine and logit_mse learn embeddings from a teacher",
    "raw": "a loss of your own takes a raw output",
}
SOFT = "`cross_entropy` takes probabilities, of an output declared as edgekd.classes(); class numbers are y.argmax(1)"
NUMBERED = 'class numbers are integers 0, 1, ...; values to be predicted need a loss of your own: use = "mymodule:loss"'


def scores(signals: Signals) -> torch.Tensor:
    """The output [B, ..., C] in float32. Raises UsageError if it has fewer than two classes: a softmax over one number
    is always 1."""
    import torch

    z = signals.output
    if signals.kind not in ("", "classes", "yes_no"):
        raise UsageError(
            Problem("", f"takes scores of classes, and the output is declared as {signals.kind}", OTHERS[signals.kind])
        )
    if z is None:
        raise UsageError(Problem("", BLACK, 'use = "hard" learns from its labels'))
    if not isinstance(z, torch.Tensor):
        raise UsageError(
            Problem(
                "",
                f"takes one tensor of logits [B, C], not {type(z).__name__}",
                "write your own loss, which selects a head",
            )
        )
    if z.ndim < 2 or z.shape[-1] < 2:
        raise UsageError(Problem("", f"takes logits [B, C] of two classes or more, not {list(z.shape)}", SINGLE))
    return z.float()


def soft_labels(student: Signals, batch: Batch, classes: int) -> torch.Tensor | None:
    """The labels [B, C] of an output that is declared as classes(), where they are probabilities of its classes."""
    labels = batch.labels
    if student.kind != "classes" or labels is None or not labels.is_floating_point() or batch.blank is not None:
        return None
    return labels.float() if labels.ndim == 2 and labels.shape[1] == classes else None


def class_numbers(batch: Batch, classes: int) -> torch.Tensor:
    """The labels as int64. Raises UsageError if they are not integers from 0 to `classes` - 1, one per row."""
    labels = batch.labels
    if labels is None:
        raise UsageError(Problem("", "the samples have no labels", "use losses that need only a teacher"))
    if batch.blank is not None:
        raise UsageError(Problem("", "takes a label for each row, and labels are strings", "`ctc` learns strings"))
    kind = str(labels.dtype).removeprefix("torch.")
    if labels.ndim > 1 and labels.shape[0] == len(labels.reshape(-1)):
        raise UsageError(
            Problem("", f"labels have shape [B, {labels.shape[1]}], not one class number per row", "y.ravel()")
        )
    if (
        labels.ndim == 2
        and labels.shape[1] == classes
        and labels.device.type == "cpu"
        and bool(((labels == 0) | (labels == 1)).all() & (labels.sum(1) == 1).all())
    ):
        raise UsageError(
            Problem("", f"labels have shape [B, {classes}], one-hot: not one class number per row", "y.argmax(1)")
        )
    if labels.ndim == 2 and labels.shape[1] == classes and labels.is_floating_point():
        text = f"labels have shape [B, {classes}], soft: the term takes one class number per row"
        raise UsageError(Problem("", text, SOFT))
    if labels.is_floating_point() or labels.is_complex() or kind == "bool":
        raise UsageError(
            Problem("", f"labels are {kind}, not class numbers", NUMBERED if kind != "bool" else "y.astype(int)")
        )
    if labels.device.type == "cpu" and len(labels.reshape(-1)) and (labels.min() < 0 or labels.max() >= classes):
        text = f"labels are from {labels.min()} to {labels.max()}, but the outputs have {classes} classes"
        raise UsageError(Problem("", text, "number the classes from 0"))
    return labels.long()
