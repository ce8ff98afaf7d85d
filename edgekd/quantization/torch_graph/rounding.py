"""Rounding in training: forward passes that quantize, with gradients that go through."""

from __future__ import annotations

from typing import Any

import torch


def number(x: torch.Tensor, scale: torch.Tensor) -> Any:
    """The scale [1] as a number to compute x with; on a GPU as a tensor, which gives the same float32 values. (A tensor
    beside a half-precision x would be rounded to its type.)"""
    return scale.item() if x.device.type == "cpu" or x.dtype != torch.float32 else scale.detach().reshape(())


class Rounded(torch.autograd.Function):
    """x quantized and dequantized, by passes that torch vectorizes (its fused operator does not, keeps a mask, and
    makes steps under 6.1e-5 coarser).

    The gradient passes straight through inside the range and not outside (Jacob et al. 2018); that of the scale is
    LSQ's (Esser et al. 2020, equation 3): (rounded - x) / scale inside, the bound in steps outside, times `factor`.
    `step`: the number in `scale`, where it is known; it is not read from a GPU, which would have to be waited for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero: int,
        high: int,
        factor: float | None,
        step: float | None = None,
    ) -> torch.Tensor:
        step = number(x, scale) if step is None else step
        rounded = x.mul(1 / step).round_().clamp_(-zero, high - zero).mul_(step)
        ctx.save_for_backward(x, *([rounded] if factor is not None else []))
        ctx.step, ctx.factor, ctx.ends = step, factor, ((-zero - 0.5) * step, (high - zero + 0.5) * step)
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, *kept = ctx.saved_tensors
        low, high = ctx.ends
        if isinstance(low, torch.Tensor):
            inside = torch.where((x <= low) | (x >= high), 0, gradient)
        else:
            inside = torch.ops.aten.hardtanh_backward(gradient, x, low, high)
        if ctx.factor is None:
            return inside, None, None, None, None, None
        scale = torch.sum(gradient * kept[0]) - torch.sum(inside * x)
        return inside, (scale * (ctx.factor / ctx.step)).reshape(1), None, None, None, None


class Straight(torch.autograd.Function):
    """x at whole multiples of `scale`, at most `high` of them; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, high: int) -> torch.Tensor:
        return x.div(scale).round_().clamp_(-high, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        return gradient, None, None


class Stepped(torch.autograd.Function):
    """A weight at whole multiples of learned scales [1, channels, 1], with the gradients of `Rounded`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, high: int, factor: float) -> torch.Tensor:
        rounded = x.div(scale).round_().clamp_(-high, high).mul_(scale)
        ctx.save_for_backward(x, rounded, scale)
        ctx.high, ctx.factor = high, factor
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, rounded, scale = ctx.saved_tensors
        inside = torch.where(x.abs() < scale * (ctx.high + 0.5), gradient, 0)
        steps = (gradient * rounded - inside * x).sum_to_size(scale.shape) / scale
        return inside, steps * ctx.factor, None, None
