"""Which layers of an int8 file lose accuracy, and why: each layer is put into float alone, and alone into int8, and
what the network's output gains and loses by it is measured, as noise over signal (`beside`); then its numbers are read
for the causes that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.inputs import length
from edgekd.quantization.diagnosis.causes import Cause, Seen, beyond, calibrated_on_few, of_values, of_weights, rows_of
from edgekd.quantization.diagnosis.signal_to_noise import Agreement, compare, decibel, power, signal
from edgekd.quantization.qdq.pairing import PARTS, Layer, Pair, Weights, pair
from edgekd.quantization.qdq.partial import render
from edgekd.quantization.qdq.values import session, shown

if TYPE_CHECKING:
    import onnx

ROWS = 64  # samples at a time
SHOWS = 1.0  # dB that a layer of a loud file must give back to be named
# share of the layers' own noise that names it too, where the file is loud: with many causes, no layer alone gives much
# back
PART = 0.1
LOUD = 1e-3  # noise above which a file is loud: below 30 dB of signal to noise
MUCH = 6.0  # dB, three quarters of the noise, that it takes in one that is not, or without a known cause


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
class Share:
    """A layer's part in the noise: `alone` power of the output's noise with its weights, then with its value alone in
    int8; `without` the noise of the file with this layer in float; both as shares of the signal. `points`: accuracy
    that this gives back; `surely`: more than chance (the answers that become right outnumber those that become wrong by
    two standard deviations of a fair coin)."""

    layer: Layer
    alone: tuple[float, float]
    without: float
    points: float | None = None
    surely: bool = False


@dataclass(frozen=True)
class Looked:
    """What was seen of an int8 file. `findings`: the layers that lose, the worst first; `order`: all layers, that which
    gives back most in float first; `agreements` of the outputs; `trained`: the int8 weights were, so what they learned
    counts as noise there, and the file is held against itself without its lattices of values."""

    findings: tuple[Finding, ...]
    order: tuple[str, ...]
    agreements: tuple[Agreement, ...]
    trained: bool


def look(
    float_path: Path | str,
    int8_path: Path | str,
    feed: Mapping[str, np.ndarray],
    labels: np.ndarray | None = None,
    *,
    saturates: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Looked:
    """Looks at every layer of an int8 file beside the float file.

    `feed`: {input: array [n, ...]}, some hundred samples; `labels` [n]: class numbers. `saturates`: asks for AVX2
    without VNNI as well: what is lost there is simulated, as it is not seen on a machine whose products are exact.
    Raises UsageError if the files are not the same network."""
    import onnx

    p = pair(onnx.load(float_path), onnx.load(int8_path))
    own = trained(p)
    plain = outputs(render(p, (), own=own), feed)
    total, shares = attribute(p, feed, labels, own=own, progress=progress)
    values = float_values(p, feed, own=own)
    seen = {layer.name: Seen.of(layer, values) for layer in p.layers if layer.parameters is not None}
    few = calibrated_on_few({layer.name: beyond(layer, seen[layer.name]) for layer in p.layers if layer.name in seen})
    noisy, whole = total > LOUD, max(sum(sum(s.alone) for s in shares), 1e-30)
    found = []
    for share in shares:
        gain = decibel(total / share.without)
        cause = _cause(share, seen.get(share.layer.name), few, own)
        if cause is not None and (
            gain >= (SHOWS if noisy else MUCH) or share.surely or (noisy and sum(share.alone) > PART * whole)
        ):
            found.append(Finding(share.layer.name, cause.name, cause.evidence, cause.fix, Lost(gain, share.points)))
        elif cause is None and noisy and gain >= MUCH:
            text = f"its lattices fit; alone it makes {100 * sum(share.alone) / whole:.2g} % of the noise"
            found.append(
                Finding(share.layer.name, "rounding", text, "keep this layer in float", Lost(gain, share.points))
            )
    if saturates:
        found = sorted(found + _saturating(p.quantized.model, feed, plain), key=lambda f: -(f.lost.snr or 0))
    return Looked(tuple(found), tuple(s.layer.name for s in shares), overall(float_path, int8_path, feed), own)


def _saturating(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], plain: Sequence[np.ndarray]) -> list[Finding]:
    """The layers whose outputs some samples change where products saturate in 16 bits. What each loses there is the
    noise at the file's outputs with what saturation takes from its sums, over the noise without; `plain`: the float
    file's outputs."""
    from edgekd.quantization.qdq.saturation import audit, saturated

    few = {n: a[:ROWS] for n, a in feed.items()}
    changed = [layer for layer in audit(model, few) if layer.changed]
    files, exact = saturated(model, few, {layer.name for layer in changed}), outputs(model, few)

    def noise(found: Sequence[np.ndarray]) -> float:
        return max(
            float(
                np.mean(
                    [(power(a[: len(b)] - b) / signal(a[: len(b)])).mean() for a, b in zip(plain, found, strict=True)]
                )
            ),
            1e-12,
        )

    return [
        Finding(
            f"{layer.kind}({layer.name})",
            "saturation",
            f"on AVX2 without VNNI {100 * layer.changed:.2g} % of its outputs come out otherwise"
            + (f", by up to {layer.most:.3g} steps" if layer.most is not None else ""),
            "weight_bits = 7",
            Lost(decibel(noise(outputs(files[layer.name], few)) / noise(exact)) if layer.name in files else None),
        )
        for layer in changed
    ]


