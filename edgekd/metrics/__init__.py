"""Metrics of a task: one record per sample, and the figure that is made of the records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgekd.metrics.selection import one, pair
from edgekd.outputs import class_of
from edgekd.records import Metric, Quantity

TOP1 = Quantity("top1", "%", "samples whose greatest logit is the label's", better="higher", split=True)


def top1(*, output: str | None = None, name: str = TOP1.name) -> Metric:
    """Share of samples whose greatest logit is the label's, in percent.

    Outputs [n, classes], or a single logit [n] or [n, 1] that says yes where it is above 0. Of equal logits the first
    counts; a NaN is wrong. Of a soft label [n, classes] its most probable class counts. `output`: which one, where the
    model has several; `name`: the metric's, where one is taken of two outputs. Raises ValueError where outputs and
    labels don't match."""

    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, labels = pair(outputs, labels, output)
        if values.ndim == 2 and labels.shape == values.shape and values.shape[1] > 1 and labels.dtype.kind == "f":
            labels = class_of(labels)
        if values.ndim not in (1, 2) or labels.shape != values.shape[:1]:
            raise ValueError(
                f"top1 takes outputs [n, classes] and labels [n], not {list(values.shape)} and {list(labels.shape)}; "
                "of classes at several positions take mean_iou or pixel_accuracy, of yes-or-no labels average_precision"
            )
        single = values.ndim == 1 or values.shape[1] == 1
        answers = (values.reshape(len(values)) > 0).astype(np.int64) if single else values.argmax(1)
        broken = np.isnan(values.reshape(len(values), -1)).any(1)
        right: np.ndarray = (answers == labels) & ~broken
        return right.astype(np.float64)

    return Metric(name, TOP1.unit, "higher", records, lambda records: 100.0 * float(np.mean(records)))


def mean_error(*, unit: str = "", output: str | None = None, name: str = "mean_error") -> Metric:
    """Mean absolute error in the labels' unit, averaged within a sample first: outputs and labels [n, ...] of one size.

    `output`, `name`: as of top1. Raises ValueError where outputs and labels don't match."""

    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, labels = pair(outputs, labels, output)
        if len(values) != len(labels) or values.size != labels.size:
            raise ValueError(
                f"mean_error takes outputs and labels of one size, not {list(values.shape)} and {list(labels.shape)}"
            )
        n = len(values)
        errors: np.ndarray = values.reshape(n, -1).astype(np.float64) - labels.reshape(n, -1)
        return np.asarray(np.abs(errors).mean(1))

    return Metric(name, unit, "lower", records, lambda records: float(np.mean(records)))


def are_classes(labels: np.ndarray | None) -> bool:
    """Whether labels are class numbers, one per sample."""
    return labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"


def suiting(labels: np.ndarray) -> Metric:
    """The metric of data that no task describes: top1 of class numbers (a single output may be a probability too), else
    the mean error."""
    if not are_classes(labels):
        return mean_error()
    metric = top1()

    def records(outputs: Any, labels: np.ndarray) -> np.ndarray:
        values = one(outputs, None)
        single = values.ndim == 1 or values.shape[1:] == (1,)
        return metric.records(values - threshold(values) if single else values, labels)

    return replace(metric, records=records)


def threshold(values: np.ndarray) -> float:
    """What a single output says yes above: 0.5 where all of its `values` lie in [0, 1] and so are probabilities, 0 of
    logits."""
    return 0.5 if values.size and bool(((values >= 0) & (values <= 1)).all()) else 0.0


def decided(outputs: np.ndarray, axis: int, limit: float) -> np.ndarray:
    """Class numbers by the greatest entry along an axis; 0 or 1 where it has one entry, by this threshold. -1 where one
    is NaN."""
    broken = np.isnan(outputs).any(axis)
    found = outputs.argmax(axis) if outputs.shape[axis] > 1 else (outputs > limit).astype(np.int64).squeeze(axis)
    return np.where(broken, -1, found)
