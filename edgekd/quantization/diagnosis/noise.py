"""The noise of an int8 file at its outputs, layer by layer: each is put into float alone, and alone into int8, in the
file itself. Noise is a share of the signal (`signal_to_noise`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.metrics import decided, threshold
from edgekd.quantization.diagnosis.signal_to_noise import decibel
from edgekd.quantization.diagnosis.signal_to_noise import noise as noise_of
from edgekd.quantization.qdq.pairing import PARTS, Layer, Pair
from edgekd.quantization.qdq.partial import render
from edgekd.quantization.qdq.values import session, shown
from edgekd.samples.rows import Samples, fitting, joined, of

if TYPE_CHECKING:
    import onnx

ROWS = 64  # samples at a time
VALUES = 2**20  # of them at a time, where samples are large: what is computed of more does not fit a cache
ALONE = 2**21  # values of samples that each layer alone is run on: all samples, unless these are large and many
LOUD = 1e-3  # noise above which a file is loud: below 30 dB of signal to noise
MUCH = 6.0  # dB, three quarters of the noise, that a layer takes in a file that is not, or without a known cause


@dataclass(frozen=True)
class Share:
    """A layer's part in the noise: `alone` power of the output's noise with its weights, then with its value alone in
    int8; `without` the noise of the file with this layer in float; both as shares of the signal. `points`: accuracy
    that this gives back; `surely`: more than chance (the answers that become right outnumber those that become wrong by
    two standard deviations of a fair coin); `counts`: whether it is enough to look for a cause, else nothing ran the
    layer `alone`."""

    layer: Layer
    alone: tuple[float, float]
    without: float
    points: float | None = None
    surely: bool = False
    counts: bool = False


def shares(
    p: Pair,
    feed: Mapping[str, np.ndarray] | Samples,
    labels: np.ndarray | None = None,
    *,
    own: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[float, list[Share]]:
    """(noise of the whole file, each layer's part), the largest part first. `own`: see `partial.render`."""
    everything = {(layer.name, part) for layer in p.layers for part in PARTS}
    plain = outputs(render(p, (), own=own), feed)

    few = _fewer(fitting(feed, p.plain.model))

    def made(quantized: set[tuple[str, str]], feed: Mapping[str, np.ndarray] | Samples = feed) -> list[np.ndarray]:
        return outputs(render(p, quantized, own=own), feed)

    def alone(layer: Layer, part: str) -> float:
        there = layer.parameters is not None if part == "values" else layer.weights is not None and not own
        return noise(plain, made({(layer.name, part)}, few)) if there else 0.0

    whole = outputs(p.quantized.model, feed)
    total, found = noise(plain, whole), []
    progress(0, len(p.layers))
    for layer in p.layers:
        without = made(everything - {(layer.name, part) for part in PARTS})
        share = Share(layer, (0.0, 0.0), noise(plain, without), *_gained(whole, without, labels))
        if total > LOUD or share.surely or decibel(total / share.without) >= MUCH:
            share = replace(share, alone=(alone(layer, "weights"), alone(layer, "values")), counts=True)
        found.append(share)
        progress(len(found), len(p.layers))
    return total, sorted(found, key=lambda s: s.without)


def _fewer(samples: Samples) -> Samples:
    """The first samples, of ALONE values at most, but eight at least."""
    count = max(8, ALONE // max(1, _size(samples)))
    return samples.take(slice(-(-count // (samples.rows or 1)) * (samples.rows or 1)))


def _size(samples: Samples) -> int:
    """Values of one sample."""
    return sum(int(np.prod(shape)) for shape in samples.shapes.values())


def noise(plain: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Noise of outputs [n, ...] beside the first n of the float ones, on average over the outputs."""
    return float(np.mean([noise_of(a[: len(b)], b) for a, b in zip(plain, found, strict=True)]))


def _gained(
    whole: Sequence[np.ndarray], without: Sequence[np.ndarray], labels: np.ndarray | None
) -> tuple[float | None, bool]:
    """(points of accuracy that the second outputs have more than the first, whether that is more than chance)."""
    if labels is None:
        return None, False
    limit = threshold(whole[0])
    before, after = ((decided(found[0], -1, limit) == labels).astype(int) for found in (whole, without))
    change = after - before
    return 100 * float(change.mean()), bool(change.sum() > 2 * np.abs(change).sum() ** 0.5)


def float_values(p: Pair, feed: Mapping[str, np.ndarray] | Samples, *, own: bool = False) -> dict[str, np.ndarray]:
    """{name in the int8 file: array} of what is quantized and of what the next operators read, with nothing
    quantized."""
    model = render(p, (), own=own)
    wanted = {n for layer in p.layers if layer.parameters is not None for n in (layer.before, layer.after)}
    model = shown(model, sorted(wanted - {i.name for i in model.graph.input}))
    given = {n: joined(list(a)) if a.dtype == object else a for n, a in of(feed).arrays.items()}
    return {**given, **dict(zip([o.name for o in model.graph.output], outputs(model, feed), strict=True))}


def outputs(model: onnx.ModelProto, feed: Mapping[str, np.ndarray] | Samples) -> list[np.ndarray]:
    """A file's outputs in onnxruntime."""
    infer: Any = session(model)  # with `outputs`, their names in order
    samples = fitting(feed, model)
    parts = [infer(chunk) for chunk in samples.batches(max(1, min(ROWS, VALUES // max(1, _size(samples)))))]
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
    return [joined([part[name] for part in parts], samples.answers.get(name, 0)) for name in infer.outputs]
