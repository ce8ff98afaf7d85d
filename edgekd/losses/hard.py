"""Cross-entropy with the class that the teacher predicts: works with teachers that show only labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def hard(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """-log softmax(z_s)_y per row, y the teacher's label, or the argmax of its logits: logits [B, C] -> [B].

    The teacher's part of Touvron et al. 2021 ("DeiT"), eq. 3, hard-label distillation; the labels' part is
    `cross_entropy`. Of equal logits the first class counts.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(None, label=torch.tensor([0, 1]))  # shows labels only
    >>> hard(student, teacher, batch)
    tensor([0.2395, 0.5514])
    """
    from torch.nn import functional as F

    labels = teacher.label if teacher.label is not None else scores(teacher).argmax(-1)
    return F.cross_entropy(scores(student), labels.long(), reduction="none")
