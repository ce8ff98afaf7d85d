"""Metrics of outputs of every kind. Each takes the output as `Task.outputs` declares it; `output`: its name, where the
task has several; `name`: the metric's, where one is taken of two outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekd.metrics.formulas import FORMULAS
from edgekd.metrics.selection import pair
from edgekd.outputs import Output, class_of, rows, soft
from edgekd.records import Metric


def pixel_accuracy(of: Output, *, name: str = "pixel_accuracy", output: str | None = None) -> Metric:
    """Share of positions whose greatest score is the label's, in percent, averaged within a sample first. Positions
    that don't count are left out, and samples without any that does."""

    def records(outputs: Any, labels: Any) -> np.ndarray:
        answers, wanted, told = _decided(of, *pair(outputs, labels, output), name)
        right: np.ndarray = ((answers == wanted) & told).sum(1) / np.maximum(told.sum(1), 1)
        return right if of.ignore_index is None else np.stack([right, told.any(1)], 1)

    if of.ignore_index is not None:
        return Metric(name, "%", "higher", records, FORMULAS["counted_share"], "counted_share")
    return Metric(name, "%", "higher", records, _percent)


def label_accuracy(of: Output, *, output: str | None = None, name: str = "label_accuracy") -> Metric:
    """Share of yes-or-no labels that are answered right, in percent: yes where the logit is above 0."""
    return pixel_accuracy(of, name=name, output=output)


def mean_iou(of: Output, *, output: str | None = None, name: str = "mean_iou") -> Metric:
    """Mean over classes of the intersection over union, in percent, over all positions of all samples."""
    return _counted("mean_iou", of, output, name)


def f1(of: Output, *, average: str = "macro", output: str | None = None, name: str = "") -> Metric:
    """F1 in percent, over classes or yes-or-no labels: `average` macro is the mean of each's, micro is of all together.
    Of yes-or-no labels only yes counts. `name`: f1_macro or f1_micro, if not given."""
    if average not in ("macro", "micro"):
        raise ValueError(f"average is {average!r}: macro or micro")
    return _counted(f"f1_{average}", of, output, name or f"f1_{average}")


def rmse(*, unit: str = "", output: str | None = None, name: str = "rmse") -> Metric:
    """Root of the mean squared error, in the labels' unit."""
    return Metric(name, unit, "lower", _errors("rmse", output), FORMULAS["rmse"], "rmse")


def r2(*, output: str | None = None, name: str = "r2") -> Metric:
    """Share of the labels' variance that is explained, at most 1."""
    return Metric(name, "", "higher", _errors("r2", output), FORMULAS["r2"], "r2")


def average_precision(of: Output, *, output: str | None = None, name: str = "average_precision") -> Metric:
    """Average precision of yes-or-no labels in percent, the mean over labels (scikit-learn's)."""
    return Metric(
        name,
        "%",
        "higher",
        _pairs("average_precision", of, output),
        FORMULAS["average_precision"],
        "average_precision",
    )


def auc(of: Output, *, output: str | None = None, name: str = "auc") -> Metric:
    """Area under the ROC curve of yes-or-no labels in percent, the mean over labels (scikit-learn's)."""
    return Metric(name, "%", "higher", _pairs("auc", of, output), FORMULAS["auc"], "auc")


def _percent(records: np.ndarray) -> float:
    return 100.0 * float(np.mean(records))


def _decided(
    of: Output, values: np.ndarray, labels: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(answers, labels, whether they count), each [n, positions]; an answer is -1, never right, where a score is
    NaN."""
    if not of.scored:
        raise ValueError(f"{name} takes classes or yes-or-no labels, not {of.kind}")
    labels = class_of(labels) if soft(of, labels) and np.shape(labels) == values.shape else np.asarray(labels)
    scores, wanted = rows(of, values), labels.reshape(len(labels), -1)
    if scores.shape[:2] != wanted.shape:
        raise ValueError(
            f"{name}: outputs {list(values.shape)} have {scores.shape[1]} positions, labels {wanted.shape[1]}"
        )
    answers = np.where(np.isnan(scores).any(-1), -1, np.nan_to_num(scores, nan=0.0).argmax(-1))
    told = np.ones(wanted.shape, bool) if of.ignore_index is None else wanted != of.ignore_index
    return answers, wanted, told


def _counted(formula: str, of: Output, output: str | None, name: str) -> Metric:
    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, labels = pair(outputs, labels, output)
        answers, wanted, told = _decided(of, values, labels, formula)
        if of.kind == "yes_no" and formula != "mean_iou":  # each label is a class, counted where it is yes
            hit, said, true = (answers == 1) & (wanted == 1) & told, (answers == 1) & told, (wanted == 1) & told
            return np.concatenate([hit, said, true], 1).astype(np.float64)
        count = rows(of, values[:1]).shape[-1] if len(values) else 2
        parts = np.zeros((len(values), 3, count))
        for c in range(count):
            said, true = (answers == c) & told, (wanted == c) & told
            parts[:, :, c] = np.stack([(said & true).sum(1), said.sum(1), true.sum(1)], 1)
        return parts.reshape(len(values), -1)

    return Metric(name, "%", "higher", records, FORMULAS[formula], formula)


def _errors(name: str, output: str | None) -> Callable[[Any, np.ndarray], np.ndarray]:
    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, wanted = (array.astype(np.float64) for array in pair(outputs, labels, output))
        if values.size != wanted.size or len(values) != len(wanted):
            raise ValueError(
                f"{name} takes outputs and labels of one size, not {list(values.shape)} and {list(wanted.shape)}"
            )
        values, wanted = values.reshape(len(values), -1), wanted.reshape(len(wanted), -1)
        count = np.full(len(values), wanted.shape[1], np.float64)
        mean = wanted.mean(1)
        return np.stack([((values - wanted) ** 2).sum(1), mean, ((wanted.T - mean) ** 2).sum(0), count], 1)

    return records


def _pairs(name: str, of: Output, output: str | None) -> Callable[[Any, np.ndarray], np.ndarray]:
    if of.kind != "yes_no":
        raise ValueError(f"{name} takes yes-or-no labels, not {of.kind}")

    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, labels = pair(outputs, labels, output)
        values = values.astype(np.float64)
        _, wanted, told = _decided(of, values, labels, name)
        return np.concatenate([values.reshape(len(values), -1), np.where(told, wanted, -1)], 1)

    return records
