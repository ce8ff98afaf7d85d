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
    gradient, so nothing is sampled. T^2 as in `kl`. `standardize`: as in `kl`."""
    return kl(teacher, student, batch, temperature=temperature, standardize=standardize)
