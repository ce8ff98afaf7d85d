"""Samples that are read by position when they are asked for: from images, a data set, whatever gives one at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekd.data.column import held
from edgekd.errors import THEIRS, EdgekdError, Problem, UsageError
from edgekd.inputs import Column, chunks, each, named, room
from edgekd.records import Sample

SHOWN = 10  # samples that can't be read, reported one by one
Form = tuple[tuple[int, ...], np.dtype[Any]]  # of one sample's values


class Reader:
    """`read(i)` gives the inputs of sample i of `count`: one array, or {name: array}; floats become float32. Only the
    rows asked for last are kept: several inputs of a sample are read together. `place`: where problems are said to be;
    `stamp()`: a JSON value that changes whenever the samples may have changed, None where nothing tells; `forms`
    {input: (shape, type)} where they are known, else those of the first sample."""

    def __init__(
        self,
        count: int,
        read: Callable[[int], Any],
        place: str,
        stamp: Callable[[], Any] = lambda: None,
        forms: Mapping[str, Form] | None = None,
    ) -> None:
        self.count, self.read, self.place, self.stamp = count, read, place, stamp
        self.forms = dict(forms or {name: form(value) for name, value in named(self.one(0)).items()})
        self.last: tuple[bytes, dict[str, np.ndarray]] = (b"", {})
        self.problems: list[Problem] | None = None  # collected where a list

    def one(self, position: int) -> Any:
        """The inputs of a sample. Raises UsageError where it can't be read."""
        try:
            return self.read(position)
        except EdgekdError:
            raise
        except THEIRS as error:  # (a data set is the user's own code)
            text = f"reading raises {type(error).__name__}: {error}"
            raise UsageError(Problem(f"{self.place}: sample {position}", text)) from None

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """{input: [len(index), ...]}"""
        key = index.tobytes()
        if self.last[0] != key or not key:
            found = {name: np.zeros((len(index), *shape), dtype) for name, (shape, dtype) in self.forms.items()}
            for row, position in enumerate(index.tolist()):
                self._put(found, row, position)
            self.last = (key, found)
        return {name: values.copy() for name, values in self.last[1].items()}

    def _put(self, found: Mapping[str, np.ndarray], row: int, position: int) -> None:
        try:
            values = named(self.one(position))
            forms = {name: form(value) for name, value in values.items()}
            if forms != self.forms:
                said = "; ".join(f"{name or 'input'} {t} {list(s)}" for name, (s, t) in forms.items())
                text = f"samples can't be stacked: sample {position} is {said}, unlike the first"
                raise UsageError(Problem(self.place, text, "give all inputs one shape and type"))
            for name, value in values.items():
                found[name][row] = value
        except UsageError as error:
            if self.problems is None:
                raise
            self.problems += error.problems

    def columns(self) -> Any:
        """The inputs: a column, or {name: column}."""
        found = {name: Read(self, name) for name in self.forms}
        return found[""] if list(found) == [""] else found


@dataclass(frozen=True, eq=False)
class Read(Column):
    """One input of a reader's samples."""

    reader: Reader = field(repr=False)
    name: str
    decoded = True

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.reader.count, *self.reader.forms[self.name][0])

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.reader.forms[self.name][1]

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.reader.rows(index)[self.name]

    def stamp(self) -> Any:
        known = self.reader.stamp()
        return None if known is None else [known, self.name]


def form(value: Any) -> Form:
    """The shape and type of one sample's values: floats are float32."""
    array = np.asarray(value)
    return array.shape, np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype


def size(values: Any) -> int:
    """Bytes of one sample's inputs."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in named(each(values, form)).values())


def small(inputs: Any) -> Any:
    """Columns as arrays in memory, if together they are small; else as they are. Raises UsageError with all samples
    that can't be read."""
    if not held(sum(math.prod(values.shape) * values.dtype.itemsize for values in named(inputs).values())):
        return inputs
    with every_problem(inputs):
        return each(inputs, lambda values: np.concatenate(list(chunks(values))))


@contextlib.contextmanager
def every_problem(inputs: Any) -> Iterator[None]:
    """Meanwhile, samples that can't be read are zeros. Raises UsageError with all of them afterwards: the first SHOWN,
    and how many more."""
    found = list(dict.fromkeys(reader for values in named(inputs).values() for reader in readers(values)))
    for reader in found:
        reader.problems = []
    try:
        yield
        problems = list(dict.fromkeys(p for reader in found for p in reader.problems or ()))
    finally:
        for reader in found:
            reader.problems = None
    if problems:
        more = [Problem(found[0].place, f"and {len(problems) - SHOWN} more samples that can't be read")]
        raise UsageError(*problems[:SHOWN], *(more if len(problems) > SHOWN else ()))


def readers(values: Any) -> Iterator[Reader]:
    """What a column reads with, through the columns that it is made of."""
    if isinstance(values, Read):
        yield values.reader
    for inner in (getattr(values, "of", None), *getattr(values, "parts", ())):
        if isinstance(inner, Column):
            yield from readers(inner)


class Notes:
    """What comes with the inputs of `count` samples, noted as each is read for the first time."""

    def __init__(self, count: int, place: str):
        self.count, self.place, self.done = count, place, False
        self.ids: list[Any] = list(range(count))
        self.weight = np.ones(count, np.float32)
        self.tags: list[tuple[str, ...]] = [()] * count
        self.labels: dict[str, np.ndarray] | None = None  # by output, "" is the only one
        self.labelled = np.zeros(count, bool)

    def noted(self, position: int, sample: Sample) -> Sample:
        if not self.done:
            self.ids[position] = position if sample.id is None else sample.id
            self.weight[position], self.tags[position] = sample.weight, tuple(sample.tags)
            self._label(position, sample.label)
        return sample

    def _label(self, position: int, label: Any) -> None:
        if label is None:
            return
        given = {name: np.asarray(value) for name, value in named(label).items()}
        if self.labels is None:
            self.labels = {name: room((self.count, *value.shape), value.dtype) for name, value in given.items()}
        if given.keys() != self.labels.keys():
            text = f"the label of sample {position} is of {', '.join(given) or 'none'}, labels before it of "
            hint = "give every sample one label, or {output: label} of the same outputs"
            raise UsageError(Problem(self.place, text + (", ".join(self.labels) or "none"), hint))
        for name, value in given.items():
            kept = self.labels[name]
            if value.shape != kept.shape[1:] or np.result_type(value, kept.dtype) != kept.dtype:
                had, what = f"{kept.dtype} {list(kept.shape[1:])}", f"label {name}".strip()
                text = (
                    f"the {what} of sample {position} is {value.dtype} {list(value.shape)}, labels before it are {had}"
                )
                raise UsageError(Problem(self.place, text, "give all labels one shape and type"))
            kept[position] = value
        self.labelled[position] = True

    def rest(self) -> tuple[Any, list[Any], np.ndarray, list[tuple[str, ...]] | None]:
        """(labels, ids, weights, tags or None) once every sample was read."""
        self.done = True
        labels = self.labels if self.labels is None or "" not in self.labels else self.labels[""]
        return labels, self.ids, self.weight, self.tags if any(self.tags) else None

    def check(self) -> None:
        """Raises UsageError where some samples have a label and others none."""
        if self.labels is not None and not self.labelled.all():
            text = f"{(~self.labelled).sum()} of {self.count} samples have no label"
            raise UsageError(Problem(self.place, text, "label all samples of a split, or none"))
