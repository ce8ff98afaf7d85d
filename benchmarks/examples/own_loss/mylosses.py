"""Losses of one's own."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch.nn import functional as F

from edgekd import Batch, Signals


def cosine(student: Signals, teacher: Signals, batch: Batch, *, power: Annotated[float, Gt(0)] = 1.0) -> torch.Tensor:
    """(1 - cosine of the centred logits) ** power, per row: [B, C] -> [B]."""
    centred = [z.output.float() - z.output.float().mean(-1, keepdim=True) for z in (student, teacher)]
    return (1 - F.cosine_similarity(*centred, dim=-1)).clamp_min(1e-6) ** power
