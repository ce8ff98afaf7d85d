"""Cross-entropy with the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Lt

from edgekd.losses._takes import class_numbers, scores, soft_labels
from edgekd.losses._weights import of_classes
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def cross_entropy(
    student: Signals,
    teacher: Signals | None,
    batch: Batch,
    *,
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
    weights: tuple[float, ...] = (),
) -> torch.Tensor:
    """-w_y sum_c t_c log softmax(z)_c per row: student logits [B, C], labels [B] or [B, C] -> [B].

    t is the label's one-hot, mixed with the uniform distribution at share `smoothing` (Szegedy et al. 2016, eq. 3).
    `weights`: w of each class, by the row's label; of yes-or-no labels (no, yes), so (1, w) is a binary cross-entropy
    whose positive labels count w times. Rows are divided by their number, not by the sum of their weights. The loss of
    a soft label [B, C] is the mean of the losses of all classes y by their probabilities.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> cross_entropy(student, None, batch)
    tensor([0.2395, 0.5514])
    """
    import torch
    from torch.nn import functional as F

    z = scores(student)
    soft = soft_labels(student, batch, z.shape[1])
    if soft is not None:
        if weights:
            soft = soft * of_classes(weights, z, torch.arange(z.shape[1], device=z.device))
        uniform = soft.sum(1, keepdim=True) / z.shape[1]
        return -(((1 - smoothing) * soft + smoothing * uniform) * F.log_softmax(z, 1)).sum(1)
    wanted = class_numbers(batch, z.shape[1])
    losses = F.cross_entropy(z, wanted, reduction="none", label_smoothing=smoothing)
    return losses * of_classes(weights, z, wanted) if weights else losses
