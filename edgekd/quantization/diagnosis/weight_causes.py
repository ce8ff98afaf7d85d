"""Why the weights of a layer lose accuracy in int8, read from their numbers: one cause, with the figures that say so
and what edgekd would do about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.quantization.qdq.pairing import Layer, Weights

UNEVEN = 8.0  # times that a channel's range is above the others' before it counts as an outlier
LEVELS = 16  # levels in use below which 8 bits are wasted


@dataclass(frozen=True)
class Cause:
    """`name` of the class, `evidence` with its figures, `fix` as a recipe says it."""

    name: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class _Rows:
    """Weights as [channels, rest]: `plain` float, `dequantized` and `stored` ones; `scale` [channels]; `limit` of the
    integers."""

    plain: np.ndarray
    dequantized: np.ndarray
    stored: np.ndarray
    scale: np.ndarray
    limit: int

    @property
    def ranges(self) -> np.ndarray:
        return np.abs(self.plain).max(1)


def of_weights(layer: Layer) -> Cause | None:
    """The cause in the quantization of a layer's weights; None if they are the float ones rounded to 8 bits."""
    w = layer.weights
    rows = _Rows(*rows_of(w), limit=127 if w.stored.dtype == np.int8 else 255)
    one = w.axis is None or np.all(rows.scale == rows.scale[0])
    return (_one_scale(rows, layer.depthwise) if one else None) or _clipped(rows) or _scaled(rows) or _coarse(rows)


def _one_scale(w: _Rows, depthwise: bool) -> Cause | None:
    """One scale for channels of unlike ranges."""
    ranges, alive = w.ranges, w.ranges[w.ranges > 0]
    uneven = float(ranges.max() / max(float(alive.min(initial=np.inf)), 1e-30)) if len(alive) else 1.0
    if uneven <= UNEVEN:
        return None
    ends = f"from {alive.min():.4g} to {ranges.max():.4g} ({uneven:.3g} times)"
    text = f"one scale for {len(ranges)} channels whose ranges go {ends}, median {float(np.median(ranges)):.4g}"
    name = "per-tensor weights on depthwise" if depthwise else "outlier channel"
    return Cause(name, text, "quantize again with a scale per output channel")


def _clipped(w: _Rows) -> Cause | None:
    """Weights at the end of the integer range that are larger in float."""
    pinned = np.abs(w.stored) >= w.limit
    clipped = (pinned & (np.abs(w.plain) > np.abs(w.dequantized) + w.scale[:, None])).mean(1)
    if clipped.max() <= 0.02:
        return None
    at = int(clipped.argmax())
    ends = f"up to {w.ranges[at]:.4g}, it ends at {w.limit * w.scale[at]:.4g}"
    text = f"{100 * clipped[at]:.2g} % of the weights of channel {at} are outside: {ends}"
    hint = "quantize again: a weight's scale is its channel's largest magnitude / 127"
    return Cause("clipped range", text, hint)


def _scaled(w: _Rows) -> Cause | None:
    """Integers that are right with another scale than the stored one."""
    wrong = (np.abs(w.dequantized - w.plain) / w.scale[:, None] > 1.01).mean(1)
    if wrong.max() <= 0.2:
        return None
    at = int(wrong.argmax())
    gain = float((w.dequantized[at] * w.plain[at]).sum() / max(float(np.square(w.plain[at]).sum()), 1e-30))
    if abs(gain - 1) <= 0.05:  # nearer to 1 they are other weights, fine-tuned ones, and not scaled
        return None
    text = f"the stored weights of channel {at} times their scale are {gain:.3g} times the float ones"
    return Cause("wrong scale", text, "quantize again: the channel's scale is wrong")


def _coarse(w: _Rows) -> Cause | None:
    """Few of the integers are in use."""
    used, alive = np.abs(w.stored).max(1), w.ranges > 0
    if not alive.any():
        return None
    if np.median(used[alive]) < LEVELS:
        return Cause("few bits", f"the weights use {2 * int(used.max()) + 1} levels", "weight_bits = 8")
    if used[alive].min() * 2 + 1 >= LEVELS:
        return None
    at = int(np.where(alive, used, np.inf).argmin())
    text = f"channel {at} uses {2 * int(used[at]) + 1} levels of {2 * w.limit + 1}"
    return Cause("wrong scale", text, "quantize again: the channel's scale is too large")


def folded(layer: Layer, channel: int) -> bool:
    """Whether both weights and bias of a channel are far above the others': a division by a small deviation does this
    to both."""
    ranges = np.abs(rows_of(layer.weights)[0]).max(1)
    if layer.bias is None or len(layer.bias) != len(ranges):
        return False
    bias = np.abs(layer.bias)
    return bool(ranges[channel] > UNEVEN * np.median(ranges) and bias[channel] > UNEVEN * np.median(bias))


def rows_of(w: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Float, dequantized and stored weights as [channels, rest], and the scales [channels]; without an axis channels
    are the first."""
    axis = 0 if w.axis is None else w.axis
    made = [
        np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (w.plain, w.dequantized, w.stored.astype(np.int32))
    ]
    return *made, np.broadcast_to(w.scale, (len(made[0]),)).astype(np.float32)
