"""The optimizer of a training, and its learning rate over the steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.training.settings import Training


def make_optimizer(module: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Applies weight decay to matrices and kernels only, not to norms, biases and learned ranges."""
    import torch

    wanted = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in wanted if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    # on a GPU one kernel updates all weights
    return torch.optim.AdamW(groups, lr=settings.lr, fused=any(p.device.type == "cuda" for p in wanted) or None)


def pace(step: int, total: int, settings: Training) -> float:
    """The share of the peak learning rate at `step` of `total`: linear warm-up, then the schedule down to 0."""
    warm = max(1, round(settings.warmup * total)) if settings.warmup else 0
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]
