"""What an output of a task is: `Task.outputs = {"mask": classes(axis=1, ignore_index=255)}`. From the kind follow the
losses, metrics and fidelity figures that fit, and what a label must look like.

classes     scores of classes along an axis, one label per position: images, pixels [n, C, H, W], tokens [n, T, C];
            with a `blank`, scores per frame [n, T, C] of a string of fewer symbols, whose place is not known;
            of one class per sample a label may be soft: probabilities [n, C]
yes_no      one logit per independent label, of 0 or 1: [n, L]; a single one may be [n] or [n, 1]
numbers     values to be predicted: [n, ...], labels of the same size
embeddings  vectors [n, D] that are compared by distance or angle; labels are not used by edgekd's losses
raw         anything else, for one's own losses and metrics
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["classes", "yes_no", "numbers", "embeddings", "raw"]
SUM = 1e-3  # how far from 1 probabilities may sum: float16 rounds each by up to 0.0005 of it


@dataclass(frozen=True)
class Output:
    """One output. `axis`: of the classes, the samples' axis counted; `count`: of classes or labels, None for the
    model's; `ignore_index`: the label of positions that don't count; `unit`: of numbers; `blank`: the class between the
    symbols of a string, whose labels [n, L] are filled with `ignore_index`."""

    kind: Kind
    axis: int = 1
    count: int | None = None
    ignore_index: int | None = None
    unit: str = ""
    blank: int | None = None

    @property
    def scored(self) -> bool:
        """Whether it has scores of classes, of which a yes-or-no label has two."""
        return self.kind in ("classes", "yes_no")

    @property
    def deciding(self) -> str:
        """What of it decides the bytes of a training: not its `count` and `unit`, which are checked and shown."""
        return f"{self.kind} {self.axis} {self.ignore_index}" + ("" if self.blank is None else f" {self.blank}")


def classes(
    count: int | None = None, *, axis: int = 1, ignore_index: int | None = None, blank: int | None = None
) -> Output:
    """Scores of classes along `axis`; labels are class indices with the shape of the output without it.

    With `blank`, a class, the output has scores of frames, [n, T, C] (axis 2) or [n, C, T], and a label is a string of
    symbols: labels [n, L] are filled with `ignore_index` (default -1). The loss is `ctc`.

    Raises ValueError for fewer than two classes, for axis 0, which is that of the samples, and for a blank that is no
    class or doesn't count."""
    if count is not None and count < 2:
        raise ValueError(f"{count} is not a number of classes: at least 2, and yes_no() for a single logit")
    if axis == 0:
        raise ValueError("axis 0 is that of the samples")
    if blank is not None:
        ignore_index = -1 if ignore_index is None else ignore_index
        if not 0 <= blank < (count or blank + 1) or blank == ignore_index:
            raise ValueError(f"the blank {blank} is not one of the classes, or is the label that does not count")
    return Output("classes", axis, count, ignore_index, blank=blank)


def yes_no(count: int | None = None, *, ignore_index: int | None = None) -> Output:
    """A logit for each of `count` independent labels, which are 0 or 1: yes where the logit is above 0."""
    if count is not None and count < 1:
        raise ValueError(f"{count} is not a number of labels: at least 1")
    return Output("yes_no", -1, count, ignore_index)


def numbers(unit: str = "") -> Output:
    """Values to be predicted, in a unit."""
    return Output("numbers", unit=unit)


def embeddings() -> Output:
    """Vectors whose distances or angles matter."""
    return Output("embeddings")


def raw() -> Output:
    """An output for one's own losses and metrics."""
    return Output("raw")


def by_name(names: Sequence[str], answer: Any) -> dict[str, Any]:
    """{name: value} in the order of `names`, of what a model with several outputs gives: {name: value}, or a tuple or
    list in this order. Raises ValueError for anything else."""
    hint = f"give {{name: tensor}} of {', '.join(names)}, or a tuple in this order"
    if isinstance(answer, Mapping):
        other = [str(name) for name in answer if name not in names] + [n for n in names if n not in answer]
        if other:
            raise ValueError(f"the model gives {', '.join(map(str, answer)) or 'nothing'}: {hint}")
        return {name: answer[name] for name in names}
    if isinstance(answer, tuple | list) and len(answer) == len(names):
        return dict(zip(names, answer, strict=True))
    form = f"{len(answer)} outputs" if isinstance(answer, tuple | list) else f"one {type(answer).__name__}"
    raise ValueError(f"the model gives {form}: {hint}")


