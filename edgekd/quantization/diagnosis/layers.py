"""Which layers of an int8 file lose accuracy, and why: the noise that each brings to the network's outputs is measured
(`noise`), then its numbers are read for the causes that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.diagnosis.causes import Seen, beyond, calibrated_on_few, of_values
from edgekd.quantization.diagnosis.noise import LOUD, MUCH, ROWS, Share, float_values, noise, outputs, shares
from edgekd.quantization.diagnosis.signal_to_noise import Agreement, compare, decibel
from edgekd.quantization.diagnosis.weight_causes import Cause, of_weights, rows_of
from edgekd.quantization.qdq.pairing import PARTS, Pair, Weights, pair
from edgekd.quantization.qdq.partial import render
from edgekd.samples.rows import Samples, fitting

if TYPE_CHECKING:
    import onnx

SHOWS = 1.0  # dB that a layer of a loud file must give back to be named
# share of the layers' own noise that names it too, where the file is loud: with many causes, no layer alone gives much
# back
PART = 0.1


@dataclass(frozen=True)
class Lost:
    """What putting a layer alone into float gives back: `snr` dB at the output (None: it can't be measured here),
    `points` of accuracy (None: no labels)."""

    snr: float | None
    points: float | None = None


@dataclass(frozen=True)
class Finding:
    """A layer that loses, by its name in the int8 file (`Conv(v29)`, or an input): one cause, its numbers, what edgekd
    would do."""

    layer: str
    cause: str
    evidence: str
    fix: str
    lost: Lost


@dataclass(frozen=True)
class Looked:
    """What was seen of an int8 file. `findings`: the layers that lose, the worst first; `order`: all layers, that which
    gives back most in float first; `agreements` of the outputs; `trained`: the int8 weights were, so what they learned
    counts as noise there, and the file is compared with itself where only weights are quantized."""

    findings: tuple[Finding, ...]
    order: tuple[str, ...]
    agreements: tuple[Agreement, ...]
    trained: bool


def look(
    float_path: Path | str,
    int8_path: Path | str,
    feed: Mapping[str, np.ndarray] | Samples,
    labels: np.ndarray | None = None,
    *,
    saturates: bool = False,
    norms: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Looked:
    """Looks at every layer of an int8 file beside the float file.

    `feed`: {input: array [n, ...]}, some hundred samples; `labels` [n]: class numbers. `saturates`: asks for AVX2
    without VNNI as well: what is lost there is simulated, as it is not seen on a machine whose products are exact.
    `norms`: the network has batch norms, in its source or in the float file.

    Raises UsageError if the files are not the same network."""
    import onnx

    p = pair(onnx.load(float_path), onnx.load(int8_path))
    own = trained(p)
    plain = outputs(render(p, (), own=own), feed)
    total, parts = shares(p, feed, labels, own=own, progress=progress)
    values = float_values(p, feed, own=own)
    seen = {layer.name: Seen.of(layer, values) for layer in p.layers if layer.parameters is not None}
    few = calibrated_on_few({layer.name: beyond(layer, seen[layer.name]) for layer in p.layers if layer.name in seen})
    whole = max(sum(sum(s.alone) for s in parts), 1e-30)
    asked = [s for s in parts if s.counts]
    causes = [_cause(share, seen.get(share.layer.name), few, own, norms) for share in asked]
    named = (_finding(share, cause, total, whole) for share, cause in zip(asked, causes, strict=True))
    found = [f for f in named if f is not None]
    if saturates:
        found = sorted(found + _saturating(p.quantized.model, feed, plain), key=lambda f: -(f.lost.snr or 0))
    return Looked(tuple(found), tuple(s.layer.name for s in parts), overall(p, feed), own)


def _finding(share: Share, cause: Cause | None, total: float, whole: float) -> Finding | None:
    """A layer that is to be named: `total` the file's noise, `whole` that of all layers alone; None if it is not."""
    gain, alone, loud = decibel(total / share.without), sum(share.alone), total > LOUD
    lost = Lost(gain, share.points)
    if cause is not None and (gain >= (SHOWS if loud else MUCH) or share.surely or (loud and alone > PART * whole)):
        return Finding(share.layer.name, cause.name, cause.evidence, cause.fix, lost)
    if cause is None and loud and gain >= MUCH:
        text = f"its quantization parameters fit; alone it makes {100 * alone / whole:.2g} % of the noise"
        return Finding(share.layer.name, "rounding", text, "keep this layer in float", lost)
    return None


def _saturating(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray] | Samples, plain: Sequence[np.ndarray]
) -> list[Finding]:
    """The layers whose outputs some samples change where products saturate in 16 bits. What each loses there is the
    noise at the file's outputs with what saturation takes from its sums, over the noise without; `plain`: the float
    file's outputs."""
    from edgekd.quantization.qdq.saturation import audit, saturated

    few = fitting(feed, model).some(ROWS)
    changed = [layer for layer in audit(model, few.feed()) if layer.changed]
    files, exact = saturated(model, few.feed(), {layer.name for layer in changed}), outputs(model, few)

    found = []
    for layer in changed:
        text = f"on AVX2 without VNNI {100 * layer.changed:.2g} % of its outputs come out otherwise"
        text += f", by up to {layer.most:.3g} steps" if layer.most is not None else ""
        there = noise(plain, outputs(files[layer.name], few)) if layer.name in files else None
        lost = Lost(None if there is None else decibel(there / noise(plain, exact)))
        found.append(Finding(f"{layer.kind}({layer.name})", "saturation", text, "weight_bits = 7", lost))
    return found


