"""Why a layer loses in int8, read from its numbers: one cause per lattice, with the figures that say so and what edgekd
would do about it.

The bars are plain numbers at the top of this file; each is a judgement, none follows from a theory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekd.quantization.qdq.pairing import Layer, Weights

UNEVEN = 8.0  # times that a channel's range is above the others' before it counts as an outlier
FAR = 4.0  # times that the range is above the bulk of the values
BULK = 99.9  # per cent of the values that are the bulk
WIDE = 4.0  # times that a lattice is wider than the values
LEVELS = 16  # levels in use below which a lattice of 8 bits is dead
OUTSIDE = 1e-3  # share of values outside the lattice that tells of too little calibration
BITS = 5.0  # of 8 that the codes of a bent activation carry, below which its shape wastes them
# operators whose channels are the second axis
ALONG = ("Conv", "ConvTranspose", "GlobalAveragePool", "AveragePool", "MaxPool")
# operators that crowd values together; Mul ends SiLU
BENT = ("Gelu", "Erf", "Mul", "HardSwish", "Sigmoid", "Softmax", "Tanh")
# times that the shares outside differ between layers, where a percentile would leave the same outside each
SPREAD = 3.0


@dataclass(frozen=True)
class Cause:
    """`name` of the class, `evidence` with its figures, `fix` as a recipe says it."""

    name: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Seen:
    """Float values of one site: `before` the lattice, and `after` it with the lattice left out, [n, ...]."""

    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, layer: Layer, values: Mapping[str, np.ndarray]) -> Seen:
        return cls(values[layer.before], values[layer.after])


def of_values(layer: Layer, seen: Seen, *, few: bool = False) -> Cause | None:
    """The cause in the lattice of a layer's value; None if the lattice fits. `few`: what is outside is so for want of
    calibration."""
    scale, zero = float(layer.parameters.scale[0]), float(layer.parameters.zero_point[0])
    low, high = ((end - zero) * scale for end in layer.parameters.limits)
    values = seen.after
    least, most = float(values.min()), float(values.max())
    codes = np.clip(np.rint(seen.before / scale) + zero, *layer.parameters.limits)
    error = np.square((codes - zero) * scale - values, dtype=np.float64)
    outside = (values > high + scale / 2) | (values < low - scale / 2)
    leaked = (seen.before != values) & (np.abs((codes - zero) * scale - values) > 0.51 * scale)
    cut = float(error[outside | leaked].sum() / max(float(error.sum()), 1e-300))
    ends = f"the lattice covers [{low:.4g}, {high:.4g}], the values [{least:.4g}, {most:.4g}]"
    if leaked.any() and cut > 0.5:
        text = f"{ends}; {100 * leaked.mean():.2g} % of the values are cut by the activation, not by the lattice"
        return Cause("clipped range", text, 'quantize again with ranges = "minmax": the zero point is wrong')
    if outside.any() and cut > 0.5:
        text = f"{100 * outside.mean():.2g} % of the values are outside: {ends}"
        if few:
            more = "; most other layers' lattices are too narrow as well, each by another share"
            return Cause("calibration too small", text + more, "samples = more than now, and of all kinds")
        return Cause(
            "clipped range", text, 'ranges = "minmax" or "mse"; where training sets the ranges, observer = "learned"'
        )
    used, counts = np.unique(codes, return_counts=True)
    used, carried = len(used), float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())
    bent = None
    if layer.kind in BENT and carried < BITS:
        text = (
            f"{layer.kind} crowds its values: {used} levels in use carry {carried:.2g} of "
            f"{np.log2((high - low) / scale + 1):.2g} bits"
        )
        bent = Cause("activation shape", text, 'ranges = "mse", or keep this layer in float')
    if bent is not None and layer.kind == "Softmax":  # its lattice is given, however narrow the values
        return bent
    reach = (high - low) / max(most - least, 1e-30)
    if reach > WIDE:
        text = f"{used} of {round((high - low) / scale) + 1} levels are in use: {ends}"
        return Cause(
            "dead lattice",
            text,
            'quantize again with ranges = "mse": the scale is too large, or calibration met an outlier',
        )
    crowd = uneven_places(values, layer.kind)
    if crowd is not None:
        text = (
            f"place {crowd[0]} of each sample reaches {crowd[1]:.4g}, the median place {crowd[2]:.4g}: one scale "
            "can't serve both"
        )
        return Cause(
            "activation shape", text, 'ranges = "percentile" or "mse", or keep the layers that read it in float'
        )
    channels = channel_ranges(values, layer.kind)
    if channels is not None:
        top, rest = int(channels.argmax()), float(np.median(channels))
        if channels[top] > UNEVEN * rest:
            text = (
                f"channel {top} reaches {channels[top]:.4g}, the median channel {rest:.4g}, "
                f"{channels[top] / max(rest, 1e-30):.3g} times less"
            )
            if layer.weights is not None and folded(layer, top):
                more = "; so are the weights and bias of that channel: a norm with a tiny variance was folded into them"
                return Cause("folded batch norm", text + more, 'before = ["equalize"]')
            return Cause("outlier channel", text, 'before = ["equalize"]')
    bulk = float(np.percentile(np.abs(values), BULK))
    if max(most, -least) > FAR * bulk:
        text = f"{BULK} % of the values are within {bulk:.4g}, the largest is {max(most, -least):.4g}"
        return Cause("outlier", text, 'ranges = "percentile" or "mse"')
    return bent


def beyond(layer: Layer, seen: Seen) -> float:
    """Share of values more than half a step outside a layer's lattice."""
    scale, zero = float(layer.parameters.scale[0]), float(layer.parameters.zero_point[0])
    low, high = ((end - zero) * scale for end in layer.parameters.limits)
    return float(((seen.after > high + scale / 2) | (seen.after < low - scale / 2)).mean())