def rows(output: Output, values: Any) -> np.ndarray:
    """The scores [n, positions, classes] of an output that is scored, of an array [n, ...]. A yes-or-no label is two
    classes, of scores 0 and z: sigmoid(z) = softmax([0, z])[1]."""
    values = np.asarray(values)
    if output.kind == "yes_no":
        flat = values.reshape(len(values), -1)
        return np.stack((np.zeros_like(flat), flat), -1)
    moved = np.moveaxis(values, output.axis, -1)
    flat_scores: np.ndarray = moved.reshape(len(moved), -1, moved.shape[-1])
    return flat_scores


def soft(output: Output | None, labels: Any) -> bool:
    """Whether labels, an array, are of the form of soft ones: a probability [n, C] for each class."""
    labels = np.asarray(labels)
    told = output is not None and output.kind == "classes" and output.blank is None
    return told and labels.ndim == 2 and labels.dtype.kind == "f"


def class_of(labels: Any) -> np.ndarray:
    """[n]: the most probable class of soft labels [n, C], the first of equal ones."""
    most: np.ndarray = np.asarray(labels).argmax(1)
    return most


def _soft_problems(output: Output, labels: np.ndarray) -> list[tuple[str, str]]:
    """[(problem, hint)] of soft labels [n, C]."""
    width = labels.shape[1]
    if output.count is not None and width != output.count:
        text = f"labels have shape {list(labels.shape)}, and the task says {output.count} classes"
        return [(text, "soft labels are a probability for each class; class indices are integers")]
    if output.ignore_index is not None:
        text = f"labels are probabilities {list(labels.shape)}, and none of them is the label {output.ignore_index}"
        return [(text, "leave `ignore_index` out of classes(), and samples that don't count out of the split")]
    sums = labels.sum(1, dtype=np.float64)
    wrong = ~((labels >= 0).all(1) & (np.abs(sums - 1) <= SUM))  # not: of a NaN no comparison is true
    if not wrong.any():
        return []
    at = int(wrong.argmax())
    text = (
        f"labels are {labels.dtype}, not class indices, and {wrong.sum()} of {len(labels)} are not probabilities that "
        f"sum to 1: label {at} sums to {sums[at]:.4g}, its least value is {labels[at].min():.4g}"
    )
    return [(text, "labels / labels.sum(1, keepdims=True) of counts; numbers(), if values are to be predicted")]


def label_problems(output: Output, labels: np.ndarray | None) -> list[tuple[str, str]]:
    """[(problem, hint)] of a split's labels [n, ...] by themselves."""
    if output.kind in ("embeddings", "raw"):
        return []
    if labels is None:
        return [
            (
                "samples have no label",
                f"give each a label, or declare the output as {'embeddings' if output.kind == 'numbers' else 'raw'}()",
            )
        ]
    labels = np.asarray(labels)
    if output.kind == "numbers":
        bad = ~np.isfinite(labels.reshape(len(labels), -1)).all(1) if labels.dtype.kind == "f" else np.zeros(1, bool)
        text = f"{bad.sum()} of {len(labels)} labels are NaN or infinite, the first at {bad.argmax()}"
        return [(text, "leave these samples out")] if bad.any() else []
    whole = labels.dtype.kind in "iub" or bool((labels == np.round(labels)).all())
    counted = labels if output.ignore_index is None else labels[labels != output.ignore_index]
    if soft(output, labels) and (not whole or np.isin(labels, (0, 1)).all()):
        return _soft_problems(output, labels)
    if not whole or (labels.dtype.kind == "f" and output.kind == "classes"):
        hint = "labels.astype(int)" if whole else "declare the output as numbers(), if values are to be predicted"
        return [(f"labels are {labels.dtype}, not {'class indices' if output.kind == 'classes' else '0 or 1'}", hint)]
    if output.blank is not None and labels.ndim != 2:
        text = f"labels have shape {list(labels.shape)}, and the output has a blank: they are strings"
        return [(text, f"give [n, L], filled with {output.ignore_index}, or a list of arrays [L_i]")]
    told = labels != output.ignore_index
    if output.blank is not None and (broken := (told[:, 1:] & ~told[:, :-1]).any(1)).any():
        text = f"{broken.sum()} labels have {output.ignore_index} before their end, which fills what is behind it"
        return [(text, "give each string from the first column on")]
    if output.blank is not None and (counted == output.blank).any():
        text = f"{(counted == output.blank).sum()} symbols of labels are the blank, {output.blank}"
        return [(text, f"number the symbols otherwise; {output.ignore_index} fills a label behind its end")]
    most = 2 if output.kind == "yes_no" else output.count
    wrong = (counted < 0) | (counted >= most) if most is not None else counted < 0
    if not wrong.any():
        return [] if counted.size else [("no label counts", "ignore_index is the label of all positions")]
    asked = (
        "are not 0 or 1"
        if output.kind == "yes_no"
        else "are below 0"
        if most is None
        else f"are outside 0 to {most - 1}"
    )
    first = counted[wrong].ravel()[0]
    spare = f"ignore_index={first}" if output.ignore_index is None else f"label them {output.ignore_index}"
    hint = f"{spare}, if these positions don't count"
    return [(f"{wrong.sum()} of {counted.size} labels {asked}, the first is {first}", hint)]


