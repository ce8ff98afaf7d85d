"""KL to the teacher at a temperature that is learned adversarially: the task gets harder during training."""

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from edgekd.losses.kl import kl
from edgekd.records import Batch, Signals


class CurriculumKl(nn.Module):
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) per row with T = low + span x sigmoid(theta), theta learned: logits
    [B, C] -> [B].

    Li et al. 2023, "Curriculum Temperature for Knowledge Distillation" (CTKD), the global form: theta climbs the
    gradient that the student descends, times lambda, which rises from 0 to `force` by half a cosine over the first
    share `ramp` of the training. Theirs are T from 1 to 21 and ten of 240 epochs of ramp; theta begins where T is 1 +
    span / 2 there, at `start` here.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> teacher = Signals(torch.tensor([[4.0, 1.0, 0.0], [0.0, 4.0, 1.0]]))
    >>> loss = CurriculumKl(student, teacher, batch, start=4.0)  # begins as `kl` at temperature 4
    >>> loss(student, teacher, batch).detach()
    tensor([0.3256, 0.8143])
    """

    changing: ClassVar = ("force",)

    def __init__(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        *,
        start: Annotated[float, Gt(1), Le(20)] = 4.0,
        span: Annotated[float, Ge(1), Le(100)] = 20.0,
        ramp: Annotated[float, Gt(0), Le(1)] = 0.05,
        force: Annotated[float, Ge(0)] = 1.0,
    ):
        super().__init__()
        if not 1 < start < 1 + span:
            raise ValueError(f"start {start} is not between 1 and 1 + span = {1 + span}")
        place = (start - 1) / span
        self.theta = nn.Parameter(torch.tensor(math.log(place / (1 - place))))
        self.span, self.ramp, self.force, self.share = span, ramp, force, 0.0

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
        strength = self.force * (1 - math.cos(math.pi * min(1.0, self.share / self.ramp))) / 2
        return kl(student, teacher, batch, temperature=1 + self.span * Against.apply(self.theta, strength).sigmoid())


class Against(torch.autograd.Function):
    """The identity, with a reversed and scaled gradient (Ganin, Lempitsky 2015)."""

    @staticmethod
    def forward(context, x: torch.Tensor, strength: float) -> torch.Tensor:
        context.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -context.strength * gradient, None
