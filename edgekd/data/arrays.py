"""Arrays, in memory or in mapped files, as the splits of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from edgekd.data import ragged
from edgekd.data.column import cast, column
from edgekd.data.ragged import Ragged
from edgekd.errors import Problem, UsageError
from edgekd.inputs import Column, each, length, named
from edgekd.records import Sample

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Arrays(Sequence[Sample]):
    """Samples in arrays: `inputs` [N, ...] or {name: [N, ...]}, arrays or columns, `labels` [N, ...], {output: [N,
    ...]} or None, `ids`: N of them, `tags`: N tuples or None."""

    inputs: Any
    labels: Any
    ids: list[str]
    tags: Sequence[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = lambda column: column[index]
        inputs, labels = each(self.inputs, at), None if self.labels is None else each(self.labels, at)
        tags = () if self.tags is None else tuple(self.tags[index])
        return Sample(inputs, labels, self.ids[index], tags)


@dataclass(frozen=True)
class Splits:
    """`data(split) -> samples`; an absent split (`unlabelled`, `prior`) is empty. Raises UsageError for an unknown
    split."""

    parts: Mapping[str, Sequence[Sample]] = field(repr=False)

    def __call__(self, split: str) -> Sequence[Sample]:
        if split not in (*PARTS, "unlabelled", "prior"):
            raise UsageError(
                Problem("data", f"there is no split {split!r}", "train, validation, test, unlabelled or prior")
            )
        return self.parts.get(split, ())


def arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    x_validation: Any = None,
    y_validation: Any = None,
    validation: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Splits of arrays or tensors: x [N, ...] or {name: [N, ...]}, y [N] class numbers (or [N, ...] values, or None);
    {output: y} where the task declares several outputs.
    A list of arrays [T_i, ...] holds samples of different length, in x and in y: the task says which input gets their
    `lengths`. A memory-mapped array, `numpy.load(path, mmap_mode="r")`, stays in its file: batches are read from there.

    Without `x_validation`, a share `validation` of the training samples is held out, stratified by class if labels are
    class numbers (of several outputs the first that has some); the choice depends on this `seed`, not on a run's.
    Floats become float32 and integer labels int64; nothing else is changed. Raises UsageError with every problem."""
    given = {"train": (x_train, y_train), "validation": (x_validation, y_validation), "test": (x_test, y_test)}
    problems: list[Problem] = []
    parts = {name: _columns(name, x, y, problems) for name, (x, y) in given.items() if x is not None}
    if x_validation is None and y_validation is not None:
        problems.append(Problem("y_validation", "is given without x_validation", "give both, or neither"))
    shapes = {name: _shape(x) for name, (x, y) in parts.items() if x is not None}
    for name, shape in shapes.items():
        if "train" in shapes and shape != shapes["train"]:
            problems.append(
                Problem(
                    f"x_{name}",
                    f"samples are {shape}, those of x_train {shapes['train']}",
                    "give all splits one shape and type",
                )
            )
    if x_validation is None and not 0 < validation < 1:
        problems.append(
            Problem("validation", f"{validation} is not a share between 0 and 1", "give a number such as 0.2")
        )
    if problems:
        raise UsageError(*problems)
    if x_validation is None:
        x, y = parts["train"]
        held = _held_out(y, length(x), validation, seed)
        kept = np.setdiff1d(np.arange(length(x)), held)
        ids = {"train": [f"train/{i}" for i in kept], "validation": [f"train/{i}" for i in held]}
        parts |= {"train": _rows(x, y, kept), "validation": _rows(x, y, held)}
    else:
        ids = {}
    return Splits(
        {
            name: Arrays(x, y, ids.get(name) or [f"{name}/{i}" for i in range(length(x))])
            for name, (x, y) in parts.items()
        }
    )


def labels_of(labels: Sequence[Any]) -> Any:
    """The labels of samples as one array [N, ...], or {output: array}; None where no sample has any. Raises ValueError
    where samples name other outputs, or shapes differ."""
    if all(label is None for label in labels):
        return None
    if not any(isinstance(label, Mapping) for label in labels):
        return ragged.of(labels) if len({np.shape(label) for label in labels}) > 1 else np.asarray(labels)
    names = next(list(label) for label in labels if isinstance(label, Mapping))
    for number, label in enumerate(labels):
        if not isinstance(label, Mapping) or set(label) != set(names):
            has = ", ".join(map(str, label)) if isinstance(label, Mapping) else "one label"
            raise ValueError(f"sample {number} has {has}, others {', '.join(map(str, names))}")
    return {name: np.asarray([label[name] for label in labels]) for name in names}