def overall(float_path: Path | str, int8_path: Path | str, feed: Mapping[str, np.ndarray]) -> tuple[Agreement, ...]:
    """How the files' outputs agree, as `quantize` tells it."""
    import onnx

    models = [onnx.load(path) for path in (float_path, int8_path)]
    names, (plain, int8) = [o.name for o in models[1].graph.output], (outputs(model, feed) for model in models)
    return tuple(a for name, *both in zip(names, plain, int8, strict=True) for a in compare(name, *both))


def trained(p: Pair) -> bool:
    """Whether the int8 weights of most layers are others than the float file's, rounded: they were fine-tuned or
    rescaled, and are their own reference."""
    apart = [moved(layer.weights) for layer in p.layers if layer.weights is not None]
    return bool(apart) and sum(apart) > len(apart) / 2


def moved(w: Weights) -> bool:
    """Whether weights are others than the float ones on their lattice: more than a step away; or, after a short
    training, not the nearest step while most channels' largest weight, which the scale is made of, is another too.
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


def attribute(
    p: Pair,
    feed: Mapping[str, np.ndarray],
    labels: np.ndarray | None = None,
    *,
    own: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[float, list[Share]]:
    """(noise of the whole file as a share of the signal, each layer's part), the largest part first."""
    everything = {(layer.name, part) for layer in p.layers for part in PARTS}
    plain = outputs(render(p, (), own=own), feed)
    signals = [signal(a) for a in plain]

    def noise(found: list[np.ndarray]) -> float:
        return max(
            float(np.mean([(power(a - b) / s).mean() for a, b, s in zip(plain, found, signals, strict=True)])), 1e-12
        )

    def right(found: list[np.ndarray]) -> np.ndarray | None:
        return None if labels is None else (found[0].argmax(-1) == labels).astype(int)

    whole = outputs(p.quantized.model, feed)
    answered = right(whole)
    total, shares = noise(whole), []
    for layer in p.layers:
        mine = {(layer.name, part) for part in PARTS}
        without = outputs(render(p, everything - mine, own=own), feed)
        has = {"weights": layer.weights is not None and not own, "values": layer.parameters is not None}
        alone = tuple(
            noise(outputs(render(p, [(layer.name, part)], own=own), feed)) if has[part] else 0.0 for part in PARTS
        )
        change = None if answered is None else right(without) - answered
        points = None if change is None else 100 * float(change.mean())
        surely = change is not None and bool(change.sum() > 2 * np.abs(change).sum() ** 0.5)
        shares.append(Share(layer, alone, noise(without), points, surely))
        progress(len(shares), len(p.layers))
    return total, sorted(shares, key=lambda s: s.without)


def float_values(p: Pair, feed: Mapping[str, np.ndarray], *, own: bool = False) -> dict[str, np.ndarray]:
    """{name in the int8 file: array} of what lattices round and of what comes out, with nothing quantized."""
    model = render(p, (), own=own)
    wanted = {n for layer in p.layers if layer.parameters is not None for n in (layer.before, layer.after)}
    model = shown(model, sorted(wanted - {i.name for i in model.graph.input}))
    return {**feed, **dict(zip([o.name for o in model.graph.output], outputs(model, feed), strict=True))}


def outputs(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A file's outputs in onnxruntime."""
    from edgekd.quantization.onnx_graph.samples import fixed_rows

    infer: Any = session(model)  # with `outputs`, their names in order
    count, rows = length(feed), fixed_rows(model) or ROWS
    parts = [infer({n: a[i : i + rows] for n, a in feed.items()}) for i in range(0, count, rows)]
    odd = [
        n
        for n in infer.outputs
        if any(
            not isinstance(v := p[n], np.ndarray) or not v.ndim or not v.size or v.dtype.kind not in "fiub"
            for p in parts
        )
    ]
    if odd:
        raise UsageError(*(Problem(f"output {name}", "holds no row of numbers for each sample") for name in odd))
    return [np.concatenate([part[name] for part in parts]) for name in infer.outputs]


def _cause(share: Share, seen: Seen | None, few: bool, own: bool) -> Cause | None:
    """The cause of the part of a layer that is louder, or of the other where that has none."""
    layer = share.layer
    ways: Iterable[str] = sorted(PARTS, key=lambda part: -share.alone[PARTS.index(part)])
    for part in ways:
        if part == "weights" and layer.weights is not None and not own:
            found = of_weights(layer)
        elif part == "values" and seen is not None:
            found = of_values(layer, seen, few=few)
        else:
            continue
        if found is not None:
            return found
    return None
