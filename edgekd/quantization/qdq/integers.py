"""Quantized tensors in numpy, and how onnxruntime's integer kernels round; `np.float32` stands wherever they round to
float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.errors import RunFailed

F = np.float32


@dataclass(frozen=True)
class Quantized:
    """A value behind DequantizeLinear: stored integers `q`, float32 `scale` (one, or one per slice along `axis`), zero
    point of the same form."""

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    axis: int = 1

    def along(self, values: np.ndarray) -> np.ndarray:
        return (
            values.reshape([-1 if d == self.axis % self.q.ndim else 1 for d in range(self.q.ndim)])
            if values.size > 1
            else values.reshape(())
        )

    def whole(self) -> np.ndarray:
        """q - zero point, int64."""
        return self.q.astype(np.int64) - self.along(self.zero).astype(np.int64)

    def real(self) -> np.ndarray:
        """DequantizeLinear (ONNX operator): (q - zero_point) * scale, float32."""
        return self.whole().astype(F) * self.along(self.scale)


@dataclass(frozen=True)
class Target:
    """Quantization parameters of a group's result: one float32 scale, one zero point, uint8 or int8."""

    scale: np.float32
    zero: int
    dtype: np.dtype

    def saturate(self, q: np.ndarray) -> np.ndarray:
        limits = np.iinfo(self.dtype)
        return np.clip(q, limits.min, limits.max).astype(self.dtype)

    def rounded(self, steps: np.ndarray) -> np.ndarray:
        """saturate(round_half_even(steps) + zero_point): the zero point is added to a whole number.
        MlasRequantizeOutput, MlasQuantizeLinear."""
        return self.saturate(np.rint(steps) + self.zero)

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """QuantizeLinear (ONNX operator): a float32 division, then `rounded`."""
        return self.rounded(real.astype(F) / self.scale)


def wrapped(sums: np.ndarray) -> np.ndarray:
    """Sums of products as an int32 accumulator holds them: modulo 2^32. Sums alone don't reach 2^31 below 66,000
    products (255 * 127 each); a bias that was cut at 2^31 and anything of its sign do."""
    return sums.astype(np.int64).astype(np.int32)


def requantized(sums: np.ndarray, scale: np.ndarray, axis: int, target: Target) -> np.ndarray:
    """int32 accumulators [...] at float32 `scale` = x_scale * w_scale (one, or one per slice along `axis`), quantized
    as the target: round(float32(sum) * (scale / y_scale)). QLinearConv and QGemm: qlinearconv.cc, quant_gemm.cc;
    MlasRequantizeOutput in quantize.cpp."""
    factor = F(scale) / target.scale
    if factor.size > 1:
        factor = factor.reshape([-1 if d == axis % sums.ndim else 1 for d in range(sums.ndim)])
    return target.rounded(wrapped(sums).astype(F) * factor)


def converted(steps: np.ndarray) -> np.ndarray:
    """float32 to the nearest int32, halves to even, as cvtps2dq does: what an int32 can't hold becomes -2^31, however
    large and positive. The kernels that convert before they saturate then give the lowest value where the highest is
    due."""
    return np.where(np.abs(steps) < 2.0**31, np.rint(steps), -(2.0**31))


def onto(x: Quantized, target: Target) -> np.ndarray:
    same = x.scale == target.scale and x.zero == target.zero and x.q.dtype == target.dtype
    return x.q if same else target.quantize(x.real())


def windows(x: np.ndarray, kernel: Sequence[int], attributes: Mapping, fill: Any) -> np.ndarray:
    """x [n, c, *s] -> what each place of the output sees [n, c, *s', *k], by the attributes strides, dilations and pads
    (begins, then ends)."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", "NOTSET", "VALID") or attributes.get(
        "ceil_mode", 0
    ):
        raise RunFailed("padding that depends on the input (auto_pad, ceil_mode) is not simulated")
    rank = len(kernel)
    pads = attributes.get("pads", [0] * (2 * rank))
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=fill)
    dilations, strides = attributes.get("dilations", [1] * rank), attributes.get("strides", [1] * rank)
    spread = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(padded, spread, tuple(range(2, 2 + rank)))
    return seen[
        (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    ]
