"""Cross-entropy with the teacher's softened distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def soft_cross_entropy(
    student: Signals, teacher: Signals, batch: Batch, *, temperature: Annotated[float, Gt(0)] = 4.0
) -> torch.Tensor:
    """-T^2 sum_c p_c log q_c per row, p = softmax(z_t / T), q = softmax(z_s / T): logits [B, C] -> [B].

    Hinton, Vinyals, Dean 2015, section 2. It is `kl` plus T^2 times the teacher's entropy: the same gradient, but not 0
    at its minimum.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> soft_cross_entropy(student, teacher, batch, temperature=1.0)
    tensor([0.3671, 0.6152])
    """
    from torch.nn import functional as F

    q = F.log_softmax(scores(student) / temperature, dim=-1)
    p = F.softmax(scores(teacher) / temperature, dim=-1)
    return -(temperature**2) * (p * q).sum(-1)
