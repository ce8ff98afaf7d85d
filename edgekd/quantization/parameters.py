"""Quantization parameters of a range: its scale and zero point, and which clips they make superfluous."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PAIR = 128  # steps: 255 * 128 < 2**15
SMALLEST = 2.0**-100  # of a scale: far from float32's subnormals, so that products of two are normal too
BIAS_BITS = 30  # a bias stays below 2**30 steps: the accumulator has room for the sum
BIAS_HIGH = 2**31 - 128  # the largest float32 that an int32 holds


@dataclass(frozen=True)
class Limits:
    """What is known of a value before any data. `low`, `high`: a clip makes it and lets nothing else through; `share`:
    a softmax makes it, and onnxruntime's integer kernel is right for a scale of 1/256 and the zero point 0 only (with
    others it wraps around or rounds down); `output`: it is the graph's, whose scale training must not widen."""

    low: float = -math.inf
    high: float = math.inf
    share: bool = False
    output: bool = False


def scale_and_zero_point(low: float, high: float, steps: int, limits: Limits = Limits()) -> tuple[float, int]:
    """Those of unsigned integers 0 to `steps` over [low, high] widened to hold 0; the scale is a float32."""
    if limits.share:
        return 1 / (steps + 1), 0
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = float(np.float32((high - low) / steps))
    if scale < SMALLEST:
        return 1.0, 0  # a value that is always zero
    # a symmetric range has its zero half between two steps: one end would stick out
    for found in (scale, float(np.float32(scale * (1 - 2**-20)))):
        zero_point = int(min(max(round(-low / found), 0), steps))
        if clips_itself(limits, found, zero_point, steps):
            return found, zero_point
    return scale, int(min(max(round(-low / scale), 0), steps))


def exactly(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n] as (int32, powers of two) whose products are the same numbers, but for what is below 2^-126."""
    exponents = np.maximum(np.frexp(numbers)[1] - 24, -126)
    return np.ldexp(numbers.astype(np.float64), -exponents).astype(np.int32), np.ldexp(np.float32(1), exponents)


def weight_integers(weight: np.ndarray, scale: np.ndarray, axis: int | None, low: int, high: int) -> np.ndarray:
    """int8 of a weight at float32 scales [1], or [slices] along `axis`: clamp(round_half_even(w / s)), as ONNX
    QuantizeLinear defines it."""
    shaped = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    return np.clip(np.round(weight / shaped), low, high).astype(np.int8)


def bias_integers(bias: np.ndarray, x_scale: np.ndarray, weight_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int32 of a bias, float32 scales of the same shape: the products of its operands' scales)."""
    scale = np.broadcast_to(np.float32(x_scale) * np.float32(weight_scale), bias.shape)
    return np.clip(np.round(bias / scale), -(2.0**31), BIAS_HIGH).astype(np.int32), scale


def clips_itself(limits: Limits, scale: float, zero_point: int, steps: int) -> bool:
    """Whether rounding to 0 ... `steps` clips by itself as the clip before it does, which is then not computed: its
    limits are the ends of the integer range, rounded, or lie beyond them."""
    if limits.low == -math.inf and limits.high == math.inf:
        return True
    ends = np.round(np.array([limits.low, limits.high], np.float32) / np.float32(scale)) + zero_point
    return bool(ends[0] <= 0 and ends[1] >= steps)