def _columns(name: str, x: Any, y: Any, problems: list[Problem]) -> tuple[Any, Any]:
    x = each(x, to_column)
    y = None if y is None else each(y, to_labels)
    columns = {}
    for kind, values in (("x", x), ("y", y)):
        if values is not None:
            columns |= {f"{kind}_{name}[{k!r}]" if k else f"{kind}_{name}": v for k, v in named(values).items()}
    found = [
        Problem(f"{kind}_{name}", f"has no {what}", "give at least one named array")
        for kind, what, values in (("x", "inputs", x), ("y", "labels", y))
        if isinstance(values, Mapping) and not values
    ]
    for place, given in columns.items():
        if given.dtype.kind not in "fiub":
            hint = (
                "give numbers of one shape"
                if place.startswith("x")
                else "number the classes: names, y = numpy.unique(y, return_inverse=True)"
            )
            found.append(
                Problem(place, f"values are of type {'str' if given.dtype.kind == 'U' else given.dtype}", hint)
            )
        if not given.ndim or not len(given):
            found.append(Problem(place, f"is empty: shape {list(given.shape)}", "the first axis counts the samples"))
    lengths = {place: len(given) for place, given in columns.items() if given.ndim}
    if len(set(lengths.values())) > 1:
        found.append(
            Problem(
                f"x_{name}, y_{name}",
                "differ in length: " + ", ".join(f"{k} {n}" for k, n in lengths.items()),
                "one row per sample",
            )
        )
    problems += found
    if found:
        return None, None
    return x, None if y is None else each(y, _whole)


def _whole(labels: Any) -> Any:
    """Integer labels as int64."""
    if labels.dtype.kind not in "iub":
        return labels
    return labels.typed(np.int64) if isinstance(labels, Ragged) else labels.astype(np.int64)


def to_column(values: Any) -> Any:
    """A mapped array or a column as a column, a list of arrays of different length as `Ragged`; what else is like an
    array as an array. Floats are float32."""
    if (samples := _ragged(values)) is not None:
        return samples
    found = column(values)
    return _floats(found) if isinstance(found, Column) else to_array(values)


def to_labels(values: Any) -> Any:
    """Labels as an array, or as `Ragged` where each step has one."""
    samples = _ragged(values)
    return to_array(values) if samples is None else samples


def _ragged(values: Any) -> Ragged | None:
    """Samples of different length; None for anything else."""
    if isinstance(values, Ragged):
        return values.typed(np.float32) if values.dtype.kind == "f" else values
    differ = isinstance(values, (list, tuple)) and len({tuple(getattr(v, "shape", ()))[:1] for v in values}) > 1
    if not differ and str(getattr(values, "dtype", "")) != "object":
        return None
    try:
        return ragged.of([to_array(v) for v in values])
    except ValueError:  # told as values of no number
        return None


def _floats(values: Any) -> Any:
    return cast(values, np.float32) if values.dtype.kind == "f" else values


def to_array(values: Any) -> np.ndarray:
    """Converts array-likes to numpy; floats to float32. Rows of different lengths give dtype object."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu().numpy()
    try:
        values = np.asarray(values)
    except ValueError:  # rows of different lengths
        values = np.asarray(values, dtype=object)
    return _floats(values)


def _shape(x: Any) -> Any:
    return each(x, lambda c: f"{c.dtype} {['any', *c.flat.shape[1:]] if isinstance(c, Ragged) else list(c.shape[1:])}")


def _rows(x: Any, y: Any, index: Any) -> tuple[Any, Any]:
    labels = None if y is None else each(y, lambda values: ragged.pick(values, index))
    return each(x, lambda values: ragged.pick(values, index)), labels


def _held_out(y: Any, count: int, share: float, seed: int) -> np.ndarray:
    """Sorted positions of round(share * count) samples, at least 1 and at most count - 1, stratified by class."""
    if isinstance(y, Mapping):
        y = next((v for v in y.values() if v.dtype.kind == "i" and v.ndim == 1), None)
    generator = np.random.default_rng(seed)
    wanted = min(max(1, round(share * count)), max(1, count - 1))
    if y is None or y.dtype.kind != "i" or y.ndim != 1 or isinstance(y, Ragged):
        return np.sort(generator.permutation(count)[:wanted])
    shuffled = generator.permutation(count)
    grouped = shuffled[np.argsort(y[shuffled], kind="stable")]  # by class, at random within
    # systematic sampling: every class within one of its share
    rank = (np.arange(wanted) + generator.random()) * count / wanted
    return np.sort(grouped[np.floor(rank).astype(np.int64).clip(max=count - 1)])
