"""Quality and fidelity of a file's outputs per sample, against labels and against the teacher, each figure with its 95
% interval: the task's metrics, and those of a classifier.

Formula: KL(teacher || candidate) of the softmax in nats, Hinton et al. arXiv 1503.02531. Figures that a task's outputs
don't define are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from edgekd import intervals
from edgekd.inputs import each
from edgekd.probes import Subject, figure
from edgekd.probes._classes import answers, classified, log_softmax, means, right
from edgekd.records import Measurement, Quantity

AGREEMENT = Quantity(
    "agreement", "%", "answers that are the teacher's", better="higher", split=True, column=10, keep=50
)
KL = Quantity("kl_to_teacher", "nat", "KL divergence from the teacher", better="lower", split=True, column=110)
DROP = Quantity(
    "worst_class_drop", "pt", "how much the class that lost most lost", better="lower", split=True, column=130
)
ERROR = Quantity(
    "error_to_teacher",
    "",
    "mean absolute difference from the teacher",
    better="lower",
    split=True,
    column=115,
)
MEASURES = (AGREEMENT, KL, DROP, ERROR)


def measure(subject: Subject) -> Iterator[Measurement]:
    """The task's metrics, with a teacher agreement, kl_to_teacher and worst_class_drop of a classifier, and
    error_to_teacher of numbers beside other outputs. Raises ValueError where outputs, labels and teacher differ in
    length."""
    found = classified(subject)  # first: it tells lengths that differ
    yield from task_metrics(subject)
    if subject.head and subject.teacher is not None and getattr(subject.output, "kind", "") == "numbers":
        apart = np.abs(np.asarray(subject.outputs, np.float64) - subject.teacher).reshape(len(subject.outputs), -1)
        unit = getattr(subject.output, "unit", "")
        yield figure(ERROR, *_mean(apart.mean(1)), n=len(apart), split=subject.split, unit=unit)
    if found is None or found.theirs is None:
        return
    ours, theirs, labels = found.ours, found.theirs, found.labels
    divergence = found.per_sample(kl(theirs, ours))
    own = {"n": len(divergence), "split": subject.split}
    yield agreement(subject)
    yield figure(KL, *_mean(divergence), **own)
    if found.has_classes:
        drop = worst_class_drop(right(ours, labels), right(theirs, labels), labels, found.sample)
        yield figure(DROP, *drop, **own)


def task_metrics(subject: Subject) -> Iterator[Measurement]:
    """The task's metrics, each with its interval, of outputs that have labels."""
    for metric in subject.metrics if subject.outputs is not None and subject.labels is not None else ():
        records = np.asarray(
            metric.records(subject.outputs, each(subject.labels, np.asarray)), np.float64
        )  # as they are kept
        limits = intervals.interval_of(metric, records)
        yield Measurement(metric.name, metric.unit, *limits, len(records), subject.split, None, "measured")


def agreement(subject: Subject) -> Measurement | None:
    """The share of a classifier's predicted classes that equal the teacher's, of positions averaged within a sample
    first; None if it has no teacher, or is not a
    classifier."""
    found = classified(subject)
    if found is None or found.theirs is None:
        return None
    same = answers(found.ours) == answers(found.theirs)
    if found.sample is None:
        value, (low, high) = float(same.mean()), intervals.wilson(int(same.sum()), len(same))
    else:
        same = found.per_sample(same.astype(np.float64))
        value, low, high = _mean(same)
    limits = (100 * x for x in (value, max(low, 0.0), min(high, 1.0)))
    return figure(AGREEMENT, *limits, n=len(same), split=subject.split)


def kl(teacher: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL(softmax(teacher) || softmax(candidate)) per sample [n], in nats, of logits [n, classes]."""
    p, q = log_softmax(teacher), log_softmax(candidate)
    return np.maximum((np.exp(p) * (p - q)).sum(1), 0.0)  # rounding may leave a tiny negative number


def worst_class_drop(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, sample: np.ndarray | None = None
) -> tuple[float, float, float]:
    """(drop, low, high) in percentage points: how much lower the accuracy of the class that lost most is than the
    teacher's.

    Right or wrong per row (0/1), paired. `sample` [n]: of rows that are positions the number of their sample; the
    accuracy of a class is then averaged within a sample first, over the samples in which it occurs: positions of one
    sample are not independent. One sample says nothing of others: the limits are those of any drop.

    The limits are simultaneous over the classes (Bonferroni), so the greatest lies between the greatest of each side:
    picking the worst class after looking doesn't make them too short."""
    classes = np.unique(labels)
    each = [_drop(labels == c, ours, theirs, sample, 1 - 0.05 / len(classes)) for c in classes]
    value, low, high = (100 * max(column) for column in zip(*each, strict=True))
    return value, low, high


def _drop(
    own: np.ndarray, ours: np.ndarray, theirs: np.ndarray, sample: np.ndarray | None, level: float
) -> tuple[float, float, float]:
    """(drop, low, high) of the rows `own` [n] bool of one class, as shares."""
    if sample is None:
        return intervals.paired(theirs[own], ours[own], level)
    before, after = (means(values[own], sample[own]) for values in (theirs, ours))
    if len(before) < 2:
        return float(before[0] - after[0]), -1.0, 1.0
    value, low, high = intervals.paired(before, after, level)
    return value, max(low, -1.0), min(high, 1.0)


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    value = float(values.mean())
    if not math.isfinite(value) or len(values) < 2:
        return value, value, value
    return intervals.skewed_mean(values)
