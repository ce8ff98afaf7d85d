"""How an int8 file's outputs compare with the float file's. The one definition of signal to noise:

Noise is the power of a sample's difference to the float output over the power of its signal, the float output less its
mean over the samples; where that is weaker than the median sample's, over the median's. Its mean over the samples is
what is compared: one loud sample does not decide. What an output always adds is no signal, so it hides no noise.

Channels whose values are of another size than the others' (boxes in pixels beside scores) are judged apart: noise that
is nothing to the ones ruins the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.metrics import decided, threshold
from edgekd.samples.rows import Samples, joined
from edgekd.samples.sequences import answered

SIGNAL = "dB: signal, less its mean over the samples, to noise"  # what figures in dB are, in words
APART = 20.0  # dB between the powers of channels that are judged apart: ten times as large
GROUPS = 4  # that an output falls into at most
CHANNELS = 4096  # entries that an axis of channels may have
EQUAL = 120.0  # dB, the most that is told apart
BATCH = 1  # samples at a time, where the file fixes no number
PART = 2**19  # values that are squared at once
LIMIT = 2**28  # bytes of outputs that are held at once


@dataclass(frozen=True)
class Agreement:
    """An output of the int8 file beside the float file's, or those `channels` of it that are of one size. `snr_db`
    signal to noise, None for integers; `answers` share of equal greatest entries, None where an output is no scores;
    `equal` share of equal values, of integers alone. `broken`: of so many of `samples` the float output is not finite;
    where that is all of it, there is no signal."""

    output: str
    snr_db: float | None
    answers: float | None = None
    equal: float | None = None
    channels: str = ""
    broken: int = 0
    samples: int = 0

    def __str__(self) -> str:
        parts = [] if self.snr_db is None else [f"{self.snr_db:.1f} dB"]
        parts += [] if self.answers is None else [f"greatest value the same in {100 * self.answers:.2f} %"]
        parts += [] if self.equal is None else [f"{100 * self.equal:.2f} % equal values"]
        parts += [f"float's output is not finite in {self.broken} of {self.samples} samples"] if self.broken else []
        return f"{self.output}{f' [{self.channels}]' if self.channels else ''}: {', '.join(parts)}"


@dataclass(frozen=True)
class Compared:
    """Two files over the same samples, of which `samples` were compared; `right` (float, int8): share of labels that
    the only output gives; `left`: outputs that can't be compared, with the reason."""

    agreements: tuple[Agreement, ...]
    samples: int
    right: tuple[float, float] | None = None
    left: tuple[str, ...] = ()


def power(values: np.ndarray, less: np.ndarray | None = None) -> np.ndarray:
    """[n] mean square of each sample's values [n, ...], less those of `less`: [n, ...], or [...] for all samples."""
    found = np.empty(len(values))
    for part in _parts(values):
        apart = values[part] if less is None else values[part] - (less[part] if less.ndim == values.ndim else less)
        found[part] = np.square(apart, dtype=np.float64).reshape(len(apart), -1).mean(1)
    return found


