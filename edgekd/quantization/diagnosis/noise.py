"""The noise of an int8 file at its outputs, layer by layer: each is put into float alone, and alone into int8, in the
file itself. Noise is a share of the signal (`signal_to_noise`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.metrics import decided, threshold
from edgekd.quantization.diagnosis.signal_to_noise import finite, power, signal
from edgekd.quantization.qdq.pairing import PARTS, Layer, Pair
from edgekd.quantization.qdq.partial import render
from edgekd.quantization.qdq.values import session, shown
from edgekd.samples.rows import Samples, fitting, joined, of

if TYPE_CHECKING:
    import onnx

ROWS = 64  # samples at a time
LEAST = 1e-12  # noise below which none is told: 120 dB


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

    def made(quantized: set[tuple[str, str]]) -> list[np.ndarray]:
        return outputs(render(p, quantized, own=own), feed)

    def alone(layer: Layer, part: str) -> float:
        there = layer.parameters is not None if part == "values" else layer.weights is not None and not own
        return noise(plain, made({(layer.name, part)})) if there else 0.0

    whole = outputs(p.quantized.model, feed)
    found = []
    for layer in p.layers:
        without = made(everything - {(layer.name, part) for part in PARTS})
        parts = alone(layer, "weights"), alone(layer, "values")
        found.append(Share(layer, parts, noise(plain, without), *_gained(whole, without, labels)))
        progress(len(found), len(p.layers))
    return noise(plain, whole), sorted(found, key=lambda s: s.without)


def noise(plain: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Noise of outputs [n, ...] beside the first n of the float ones, on average over the outputs."""
    near = [finite(a[: len(b)], b) for a, b in zip(plain, found, strict=True)]
    return max(float(np.mean([(power(a - b) / signal(a)).mean() for a, b in near])), LEAST)


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
    parts = [infer(chunk) for chunk in samples.batches(ROWS)]
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