def calibrated_on_few(shares: Mapping[str, float]) -> bool:
    """Whether the lattices of a file are too narrow because too little was seen: one lattice alone can't tell a
    percentile from a weak sample, as both are an end somewhere among the values; but too few samples show in most
    layers at once, and a percentile leaves a like share outside each."""
    cut = [s for s in shares.values() if s > OUTSIDE]
    return len(cut) > len(shares) / 2 and max(cut) > SPREAD * min(cut)


def of_weights(layer: Layer) -> Cause | None:
    """The cause in the lattice of a layer's weights; None if they are the float ones rounded to 8 bits."""
    w = layer.weights
    plain, dequantized, stored, scale = rows_of(w)
    limit = 127 if w.stored.dtype == np.int8 else 255
    steps = np.abs(dequantized - plain) / scale[:, None]
    pinned = np.abs(stored) >= limit
    clipped = pinned & (np.abs(plain) > np.abs(dequantized) + scale[:, None])
    ranges = np.abs(plain).max(1)
    if w.axis is None or np.all(scale == scale[0]):
        rest = float(np.median(ranges))
        uneven = (
            float(ranges.max() / max(float(ranges[ranges > 0].min(initial=np.inf)), 1e-30))
            if (ranges > 0).any()
            else 1.0
        )
        if uneven > UNEVEN:
            text = (
                f"one scale for {len(ranges)} channels whose ranges go from {ranges[ranges > 0].min():.4g} to "
                f"{ranges.max():.4g} ({uneven:.3g} times)"
            )
            name = "per-tensor weights on depthwise" if layer.depthwise else "outlier channel"
            return Cause(name, f"{text}, median {rest:.4g}", "quantize again with a scale per output channel")
    if clipped.mean(1).max() > 0.02:
        at = int(clipped.mean(1).argmax())
        text = (
            f"{100 * clipped[at].mean():.2g} % of the weights of channel {at} are outside: up to {ranges[at]:.4g}, "
            f"it ends at {limit * scale[at]:.4g}"
        )
        return Cause("clipped range", text, "quantize again: a weight's scale is its channel's largest magnitude / 127")
    wrong = (steps > 1.01).mean(1)
    if wrong.max() > 0.2:
        at = int(wrong.argmax())
        gain = float((dequantized[at] * plain[at]).sum() / max(float(np.square(plain[at]).sum()), 1e-30))
        if abs(gain - 1) > 0.05:  # nearer to 1 they are other weights, fine-tuned ones, and not scaled
            text = f"the stored weights of channel {at} times their scale are {gain:.3g} times the float ones"
            return Cause("dead lattice", text, "quantize again: the channel's scale is wrong")
    used = np.abs(stored).max(1)
    alive = ranges > 0
    if alive.any() and np.median(used[alive]) < LEVELS:
        text = f"the weights use {2 * int(used.max()) + 1} levels"
        return Cause("few bits", text, "weight_bits = 8")
    if alive.any() and used[alive].min() * 2 + 1 < LEVELS:
        at = int(np.where(alive, used, np.inf).argmin())
        return Cause(
            "dead lattice",
            f"channel {at} uses {2 * int(used[at]) + 1} levels of {2 * limit + 1}",
            "quantize again: the channel's scale is too large",
        )
    return None


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
