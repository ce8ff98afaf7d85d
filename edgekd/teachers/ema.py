"""A teacher whose weights are the exponential moving average of the student's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from edgekd.records import Batch, Signals


class Ema(nn.Module):
    """theta_t <- decay theta_t + (1 - decay) theta_s after every step, buffers copied (Tarvainen, Valpola 2017, "Mean
    teachers").

    `see(module, batch)` runs a module on a batch. Its state is part of the training's checkpoints."""

    see: Callable[[nn.Module, Batch], Signals]

    def __init__(self, student: nn.Module, decay: float, see: Callable[[nn.Module, Batch], Signals]):
        super().__init__()
        self.average, self.decay = copy.deepcopy(student).eval().requires_grad_(False), decay
        self.__dict__["see"] = see  # a function, not part of the state

    def forward(self, batch: Batch) -> Signals:
        self.average.eval()
        with torch.no_grad():
            return self.see(self.average, batch)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        for ours, theirs in zip(self.average.parameters(), student.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)
        for kept, current in zip(self.average.buffers(), student.buffers(), strict=True):
            kept.copy_(current)
