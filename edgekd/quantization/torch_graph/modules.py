"""Fake quantization of one value, one weight, one bias, as modules.

In evaluation the arithmetic is what ONNX defines: q = clamp(round_half_even(x / s) + z), x = (q - z) s; in training x /
s is x (1 / s), which differs near ties only, and gradients pass straight through the rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from edgekd.errors import Problem, RunFailed
from edgekd.quantization.histogram import Histogram
from edgekd.quantization.parameters import BIAS_HIGH, PAIR, SMALLEST, Limits, scale_and_zero_point
from edgekd.quantization.torch_graph.rounding import Rounded, Stepped, Straight

AVERAGE = 0.02  # share of a new batch in the moving range
FURTHEST = 64.0  # times that a learned scale may leave the calibrated one behind, either way


class Value(nn.Module):
    """Fake quantization of one value [...]: unsigned, one scale. `mode` observe (histogram, passes through) | train |
    exact."""

    def __init__(self, name: str, bits: int, learned: bool = False, limits: Limits = Limits()):  # noqa: B008  (frozen)
        super().__init__()
        self.name, self.high, self.limits, self.mode = name, 2**bits - 1, limits, "observe"
        self.learned = learned and not limits.share
        self.widest = math.inf  # scale that a learned one does not pass
        self.histogram = Histogram()
        self.read = dict[str, tuple[torch.Tensor, int, float]]()
        self.register_buffer("low_value", torch.zeros(1))
        self.register_buffer("high_value", torch.zeros(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("follows", torch.ones(1, dtype=torch.int32))
        self.register_buffer("scale", torch.ones(1))
        if self.learned:
            self.gain = nn.Parameter(torch.ones(1))

    def number(self, name: str) -> float:
        """The number in a buffer. It is read from its device only where something else has written it: reading waits
        for a GPU."""
        if torch.compiler.is_compiling():  # every new version would be compiled again
            return getattr(self, name).item()
        tensor, kept = getattr(self, name), self.read.get(name)
        if kept is None or kept[0] is not tensor or kept[1] != tensor._version:
            kept = self.read[name] = (tensor, tensor._version, tensor.item())
        return kept[2]

    def set_number(self, name: str, value: float) -> None:
        """Writes a number into a buffer, as float32 where that is its type."""
        tensor = getattr(self, name).fill_(value)
        if torch.compiler.is_compiling():
            return
        kept = float(np.float32(value)) if tensor.is_floating_point() else value
        self.read[name] = (tensor, tensor._version, kept)

    def step(self) -> torch.Tensor:
        """[1] scale in use. What is learned is its ratio to the calibrated one, so that a learning rate means the same
        everywhere."""
        if not self.learned:
            return self.scale
        self.gain.data.clamp_(1 / FURTHEST, min(FURTHEST, self.widest / self.number("scale")))
        return self.scale * self.gain

    def set_range(self, low: float, high: float) -> None:
        """Takes the quantization parameters that cover [low, high] and hold zero exactly."""
        scale, zero_point = scale_and_zero_point(low, high, self.high, self.limits)
        self.set_number("scale", scale)
        self.set_number("zero_point", zero_point)
        self.set_number("low_value", min(low, 0.0))
        self.set_number("high_value", max(high, 0.0))
        if self.limits.output:
            self.widest = scale
        elif math.isfinite(self.limits.low) and math.isfinite(self.limits.high):
            self.widest = scale_and_zero_point(self.limits.low, self.limits.high, self.high, self.limits)[0]

    def follow(self, x: torch.Tensor) -> None:
        """Moves the range towards that of `x` by a moving average."""
        low, high = torch.stack(torch.aminmax(x.detach())).tolist()
        if not math.isfinite(high - low):
            message = f"training diverged: the values at `{self.name}` are not finite"
            raise RunFailed(
                Problem(
                    "",
                    message,
                    "lower `lr`, lengthen `warmup` or set `clip`; folded norms want smaller steps than training did",
                )
            )
        low = self.number("low_value") + AVERAGE * (min(low, 0.0) - self.number("low_value"))
        high = self.number("high_value") + AVERAGE * (max(high, 0.0) - self.number("high_value"))
        self.set_number("low_value", low)
        self.set_number("high_value", high)
        scale, zero_point = scale_and_zero_point(low, high, self.high, self.limits)
        self.set_number("scale", scale)
        self.set_number("zero_point", zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "observe":
            if not x.isfinite().all():
                message = f"calibration met values that are not finite at `{self.name}`"
                raise RunFailed(Problem("", message, "look for NaN in the inputs, or a layer that overflows"))
            self.histogram.add(x.detach().float().cpu().numpy())
            return x
        if self.mode == "exact":
            q = torch.clamp(torch.round(x / self.scale) + self.zero_point, 0, self.high)
            return (q - self.zero_point) * self.scale
        if self.learned:
            # the step's gradient is scaled by 1 / sqrt(values of a sample * steps) (Esser et al. 2020, section 2.2)
            factor = (x.numel() / len(x) * self.high) ** -0.5
            return Rounded.apply(x, self.step(), self.number("zero_point"), self.high, factor)
        if self.training and not self.limits.share and self.number("follows"):
            self.follow(x)
        return Rounded.apply(x, self.scale, self.number("zero_point"), self.high, None, self.number("scale"))


class Weight(nn.Module):
    """Fake quantization of a weight: signed, symmetric, one scale per output channel (`axis` -1: one in all). `order`:
    see sites.Weight, given where no two neighbours of one sign may add up to more than PAIR steps."""

    def __init__(
        self, name: str, axis: int, bits: int, learned: bool, weight: torch.Tensor, order: tuple[int, ...] | None = None
    ):
        super().__init__()
        self.name, self.axis, self.high, self.mode, self.learned = name, axis, 2 ** (bits - 1) - 1, "observe", learned
        self.order = order if 2 * self.high > PAIR else None
        self.floor: torch.Tensor | None = None
        self.register_buffer("scale", self.widest(weight.detach()))
        if learned:
            self.gain = nn.Parameter(torch.ones_like(self.scale))

    def step(self) -> torch.Tensor:
        """[channels] scales in use; `gain` is what is learned of them."""
        if not self.learned:
            return self.scale
        self.gain.data.clamp_(1 / FURTHEST, FURTHEST)
        step = self.scale * self.gain
        return step if self.floor is None else torch.maximum(step, self.floor)

    def bound(self, weight: torch.Tensor) -> None:
        """A learned step goes down to where `weight`'s neighbours together reach PAIR steps, not below."""
        self.floor = None if self.order is None else self.widest(weight.detach())

    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """[channels] scales that no weight exceeds. A dead channel takes the widest of the others: any scale holds its
        zeros."""
        if self.order is not None:
            # each of two may be rounded up, even by a whole step
            scale = pairs(weight.permute(self.order).flatten(1)).amax(1) / (PAIR - 2)
            scale = scale if self.axis >= 0 else scale.amax().reshape(1)
        else:
            dims = [d for d in range(weight.ndim) if d != self.axis]
            scale = weight.abs().amax(dims).reshape(-1) / self.high
        largest = scale.max()
        return torch.where(scale > SMALLEST, scale, torch.where(largest > SMALLEST, largest, 1.0))

    def shaped(self, like: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """[1, channels, 1] scales beside a weight [..., channels, ...]"""
        return (self.scale if scale is None else scale).reshape([-1 if d == self.axis else 1 for d in range(like.ndim)])

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.mode == "observe":
            return weight
        if self.mode == "exact":
            scale = self.shaped(weight)
            return torch.clamp(torch.round(weight / scale), -self.high, self.high) * scale
        if self.learned:
            self.bound(weight)
            return Stepped.apply(
                weight,
                self.shaped(weight, self.step()),
                self.high,
                (weight.numel() / len(self.scale) * self.high) ** -0.5,
            )
        self.scale.copy_(self.widest(weight.detach()))
        return Straight.apply(weight, self.shaped(weight), self.high)  # nothing is outside the range


def pairs(rows: torch.Tensor) -> torch.Tensor:
    """[outputs, pairs]: of neighbours (0, 1), (2, 3), ... of rows [outputs, sum] the sum of those above zero or of
    those below, whichever is greater: times an activation of at most 255 it is the furthest that their products get."""
    rows = nn.functional.pad(rows, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2))
    return torch.maximum(rows.clamp_min(0).sum(2), -rows.clamp_max(0).sum(2))


class Bias(nn.Module):
    """A bias rounded to int32 at the product of its operands' scales, the gradient passed straight through."""

    def __init__(self, value: Value, weight: Weight):
        super().__init__()
        self.operands = (value, weight)  # a tuple: they are modules of the graph, not of this one
        self.mode = "observe"

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        if self.mode == "observe":
            return bias
        return Straight.apply(bias, (self.operands[0].step() * self.operands[1].step()).detach(), BIAS_HIGH)