def fit_problems(
    output: Output, answer: tuple[int, ...], labels: tuple[int, ...] | None, *, soft: bool = False
) -> list[tuple[str, str]]:
    """[(problem, hint)] of an output's shape [n, ...] beside the shape of the labels [n, ...], which may be soft."""
    if output.kind == "classes":
        axis = output.axis if output.axis >= 0 else output.axis + len(answer)
        if not 0 < axis < len(answer) or answer[axis] < 2:
            return [(f"gives {list(answer)}, which has no classes along axis {output.axis}", "classes(axis=K)")]
        if output.count is not None and answer[axis] != output.count:
            return [
                (f"gives {answer[axis]} classes along axis {axis}, the task says {output.count}", "make them equal")
            ]
        if output.blank is not None:
            form = f"gives {list(answer)}, and has a blank"
            return [] if len(answer) == 3 else [(form, "scores of frames are [n, T, C] with axis=2, or [n, C, T]")]
        wanted = (*answer[:axis], *answer[axis + 1 :])
        if soft and (len(answer) != 2 or (labels and labels[1:] != answer[1:])):
            text = f"gives {list(answer)}, and labels {list(labels or ())} are floats"
            return [(text, "soft labels are [n, C], of an output [n, C]; class indices of positions are integers")]
        if labels is not None and not soft and labels[1:] != wanted[1:]:
            text = f"gives {list(answer)}: its labels are class indices {list(wanted)}, not {list(labels)}"
            return [(text, "one label for each position")]
    size = math.prod(answer[1:])
    if output.kind in ("yes_no", "numbers") and labels is not None and size != math.prod(labels[1:]):
        return [(f"gives {list(answer)} for labels {list(labels)}", "one value for each label")]
    if output.kind == "yes_no" and output.count is not None and size != output.count:
        return [(f"gives {size} logits, the task says {output.count} labels", "make them equal")]
    return []


def frames(lengths: Any, longest: int, given: int) -> Any:
    """How many frames belong to samples of these lengths, where `longest` steps give `given` frames: one for each K
    steps, the last K or fewer. Raises ValueError where no K gives these."""
    powers = [2**i for i in range(16)]
    for k in (*powers, *range(3, longest + 1)):
        if -(-longest // k) == given:
            return -(-lengths // k)
    raise ValueError(f"{longest} steps give {given} frames, not one for each step, or for each K steps")


def least_frames(output: Output, labels: np.ndarray) -> np.ndarray:
    """[n]: the frames that strings [n, L] need at least: one for each symbol, and a blank between equal ones."""
    told = labels != output.ignore_index
    least: np.ndarray = told.sum(1) + ((labels[:, 1:] == labels[:, :-1]) & told[:, 1:] & told[:, :-1]).sum(1)
    return least


def gap(output: Output, classes: int) -> np.ndarray:
    """[C] float32: the scores that fill the frames behind the end of a sample, of which the blank's is greatest."""
    scores: np.ndarray = (np.arange(classes) == output.blank).astype(np.float32)
    return scores
