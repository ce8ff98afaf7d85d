"""Values in whole numbers, as the integer kernels have them before they round, and how each of them rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgekd.quantization.torch_graph.modules import Value


@dataclass(frozen=True)
class Quantized:
    """A quantized value: `q` float64 tensor of whole numbers, minus the zero point already taken; real = scale * q."""

    q: torch.Tensor
    scale: np.float32
    zero: int

    def real(self) -> torch.Tensor:
        return (self.q.float() * float(self.scale)).float()


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in whole numbers, with a float32 scale per output channel (or one)."""

    q: torch.Tensor
    scale: np.ndarray
    real: torch.Tensor


@dataclass(frozen=True)
class Sum:
    """An accumulator: whole numbers [n, ...] whose unit along `axis` is a float32 product of scales; `relu`: one that
    waits."""

    q: torch.Tensor
    scale: np.ndarray
    axis: int
    relu: bool = False

    def shaped(self, values: np.ndarray) -> torch.Tensor:
        given = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        if given.numel() <= 1:
            return given
        return given.reshape([-1 if d == self.axis % self.q.ndim else 1 for d in range(self.q.ndim)])

    def real(self) -> torch.Tensor:
        found = self.q.float() * self.shaped(self.scale)
        return found.clamp_min(0) if self.relu else found


@dataclass(frozen=True)
class Pooled:
    """A sum over `count` values of one scale."""

    q: torch.Tensor
    scale: np.float32
    count: int

    def real(self) -> torch.Tensor:
        return (self.q * float(self.scale) / self.count).float()


@dataclass(frozen=True)
class Two:
    """The sum or the product of two quantized values, not yet rounded; `relu`: one that waits."""

    a: Quantized
    b: Quantized
    product: bool = False
    relu: bool = False

    def real(self) -> torch.Tensor:
        a, b = self.a.real(), self.b.real()
        found = a * b if self.product else a + b
        return found.clamp_min(0) if self.relu else found


@dataclass(frozen=True)
class Mean:
    """Means over windows of a quantized value, in float32, not yet rounded."""

    values: torch.Tensor

    def real(self) -> torch.Tensor:
        return self.values


WAITING = Sum | Pooled | Two | Mean  # what a kernel has in hand before it rounds


def real(x: Any) -> Any:
    if isinstance(x, Quantized | WAITING):
        return x.real()
    if isinstance(x, QuantizedWeight):
        return x.real
    return x


def requantize(part: Value, x: Any) -> Quantized:
    """With the quantization parameters of `part`, as the kernel that makes the value rounds."""
    scale, zero = np.float32(part.scale.item()), int(part.zero_point.item())
    if isinstance(x, Sum):
        factor = x.shaped((x.scale / scale).astype(np.float32))
        q = torch.round(x.q.float() * factor) + zero
    elif isinstance(x, Pooled):
        q = torch.round(x.q.float() * float(np.float32(x.scale / np.float32(scale * np.float32(x.count))))) + zero
    elif (
        isinstance(x, Two) and x.product
    ):  # QLinearMul, and QLinearAveragePool below, add the zero point before they round
        q = torch.round((x.a.q * x.b.q).float() * float(np.float32(x.a.scale * x.b.scale) / scale) + zero)
    elif isinstance(x, Two):
        q = sum_of_two(x.a, x.b, scale, zero)
    elif isinstance(x, Mean):
        q = torch.round(x.values / torch.tensor(scale) + zero)
    elif isinstance(x, Quantized):
        q = torch.round(x.real() / float(scale)) + zero
    else:
        q = torch.round(x / torch.tensor(scale)) + zero
    floor = zero if isinstance(x, Sum | Two) and x.relu else 0
    return Quantized(torch.clamp(q, floor, part.high).double() - zero, scale, zero)


def sum_of_two(a: Quantized, b: Quantized, scale: np.float32, zero: int) -> torch.Tensor:
    """onnxruntime's QLinearAdd: a_q r_a + (b_q r_b + (z - (r_a z_a + r_b z_b))) with r = scale / scale_out, in float32.

    Every product but r_b z_b is one with its sum (a fused multiply-add, as the kernel for AVX2 is compiled): of 20
    million sums of random parameters none came out otherwise, 60 did in plain float32, and a sum beside a tie is enough
    to set a network apart."""
    ra, rb = np.float32(a.scale / scale), np.float32(b.scale / scale)
    zeros = np.float32(np.float64(ra) * a.zero + np.float64(np.float32(rb * np.float32(b.zero))))
    fixed = np.float32(np.float32(zero) - zeros)
    first = ((b.q + b.zero) * float(rb) + float(fixed)).float()
    return torch.round(((a.q + a.zero) * float(ra) + first.double()).float())
