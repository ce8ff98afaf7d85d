"""Quality and fidelity of a file's outputs per sample, against labels and against the teacher, each figure with its 95
% interval.

Formulas: KL(teacher || candidate) of the softmax in nats, Hinton et al. arXiv 1503.02531; ECE in probes/ece. What a
task's outputs give no meaning to is left out, and so is a figure that is not a finite number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekd import intervals
from edgekd.probes import ece as calibration
from edgekd.records import Measurement, Metric, Split


def measure(
    outputs: Any,
    labels: np.ndarray | None,
    metrics: Sequence[Metric],
    *,
    split: Split,
    teacher: Any = None,
    classes: int | None = None,
    target: str | None = None,
    threads: int | None = None,
    environment: str | None = None,
) -> tuple[Measurement, ...]:
    """The task's metrics; with `teacher` (outputs of the same samples) agreement and kl_to_teacher; with labels ece and
    worst_class_drop.

    outputs: array [n, ...] or {name: array}. `classes` of an integer label; None: as many as outputs and labels show,
    and no classification where labels are of another kind. Scores are logits [n, classes], or a single logit [n] or [n,
    1] for two classes. Raises ValueError where outputs, labels and teacher differ in length."""
    truth = None if labels is None else np.asarray(labels)
    classes = _classes(outputs, truth) if classes is None else classes
    ours, theirs = _logits(outputs, classes), _logits(teacher, classes) if teacher is not None else None
    lengths = {len(x) for x in (ours, theirs, truth) if x is not None}
    if len(lengths) > 1:
        raise ValueError(f"outputs, labels and teacher have {' and '.join(str(n) for n in sorted(lengths))} samples")
    found: list[tuple[str, str, tuple[float, float, float], int]] = []
    if truth is not None:
        for metric in metrics:
            records = np.asarray(metric.records(outputs, truth), np.float64)  # as they are kept, and compared
            found.append((metric.name, metric.unit, intervals.interval_of(metric, records), len(records)))
    if ours is not None and theirs is not None and ours.shape == theirs.shape:
        found.append(("agreement", "%", _share(_answers(ours) == _answers(theirs)), len(ours)))
        found.append(("kl_to_teacher", "nat", _mean(kl(theirs, ours)), len(ours)))
    note = {}
    if ours is not None and truth is not None and truth.ndim == 1 and len(ours):
        found.append(("ece", "%", _ece(ours, truth), len(ours)))
        note["ece"] = (
            f"the plain sum over {calibration.BINS} bins, noise of the sample included, is {ece(ours, truth):.2f} %"
        )
        if theirs is not None and ours.shape == theirs.shape:
            found.append(
                (
                    "worst_class_drop",
                    "pt",
                    worst_class_drop(_right(ours, truth), _right(theirs, truth), truth),
                    len(ours),
                )
            )
    return tuple(
        Measurement(name, unit, *figures, n, split, target, "measured", threads, environment, note.get(name, ""))
        for name, unit, figures, n in found
        if all(math.isfinite(x) for x in figures)
    )


def kl(teacher: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL(softmax(teacher) || softmax(candidate)) per sample [n], in nats, of logits [n, classes]."""
    p, q = _log_softmax(teacher), _log_softmax(candidate)
    return np.maximum((np.exp(p) * (p - q)).sum(1), 0.0)  # rounding may leave a tiny negative number


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = calibration.BINS) -> float:
    """Expected calibration error of a sample in percent, as it is mostly published: too great, by the noise in every
    bin. See `probes.ece`."""
    return 100 * calibration.plain(_confidence(logits), _right(logits, labels), bins)


def worst_class_drop(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """(drop, low, high) in percentage points: how much lower the accuracy of the class that lost most is than the
    teacher's.

    Right or wrong per sample (0/1), paired. The limits are simultaneous over the classes (Bonferroni), so the greatest
    lies between the greatest of each side: picking the worst class after looking doesn't make them too short."""
    classes = np.unique(labels)
    each = [intervals.paired(theirs[labels == c], ours[labels == c], 1 - (1 - level) / len(classes)) for c in classes]
    value, low, high = (100 * max(column) for column in zip(*each, strict=True))
    return value, low, high


def _classes(outputs: Any, labels: np.ndarray | None) -> int | None:
    """How many classes there are, if labels are class numbers of the outputs' last axis (or 0 and 1 for a single
    logit)."""
    values = np.asarray(next(iter(outputs.values()))) if isinstance(outputs, Mapping) else np.asarray(outputs)
    if (
        labels is None
        or labels.ndim != 1
        or not len(labels)
        or labels.dtype.kind not in "iub"
        or values.ndim not in (1, 2)
    ):
        return None
    width = 2 if values.ndim == 1 or values.shape[1] == 1 else values.shape[1]
    return width if labels.min() >= 0 and labels.max() < width else None


def _logits(outputs: Any, classes: int | None) -> np.ndarray | None:
    """Outputs as logits [n, classes]; None where they aren't."""
    if isinstance(outputs, Mapping):
        if len(outputs) != 1:
            return None
        outputs = next(iter(outputs.values()))
    values = np.asarray(outputs, np.float64)
    if classes is None:
        return None
    if classes == 2 and (values.ndim == 1 or values.shape[1:] == (1,)):
        single = values.reshape(-1, 1)
        return np.concatenate([np.zeros_like(single), single], axis=1)  # sigmoid(z) = softmax(0, z)
    return values if values.ndim == 2 and values.shape[1] == classes else None


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _answers(logits: np.ndarray) -> np.ndarray:
    """Greatest logit; the first of equals; -1, which agrees with nothing right, where a logit is not a number."""
    return np.where(np.isnan(logits).any(1), -1, np.nan_to_num(logits, nan=0.0).argmax(1))


def _right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (_answers(logits) == labels).astype(np.float64)


def _confidence(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits)).max(1)


def _ece(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    confidence = _confidence(logits)
    if not np.isfinite(confidence).all():
        return math.nan, math.nan, math.nan
    value, low, high = calibration.interval(confidence, _right(logits, labels))
    return 100 * value, 100 * low, 100 * high


def _share(hits: np.ndarray) -> tuple[float, float, float]:
    low, high = intervals.wilson(int(hits.sum()), len(hits))
    return 100 * float(hits.mean()), 100 * low, 100 * high


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    value = float(values.mean())
    if not math.isfinite(value) or len(values) < 2:
        return value, value, value
    return intervals.skewed_mean(values)