def overall(p: Pair, feed: Mapping[str, np.ndarray] | Samples) -> tuple[Agreement, ...]:
    """How the files' outputs agree, as `quantize` tells it."""
    plain, int8 = outputs(p.plain.model, feed), outputs(p.quantized.model, feed)
    names = [o.name for o in p.quantized.model.graph.output]
    return tuple(a for name, *both in zip(names, plain, int8, strict=True) for a in compare(name, *both))


def trained(p: Pair) -> bool:
    """Whether the int8 weights of most layers are others than the float file's, rounded: they were fine-tuned or
    rescaled, and are their own reference."""
    apart = [moved(layer.weights) for layer in p.layers if layer.weights is not None]
    return bool(apart) and sum(apart) > len(apart) / 2


def moved(w: Weights) -> bool:
    """Whether weights are others than the float ones, quantized: more than a step away; or, after a short training,
    not the nearest step while most channels' largest weight, which the scale is made of, is another too.
    (Rounding that is learned keeps the scales; scales that cut keep the nearest step for what is inside.)"""
    plain, dequantized, stored, scale = rows_of(w)
    steps, limit = np.abs(dequantized - plain) / scale[:, None], int(np.abs(stored).max(initial=0))
    inside, ranges = np.abs(plain) <= limit * scale[:, None], np.abs(plain).max(1)
    if inside.any() and float((steps[inside] > 1.01).mean()) > 0.02:
        return True
    full = (np.abs(stored).max(1) == limit) & (ranges > 0)
    if not full.any() or not inside.any():
        return False
    others = np.abs(scale[full] * limit / ranges[full] - 1) > 5e-4
    return bool((steps[inside] > 0.51).mean() > 0.005 and others.mean() > 0.5)


def _cause(share: Share, seen: Seen | None, few: bool, own: bool, norms: bool) -> Cause | None:
    """The cause of the part of a layer that is louder, or of the other where that has none."""
    layer = share.layer
    ways: Iterable[str] = sorted(PARTS, key=lambda part: -share.alone[PARTS.index(part)])
    for part in ways:
        if part == "weights" and layer.weights is not None and not own:
            found = of_weights(layer)
        elif part == "values" and seen is not None:
            found = of_values(layer, seen, few=few, norms=norms)
        else:
            continue
        if found is not None:
            return found
    return None
