"""Metrics of order: whether the label is among the greatest scores, and how far outputs rise with labels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from edgekd.metrics.formulas import FORMULAS
from edgekd.metrics.selection import pair
from edgekd.outputs import Output, class_of, classes, rows, soft
from edgekd.records import Metric


def top_k(k: int = 5, of: Output | None = None, *, output: str | None = None, name: str = "") -> Metric:
    """Share of positions whose label is among the `k` greatest scores, in percent, averaged within a sample first.

    `of`: the output as the task declares it, by default classes [n, C]. Of equal scores the first counts, so `top_k(1)`
    is `top1`; a position with a NaN is wrong. Positions that don't count are left out. `output`, `name`: as of top1.
    Raises ValueError where `k` is not from 1 to the number of classes, or the labels don't match."""
    kind = of or classes()
    if kind.kind != "classes":
        raise ValueError(f"top_k takes classes, one label per position, not {kind.kind}")
    if k < 1:
        raise ValueError(f"k is {k}: at least 1")

    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, labels = pair(outputs, labels, output)
        labels = class_of(labels) if soft(kind, labels) and labels.shape == values.shape else labels
        scores, wanted = rows(kind, values), labels.reshape(len(labels), -1)
        if scores.shape[:2] != wanted.shape:
            raise ValueError(f"top_k: outputs have {scores.shape[1]} positions, labels {wanted.shape[1]}")
        if k > scores.shape[-1]:
            raise ValueError(f"top_k: k is {k}, and there are {scores.shape[-1]} classes")
        told = np.ones(wanted.shape, bool) if kind.ignore_index is None else wanted != kind.ignore_index
        at = np.where(told, wanted, 0).astype(np.int64)[..., None]
        own, before = np.take_along_axis(scores, at, -1), np.arange(scores.shape[-1]) < at
        better = ((scores > own) | ((scores == own) & before)).sum(-1)
        right = (better < k) & ~np.isnan(scores).any(-1) & told
        share: np.ndarray = right.sum(1) / np.maximum(told.sum(1), 1)
        return share if kind.ignore_index is None else np.stack([share, told.any(1)], 1)

    formula = "" if kind.ignore_index is None else "counted_share"
    value = FORMULAS[formula] if formula else lambda records: 100.0 * float(np.mean(records))
    return Metric(name or f"top{k}", "%", "higher", records, value, formula)


def correlation(
    kind: Literal["pearson", "spearman"] = "pearson", *, output: str | None = None, name: str = ""
) -> Metric:
    """Correlation of outputs with labels [n, ...], over all values of all samples, from -1 to 1: Pearson's, or
    Spearman's of their ranks (equal values have the mean of their ranks).

    `output`, `name`: as of top1. Raises ValueError for another `kind`, for sizes that differ, and where outputs or
    labels are all equal."""
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"kind is {kind!r}: pearson or spearman")

    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, wanted = (array.astype(np.float64) for array in pair(outputs, labels, output))
        if len(values) != len(wanted) or values.size != wanted.size:
            shapes = f"{list(values.shape)} and {list(wanted.shape)}"
            raise ValueError(f"{kind} takes outputs and labels of one size, not {shapes}")
        return np.concatenate([values.reshape(len(values), -1), wanted.reshape(len(wanted), -1)], 1)

    return Metric(name or kind, "", "higher", records, FORMULAS[kind], kind)
