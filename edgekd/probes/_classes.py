"""Outputs of a classifier as logits, predicted classes and confidences; None for other outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.inputs import positional
from edgekd.metrics import threshold
from edgekd.probes import Subject

TINY = 1e-7  # the least probability that has a logit: what float32 tells from 1


@dataclass(frozen=True)
class Classified:
    """Outputs of a classifier. `ours`, `theirs`: logits [n, classes] of the file and the teacher; `theirs` None if
    there is no teacher, or its outputs have another form. `labels` [n]: class numbers."""

    ours: np.ndarray
    theirs: np.ndarray | None
    labels: np.ndarray


def classified(subject: Subject) -> Classified | None:
    """A subject's outputs, teacher and labels, where labels are class numbers of one output: logits [n, classes], or a
    single logit or probability [n] or [n, 1] for two classes. Raises ValueError where they differ in length."""
    if subject.outputs is None or subject.labels is None:
        return None
    labels = np.asarray(subject.labels)
    classes = _classes(subject.outputs, labels)
    ours = _logits(subject.outputs, classes)
    theirs = None if subject.teacher is None else _logits(subject.teacher, classes)
    lengths = {len(x) for x in (ours, theirs, labels) if x is not None}
    if len(lengths) > 1:
        raise ValueError(f"outputs, labels and teacher have {' and '.join(str(n) for n in sorted(lengths))} samples")
    if ours is None or not len(ours):
        return None
    return Classified(ours, theirs if theirs is not None and theirs.shape == ours.shape else None, labels)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def answers(logits: np.ndarray) -> np.ndarray:
    """The class with the largest logit, the first of equal ones; -1, which never counts as correct, where a logit is
    NaN."""
    return np.where(np.isnan(logits).any(1), -1, np.nan_to_num(logits, nan=0.0).argmax(1))


def right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the predicted class is the label, else 0."""
    return (answers(logits) == labels).astype(np.float64)


def confidence(logits: np.ndarray) -> np.ndarray:
    """The largest probability [n]."""
    return np.exp(log_softmax(logits)).max(1)


def _classes(outputs: Any, labels: np.ndarray) -> int | None:
    """The number of classes, if labels are class numbers of the outputs' last axis (or 0 and 1 for a single logit);
    else None."""
    values = np.asarray(positional(outputs)[0])
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iub" or values.ndim not in (1, 2):
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
        if threshold(values):
            single = _log_odds(single)
        return np.concatenate([np.zeros_like(single), single], axis=1)  # sigmoid(z) = softmax(0, z)
    return values if values.ndim == 2 and values.shape[1] == classes else None


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities, which may be 0 or 1."""
    p = np.clip(probabilities, TINY, 1 - TINY)
    return np.log(p) - np.log1p(-p)
