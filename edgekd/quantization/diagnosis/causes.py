"""Why the values of a layer lose accuracy in int8, read from their numbers: one cause, with the figures that say so and
what edgekd would do about it. Of its weights: `weight_causes`.

The bars are plain numbers at the top of these files; each is a judgement, none follows from a theory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekd.quantization.diagnosis.weight_causes import UNEVEN, Cause, folded
from edgekd.quantization.qdq.graph import Parameters
from edgekd.quantization.qdq.pairing import Layer

FAR = 4.0  # times that the range is above the bulk of the values
BULK = 99.9  # per cent of the values that are the bulk
WIDE = 4.0  # times that the quantized range is wider than the values
OUTSIDE = 1e-3  # share of values outside the quantized range that tells of too little calibration
BITS = 5.0  # of 8 that the integers behind an activation function carry, below which its shape wastes them
# operators whose channels are the second axis
ALONG = ("Conv", "ConvTranspose", "GlobalAveragePool", "AveragePool", "MaxPool")
# operators that crowd values together; Mul ends SiLU
CROWDING = ("Gelu", "Erf", "Mul", "HardSwish", "Sigmoid", "Softmax", "Tanh")
# times that the shares outside differ between layers, where a percentile would leave the same outside each
SPREAD = 3.0


@dataclass(frozen=True)
class Seen:
    """Float values of one site: `before` quantization, and `after` it with quantization left out, [n, ...]."""

    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, layer: Layer, values: Mapping[str, np.ndarray]) -> Seen:
        return cls(values[layer.before], values[layer.after])


@dataclass(frozen=True)
class _Quantized:
    """Values beside what int8 makes of them: `low`, `high` end the quantized range; `q` the integers of `before`."""

    seen: Seen
    scale: float
    low: float
    high: float
    q: np.ndarray
    real: np.ndarray

    @classmethod
    def of(cls, parameters: Parameters, seen: Seen) -> _Quantized:
        scale, zero = float(parameters.scale[0]), float(parameters.zero_point[0])
        low, high = ((end - zero) * scale for end in parameters.limits)
        q = np.clip(np.rint(seen.before / scale) + zero, *parameters.limits)
        return cls(seen, scale, low, high, q, (q - zero) * scale)

    @property
    def steps(self) -> float:
        return (self.high - self.low) / self.scale

    @property
    def outside(self) -> np.ndarray:
        """Which values are more than half a step outside the quantized range."""
        return (self.seen.after > self.high + self.scale / 2) | (self.seen.after < self.low - self.scale / 2)

    @property
    def ends(self) -> str:
        values = self.seen.after
        covered, found = (f"[{a:.4g}, {b:.4g}]" for a, b in ((self.low, self.high), (values.min(), values.max())))
        return f"the integers cover {covered}, the values {found}"


def of_values(layer: Layer, seen: Seen, *, few: bool = False, norms: bool = True) -> Cause | None:
    """The cause in the quantization parameters of a layer's value; None if they fit. `few`: what is outside is so for
    want of calibration; `norms`: the network has batch norms, which may have been folded."""
    made = _Quantized.of(layer.parameters, seen)
    crowded = _crowded(layer.kind, made)
    if (cut := _cut(made, few)) is not None:
        return cut
    if crowded is not None and layer.kind == "Softmax":  # its parameters are given, however narrow the values
        return crowded
    values = seen.after
    found = (
        _wide(made) or _uneven_place(values, layer.kind) or _uneven_channel(layer, values, norms) or _outlier(values)
    )
    return found or crowded


def beyond(layer: Layer, seen: Seen) -> float:
    """Share of values more than half a step outside the quantized range."""
    return float(_Quantized.of(layer.parameters, seen).outside.mean())


def calibrated_on_few(shares: Mapping[str, float]) -> bool:
    """Whether the ranges of a file are too narrow because too little was seen: one range alone can't tell a percentile
    from a weak sample, as both are an end somewhere among the values; but too few samples show in most layers at once,
    and a percentile leaves a like share outside each."""
    cut = [s for s in shares.values() if s > OUTSIDE]
    return len(cut) > len(shares) / 2 and max(cut) > SPREAD * min(cut)


def _cut(made: _Quantized, few: bool) -> Cause | None:
    """Values that are cut off make most of the error."""
    error = np.square(made.real - made.seen.after, dtype=np.float64)
    leaked = (made.seen.before != made.seen.after) & (np.abs(made.real - made.seen.after) > 0.51 * made.scale)
    outside = made.outside
    cut = float(error[outside | leaked].sum() / max(float(error.sum()), 1e-300))
    if cut <= 0.5:
        return None
    if leaked.any():
        share = f"{100 * leaked.mean():.2g} % of the values are cut by the activation function, not by the integers"
        hint = 'quantize again with ranges = "minmax": the zero point is wrong'
        return Cause("clipped range", f"{made.ends}; {share}", hint)
    if not outside.any():
        return None
    text = f"{100 * outside.mean():.2g} % of the values are outside: {made.ends}"
    if few:
        more = "; most other layers' ranges are too narrow as well, each by another share"
        return Cause("calibration too small", text + more, "samples = more than now, and of all kinds")
    hint = 'ranges = "minmax" or "mse"; where training sets the ranges, observer = "learned"'
    return Cause("clipped range", text, hint)


def _crowded(kind: str, made: _Quantized) -> Cause | None:
    """An activation function that leaves most of the integers unused."""
    used, counts = np.unique(made.q, return_counts=True)
    shares = counts / counts.sum()
    carried = float(-(shares * np.log2(shares)).sum())
    if kind not in CROWDING or carried >= BITS:
        return None
    text = f"{kind} crowds its values: {len(used)} levels in use carry {carried:.2g}"
    text += f" of {np.log2(made.steps + 1):.2g} bits"
    return Cause("activation shape", text, 'ranges = "mse", or keep this layer in float')


def _wide(made: _Quantized) -> Cause | None:
    """A range that is far wider than the values."""
    values = made.seen.after
    if (made.high - made.low) / max(float(values.max()) - float(values.min()), 1e-30) <= WIDE:
        return None
    text = f"{len(np.unique(made.q))} of {round(made.steps) + 1} levels are in use: {made.ends}"
    hint = 'quantize again with ranges = "mse": the scale is too large, or calibration met an outlier'
    return Cause("wrong scale", text, hint)


def _uneven_place(values: np.ndarray, kind: str) -> Cause | None:
    found = uneven_places(values, kind)
    if found is None:
        return None
    place, reach, median = found
    text = f"place {place} of each sample reaches {reach:.4g}, the median place {median:.4g}"
    hint = 'ranges = "percentile" or "mse", or keep the layers that read it in float'
    return Cause("activation shape", f"{text}: one scale can't serve both", hint)


def _uneven_channel(layer: Layer, values: np.ndarray, norms: bool) -> Cause | None:
    channels = channel_ranges(values, layer.kind)
    if channels is None:
        return None
    top, rest = int(channels.argmax()), float(np.median(channels))
    if channels[top] <= UNEVEN * rest:
        return None
    times = f"{channels[top] / max(rest, 1e-30):.3g} times less"
    text = f"channel {top} reaches {channels[top]:.4g}, the median channel {rest:.4g}, {times}"
    if layer.weights is None or not folded(layer, top):
        return Cause("outlier channel", text, 'before = ["equalize"]')
    text += "; so are the weights and bias of that channel"
    if not norms:
        return Cause("outlier channel", text, 'before = ["equalize"]')
    more = ": a norm with a tiny variance was folded into them"
    return Cause("folded batch norm", text + more, 'before = ["equalize"]')


def _outlier(values: np.ndarray) -> Cause | None:
    bulk, most = float(np.percentile(np.abs(values), BULK)), max(float(values.max()), -float(values.min()))
    if most <= FAR * bulk:
        return None
    text = f"{BULK} % of the values are within {bulk:.4g}, the largest is {most:.4g}"
    return Cause("outlier", text, 'ranges = "percentile" or "mse"')


def channel_ranges(values: np.ndarray, kind: str = "") -> np.ndarray | None:
    """[channels] magnitude that 99 % of each channel's values stay below: one loud value is no loud channel; None where
    there are too few to compare.

    Values are [n, channels, ...] of images, [n, places, channels] of sequences, unless a convolution makes them."""
    axis = 2 if values.ndim == 3 and kind not in ALONG else 1
    if values.ndim < 2 or values.shape[axis] < 4:
        return None
    return np.percentile(np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)), 99, axis=1)


def uneven_places(values: np.ndarray, kind: str) -> tuple[int, float, float] | None:
    """(place, its magnitude, the median place's) of sequences [n, places, channels] where one place is far above the
    others, in most of its channels: a scale that covers it leaves the others few levels. None where there is no such
    place, or no sequence."""
    if values.ndim != 3 or kind in ALONG or values.shape[1] < 4:
        return None
    ranges = np.median(np.abs(values), (0, 2))
    top, rest = int(ranges.argmax()), float(np.median(ranges))
    reach = np.percentile(np.abs(values), 99, (0, 2))
    if ranges[top] <= UNEVEN * rest or reach[top] <= UNEVEN * np.median(reach):
        return None
    return top, float(reach[top]), float(np.median(reach))
