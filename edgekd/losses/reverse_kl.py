"""Kullback-Leibler divergence from the student's softened distribution to the teacher's: the student keeps to what the
teacher allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from edgekd.losses.kl import kl
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def reverse_kl(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    temperature: Annotated[float, Gt(0)] = 4.0,
    standardize: bool = False,
) -> torch.Tensor:
    """T^2 KL(softmax(z_s / T) || softmax(z_t / T)) per row: logits [B, C] -> [B].

    The divergence that Gu et al. 2024 ("MiniLLM") minimise, here of one distribution over classes and with its exact
    gradient, so nothing is sampled. T^2 as in `kl`. `standardize`: as in `kl`.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> reverse_kl(student, teacher, batch, temperature=1.0)
    tensor([0.1459, 0.5741])
    """
    return kl(teacher, student, batch, temperature=temperature, standardize=standardize)
