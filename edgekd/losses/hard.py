"""Cross-entropy with the class that the teacher decides for: all that a teacher which shows only labels can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def hard(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """-log softmax(z_s)_y per row, y = argmax z_t: logits [B, C] -> [B].

    The teacher's part of Touvron et al. 2021 ("DeiT"), hard-label distillation; the labels' part is `cross_entropy`. A teacher's
    labels as one-hot rows do as its logits. Of equal logits the first class counts."""
    from torch.nn import functional as F

    return F.cross_entropy(student.output.float(), teacher.output.float().argmax(-1), reduction="none")