def _parts(values: np.ndarray) -> Iterator[slice]:
    """Samples of [n, ...] that are looked at together: float64 copies of all would be three times as large as they."""
    step = max(1, PART // max(1, values[:1].size))
    return (slice(i, i + step) for i in range(0, len(values), step))


def signal(outputs: np.ndarray) -> np.ndarray:
    """[n] power of each sample's outputs [n, ...] less their mean over the samples (of one sample, and where all are
    alike, of all of it), at least the median's."""
    mean = outputs.mean(0) if len(outputs) > 1 else None
    found = power(outputs, mean)
    if mean is not None and found.max() <= 10 ** (-EQUAL / 10) * np.square(mean, dtype=np.float64).mean():
        found = power(outputs)  # what differs is the rounding of the mean
    whole = float(np.mean(found)) if found.any() else 1.0
    return np.maximum(found, max(float(np.median(found)), 1e-30 * min(1.0, whole)))  # as small as the data are


def noise(plain: np.ndarray, int8: np.ndarray) -> float:
    """Noise of outputs [n, ...] as a share of the signal, at least 1e-12 (120 dB). What is not finite in float is not
    compared."""
    plain, int8 = finite(plain, int8)
    return max(float((power(plain, int8) / signal(plain)).mean()), 10 ** (-EQUAL / 10))


def finite(plain: np.ndarray, int8: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with 0 where the float values are not finite."""
    kept = np.isfinite(plain)
    return (plain, int8) if kept.all() else (np.where(kept, plain, 0), np.where(kept, int8, 0))


def broken(plain: np.ndarray) -> int:
    """Samples of [n, ...] in which a value is NaN, or none is finite."""
    rows = plain.reshape(len(plain), -1)
    return int((np.isnan(rows).any(1) | ~np.isfinite(rows).any(1)).sum())


def decibel(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


def groups(plain: np.ndarray) -> tuple[int, list[np.ndarray]]:
    """(axis of channels, the channels of each size) of outputs [n, ...], found where sizes lie furthest apart; (0, [])
    where they don't."""
    best, found = APART, (0, [])
    for axis, powers in _powers(plain).items():
        if not powers.any():
            continue
        # one that never moves goes with the weakest
        levels = 10 * np.log10(np.maximum(powers, powers[powers > 0].min()))
        order = np.argsort(levels, kind="stable")
        gaps = np.diff(levels[order])
        if gaps.max() >= best:
            cuts = np.sort(np.argsort(-gaps, kind="stable")[: GROUPS - 1])
            parts = np.split(order, [c + 1 for c in cuts if gaps[c] >= APART])
            best, found = gaps.max(), (axis, sorted((np.sort(p) for p in parts), key=lambda p: p[0]))
    return found


def _powers(plain: np.ndarray) -> dict[int, np.ndarray]:
    """{axis of outputs [n, ...] that may be one of channels: mean square of each of its entries, less its mean over the
    samples}."""
    axes = [a for a in range(1, plain.ndim) if 2 <= plain.shape[a] <= CHANNELS]
    sums = {a: np.zeros(plain.shape[a]) for a in axes}
    finite = bool(np.isfinite(plain).all())
    mean = (plain if finite else np.where(np.isfinite(plain), plain, 0)).mean(0) if len(plain) > 1 else 0
    for part in _parts(plain) if axes else ():
        values = plain[part] if finite else np.where(np.isfinite(plain[part]), plain[part], 0)
        squares = np.square(values - mean, dtype=np.float64)
        for axis in axes:
            sums[axis] += squares.sum(tuple(d for d in range(plain.ndim) if d != axis))
    return {axis: total * len(total) / plain.size for axis, total in sums.items()}


def compare(name: str, plain: np.ndarray, int8: np.ndarray) -> list[Agreement]:
    """Rows for one output [n, ...] of both files. Scores are entries of axis 1 of [n, classes], of the last axis of [n,
    tokens, classes], or of the largest group of channels that are judged apart."""
    if plain.dtype.kind != "f":
        return [Agreement(name, None, equal=equal(plain, int8))]
    axis, apart = groups(plain)
    wrong = broken(plain)
    more = {"broken": wrong, "samples": len(plain)} if wrong else {}
    if not apart:
        axis = plain.ndim - 1 if plain.ndim in (2, 3) else 0
        snr = -decibel(noise(plain, int8)) if np.isfinite(plain).any() else None
        return [Agreement(name, snr, answers(plain, int8, axis), **more)]
    most = max(apart, key=len)
    found = []
    for part in apart:
        a, b = (np.take(x, part, axis) for x in (plain, int8))
        found.append(
            Agreement(
                name,
                -decibel(noise(a, b)) if np.isfinite(a).any() else None,
                answers(a, b, axis) if part is most else None,
                channels=ranges(part),
                **more,
            )
        )
    return found


def answers(plain: np.ndarray, int8: np.ndarray, axis: int) -> float | None:
    """Share of equal greatest entries along an axis; none is equal where one is NaN."""
    if axis < 1 or plain.shape[axis] < 2:
        return None
    ours, theirs = (decided(a, axis, 0.0) for a in (int8, plain))
    return float(((ours == theirs) & (theirs >= 0)).mean())


def equal(plain: np.ndarray, int8: np.ndarray) -> float:
    """Share of equal integers; of lists whose length depends on the values, the share of the longer one's rows that
    both have."""
    if plain.shape == int8.shape:
        return float((plain == int8).mean()) if plain.size else 1.0
    rows = [{tuple(np.ravel(row).tolist()) for row in a} for a in (plain, int8)]
    return len(rows[0] & rows[1]) / max(len(rows[0]), len(rows[1]), 1)


def ranges(channels: Sequence[int]) -> str:
    """0-3, 7, 9-80"""
    cuts = np.flatnonzero(np.diff(channels) > 1) + 1
    runs = [f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in np.split(np.asarray(channels), cuts)]
    return ", ".join(runs if len(runs) <= 6 else [*runs[:5], f"... {len(channels)} in all"])


def files(
    plain: Path,
    int8: Path,
    samples: Samples,
) -> Compared:
    """The outputs of two files over samples, a batch at a time, as far as LIMIT allows; over sequences each file's own
    states."""
    from edgekd.runtimes.onnxruntime import load

    theirs, ours = load(str(plain), 1), load(str(int8), 1)
    kept: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in ours.outputs}
    held = rows = 0
    for wanted, made in zip(*(answered(infer, samples, BATCH) for infer in (theirs, ours)), strict=True):
        rows = min(len(samples), rows + (1 if samples.states else samples.rows or BATCH))
        for name in ours.outputs:
            kept[name].append((wanted[name], made[name]))
            held += sum(np.asarray(a).nbytes for a in kept[name][-1])
        if held > LIMIT:
            break
    found, left = [], []
    axes = samples.answers
    for name, pairs in kept.items():
        pairs[:] = [tuple(np.moveaxis(a, axes[name], 0) for a in pair) if name in axes else pair for pair in pairs]
        reason = _reason(pairs, samples.alone)
        if reason:
            left.append(f"{name}: {reason}")
        elif all(a.dtype.kind != "f" for a, _ in pairs):
            pairs[:] = _points(pairs)
            found.append(
                Agreement(
                    name,
                    None,
                    equal=float(np.average([equal(a, b) for a, b in pairs], weights=[len(a) or 1 for a, _ in pairs])),
                )
            )
        else:
            found += compare(name, *_at_once(pairs))
    return Compared(tuple(found), rows, _right(kept, samples, rows), tuple(left))


def _points(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of integers with the axis first whose length depends on the values: that of NonZero's points is the
    last."""
    shapes = [a.shape for pair in pairs for a in pair]
    if len({len(s) for s in shapes}) != 1 or any(a.shape[:1] != b.shape[:1] for a, b in pairs):
        return list(pairs)
    open_axes = [k for k in range(1, len(shapes[0])) if any(a.shape[k] != b.shape[k] for a, b in pairs)]
    if len(open_axes) != 1:
        return list(pairs)
    return [(np.moveaxis(a, open_axes[0], 0), np.moveaxis(b, open_axes[0], 0)) for a, b in pairs]


def _stackable(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    return all(a.ndim for pair in pairs for a in pair) and all(
        len({p[i].shape[1:] for p in pairs}) == 1 for i in (0, 1)
    )


def _at_once(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of all batches. Where these are of one shape, `pairs` has that one pair then: a batch is let go as
    soon as it is copied."""
    if not _stackable(pairs):
        plain, int8 = (joined(side) for side in zip(*pairs, strict=True))
        return plain, int8
    shapes = [(sum(len(p[i]) for p in pairs), *pairs[0][i].shape[1:]) for i in (0, 1)]
    plain, int8 = (np.empty(shape, pairs[0][i].dtype) for i, shape in enumerate(shapes))
    at = 0
    while pairs:
        batch = pairs.pop(0)
        for whole, part in zip((plain, int8), batch, strict=True):
            whole[at : at + len(part)] = part
        at += len(batch[0])
    pairs.append((plain, int8))
    return plain, int8


def _reason(pairs: Sequence[tuple[np.ndarray, np.ndarray]], alone: bool) -> str:
    """Why an output can't be compared; "" if it can. `alone`: samples were given one by one, and may be of different
    shapes."""
    numbers = all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for pair in pairs for a in pair)
    if not numbers or not alone and not all(a.ndim for pair in pairs for a in pair):
        return "it holds no rows of numbers"
    if all(a.dtype.kind == "f" for a, _ in pairs) and any(
        a.shape != b.shape or (not alone and a.shape[1:] != pairs[0][0].shape[1:]) or not a.size for a, b in pairs
    ):
        return "its shape depends on the values"
    return ""


def _right(
    outputs: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], samples: Samples, rows: int
) -> tuple[float, float] | None:
    """(float, int8): share of labels that the greatest entry of the only output is, or the class number that it
    gives; where it has one entry, whether that is above the threshold of a logit or a probability."""
    scored = [o for n, o in outputs.items() if n not in samples.states.values()]
    if samples.labels is None or len(scored) != 1 or _reason(scored[0], samples.alone):
        return None
    labels = np.concatenate([np.ravel(a) for a in samples.labels[:rows]])
    sides = [joined(side) for side in zip(*scored[0], strict=True)]
    if sides[0].dtype.kind == "f" and sides[0].ndim > 1:
        axis = -1 if sides[0].ndim == 3 else 1
        if sides[0].shape[axis] == 1 and not set(np.unique(labels).tolist()) <= {0, 1}:
            return None
        limit = threshold(sides[0])
        sides = [decided(s, axis, limit) for s in sides]
    if labels.dtype.kind not in "iu" or any(s.dtype.kind not in "iu" or s.size != len(labels) for s in sides):
        return None
    right = [float((s.reshape(-1) == labels).mean()) for s in sides]
    return right[0], right[1]
