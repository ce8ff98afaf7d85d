"""The angle between the student's and the teacher's vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.losses._values import numbers, same
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def cosine(student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
    """1 - cos(z_s, z_t) per row: embeddings [B, D] of both -> [B]. The length of the vectors is free.

    Reimers and Gurevych 2019 compare embeddings so; Sanh et al. 2019, "DistilBERT", section 3, aligns hidden states so.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, None, torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    >>> teacher = Signals(torch.tensor([[0.0, 2.0], [6.0, 8.0]]))
    >>> cosine(student, teacher, batch)
    tensor([1., 0.])
    """
    from torch.nn import functional as F

    ours, theirs = numbers(student), numbers(teacher)
    same(ours, theirs)
    return 1 - F.cosine_similarity(ours, theirs, dim=-1)
