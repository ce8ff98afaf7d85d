"""Figures that are no mean of records: each is computed from parts [n, k] per sample, which are kept, so that intervals
resample samples and `gate` computes the figure again without the task's code. They raise ValueError where they are not
defined.

counts      [n, 3 C]: true positives, predicted, labelled, of each of C classes in the sample
errors      [n, 4]: sum of squared errors, mean of labels, sum of their squared distances from it, number of values
pairs       [n, 2 L]: scores and labels of L yes-or-no labels; a label of -1 does not count
values      [n, 2 L]: L outputs and their labels
shares      [n, 2]: share of the sample's positions, and 1 where it has any that counts, else 0
edits       [n, 2]: edits, length of the reference
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

UNDEFINED = "no label has the answers that the figure needs among these samples"


def mean_iou(parts: np.ndarray) -> float:
    """100 times the mean over classes of TP / (predicted + labelled - TP), of those that occur (Everingham et al. 2010,
    the Pascal VOC challenge, section 4.4)."""
    hit, predicted, labelled = _counts(parts)
    union = predicted + labelled - hit
    return 100.0 * _mean(hit[union > 0] / union[union > 0])


def f1_macro(parts: np.ndarray) -> float:
    """100 times the mean over classes of 2 TP / (predicted + labelled), of those that occur."""
    hit, predicted, labelled = _counts(parts)
    size = predicted + labelled
    return 100.0 * _mean(2 * hit[size > 0] / size[size > 0])


def f1_micro(parts: np.ndarray) -> float:
    """100 times 2 TP / (predicted + labelled), summed over classes."""
    hit, predicted, labelled = (column.sum() for column in _counts(parts))
    return 100.0 * float(_defined(2 * hit, predicted + labelled))


def counted_share(parts: np.ndarray) -> float:
    """100 times the mean of the shares, of samples with a position that counts."""
    shares, counts = parts.T
    return 100.0 * _mean(shares[counts > 0])


def rmse(parts: np.ndarray) -> float:
    """The root of the mean squared error over all values."""
    squares, _, _, count = parts.sum(0)
    return float(np.sqrt(squares / count))


def r2(parts: np.ndarray) -> float:
    """1 - sum (z - y)^2 / sum (y - mean y)^2: the share of the labels' variance that is explained."""
    errors, means, within, count = parts.T
    apart = (means - (count * means).sum() / count.sum()) ** 2
    return float(1 - _defined(errors.sum(), within.sum() + (count * apart).sum()))


def average_precision(parts: np.ndarray) -> float:
    """100 times the mean over labels of sum_k (R_k - R_k-1) P_k, precision and recall at each score, as scikit-learn's
    `average_precision_score`, of labels that have a positive sample. (scikit-learn's own takes a millisecond each,
    which an interval's thousands of resamples can't wait for.)"""

    def of(hits: np.ndarray, misses: np.ndarray) -> float:
        return float((np.diff(hits, prepend=0) * hits / (hits + misses)).sum() / hits[-1])

    return 100.0 * _over_labels(parts, of, both=False)


def auc(parts: np.ndarray) -> float:
    """100 times the mean over labels of the area under the ROC curve, of labels with positive and negative samples."""

    def of(hits: np.ndarray, misses: np.ndarray) -> float:
        return float(np.trapezoid(np.r_[0, hits], np.r_[0, misses]) / (hits[-1] * misses[-1]))

    return 100.0 * _over_labels(parts, of, both=True)


def pearson(parts: np.ndarray) -> float:
    """The correlation of outputs with labels, over all values."""
    outputs, labels = _values(parts)
    return _correlation(outputs, labels)


def spearman(parts: np.ndarray) -> float:
    """The correlation of the ranks of outputs with those of labels, over all values; equal values have the mean of
    their ranks."""
    outputs, labels = _values(parts)
    return _correlation(_ranks(outputs), _ranks(labels))


def error_rate(parts: np.ndarray) -> float:
    """100 times the number of edits, divided by the length of all references."""
    edits, length = parts.sum(0)
    return 100.0 * float(_defined(edits, length))


FORMULAS: dict[str, Callable[[np.ndarray], float]] = {
    f.__name__: f
    for f in (
        mean_iou,
        f1_macro,
        f1_micro,
        counted_share,
        rmse,
        r2,
        pearson,
        spearman,
        average_precision,
        auc,
        error_rate,
    )
}


def _counts(parts: np.ndarray) -> np.ndarray:
    """[3, C] sums over samples."""
    sums: np.ndarray = np.asarray(parts).sum(0).reshape(3, -1)
    return sums


def _values(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outputs, labels = np.split(np.asarray(parts, np.float64), 2, axis=1)
    return outputs.ravel(), labels.ravel()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(_defined(a @ b, np.sqrt((a @ a) * (b @ b))))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[number]
    return ranks


def _mean(values: np.ndarray) -> float:
    if not len(values):
        raise ValueError(UNDEFINED)
    return float(values.mean())


def _defined(part: Any, whole: Any) -> Any:
    if not whole > 0:
        raise ValueError(UNDEFINED)
    return part / whole


def _over_labels(parts: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float], both: bool) -> float:
    """The mean over labels of a figure of (positive samples, negative samples) [k] at or above each of the k scores,
    from the greatest on. Labels without a positive sample are left out, with `both` those without a negative one too.

    Raises ValueError where none is left."""
    scores, labels = np.split(np.asarray(parts), 2, axis=1)
    found = []
    for score, label in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-score, kind="stable")
        order = order[label[order] >= 0]
        sorted_scores, hits = score[order], np.cumsum(label[order])
        last = np.r_[np.flatnonzero(np.diff(sorted_scores)), len(order) - 1] if len(order) else np.zeros(0, np.int64)
        hits, misses = hits[last], (last + 1) - hits[last]
        if len(hits) and hits[-1] > 0 and (misses[-1] > 0 or not both):
            found.append(of(hits, misses))
    if not found:
        raise ValueError(UNDEFINED)
    return float(np.mean(found))
