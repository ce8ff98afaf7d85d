"""Outputs of a classifier as logits, predicted classes and confidences; None for other outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd import outputs
from edgekd.inputs import bare, named, positional
from edgekd.metrics import threshold
from edgekd.outputs import Output
from edgekd.probes import Subject

TINY = 1e-7  # the least probability that has a logit: what float32 tells from 1


@dataclass(frozen=True)
class Classified:
    """Outputs of a classifier. `ours`, `theirs`: logits [n, classes] of the file and the teacher; `theirs` None if
    there is no teacher, or its outputs have another form. `labels` [n]: class numbers. `sample` [n]: the number of the
    sample that a row is a position of (a pixel, a token, a yes-or-no label), None where each row is a sample.
    `has_classes`: whether a label is one of the same classes in every row: not of frames, nor of yes-or-no labels."""

    ours: np.ndarray
    theirs: np.ndarray | None
    labels: np.ndarray
    sample: np.ndarray | None = None
    has_classes: bool = True

    def per_sample(self, values: np.ndarray) -> np.ndarray:
        """The mean of values [n] over the rows of each sample that has any."""
        return values if self.sample is None else means(values, self.sample)


def means(values: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """The mean of values [n] over the rows of each sample that has any, in the order of samples."""
    count = np.bincount(sample)
    found: np.ndarray = np.bincount(sample, values)[count > 0] / count[count > 0]
    return found


def classified(subject: Subject) -> Classified | None:
    """A subject's outputs, teacher and labels, where labels are class numbers of one output: logits [n, classes], or a
    single logit or probability [n] or [n, 1] for two classes. Raises ValueError where they differ in length."""
    if subject.outputs is None or subject.labels is None or isinstance(subject.labels, Mapping):
        return None  # (of several outputs each is a subject of its own)
    if subject.output is not None and not isinstance(subject.output, Mapping):
        return _positions(subject, subject.output) if subject.output.scored else None
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


def _positions(subject: Subject, output: Output) -> Classified | None:
    """The rows of an output that the task declares: one for each position that counts. Raises ValueError where outputs
    and labels differ in size."""
    if output.blank is not None:
        return _frames(subject, output)
    ours, labels = outputs.rows(output, bare(named(subject.outputs))), np.asarray(subject.labels)
    labels = outputs.class_of(labels) if outputs.soft(output, labels) else labels
    labels = labels.reshape(len(labels), -1)
    if ours.shape[:2] != labels.shape:
        raise ValueError(f"outputs have {list(ours.shape[:2])} samples and positions, labels {list(labels.shape)}")
    theirs = None if subject.teacher is None else outputs.rows(output, bare(named(subject.teacher)))
    theirs = theirs if theirs is not None and theirs.shape == ours.shape else None
    told = np.ones(labels.shape, bool) if output.ignore_index is None else labels != output.ignore_index
    if not told.any():
        return None
    sample = None if ours.shape[1] == 1 else np.nonzero(told)[0]
    same = sample is None or output.kind == "classes"
    return Classified(ours[told], None if theirs is None else theirs[told], labels[told], sample, same)


def _frames(subject: Subject, output: Output) -> Classified:
    """The rows of an output of strings, one for each frame of a sample. No frame has a label of its own."""
    ours = outputs.rows(output, bare(named(subject.outputs)))
    theirs = None if subject.teacher is None else outputs.rows(output, bare(named(subject.teacher)))
    theirs = theirs if theirs is not None and theirs.shape == ours.shape else None
    told = (ours != outputs.gap(output, ours.shape[-1])).any(-1)
    none = np.full(int(told.sum()), -1)
    theirs = None if theirs is None else theirs[told]
    return Classified(ours[told], theirs, none, np.nonzero(told)[0], has_classes=False)


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


def _classes(given: Any, labels: np.ndarray) -> int | None:
    """The number of classes, if labels are class numbers of the outputs' last axis (or 0 and 1 for a single logit);
    else None."""
    values = np.asarray(positional(given)[0])
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iub" or values.ndim not in (1, 2):
        return None
    width = 2 if values.ndim == 1 or values.shape[1] == 1 else values.shape[1]
    return width if labels.min() >= 0 and labels.max() < width else None


def _logits(given: Any, classes: int | None) -> np.ndarray | None:
    """Outputs as logits [n, classes]; None where they aren't."""
    if isinstance(given, Mapping):
        if len(given) != 1:
            return None
        given = next(iter(given.values()))
    values = np.asarray(given, np.float64)
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
