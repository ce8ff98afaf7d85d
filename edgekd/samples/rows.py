"""Samples of a model's inputs, and the feeds that a runtime takes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data.column import Rows
from edgekd.inputs import Column, unload
from edgekd.samples.signature import of_model

if TYPE_CHECKING:
    import onnx

WHOLE = "whole"  # each sample is all of an input: it is fed alone
Axis = int | str | None


@dataclass(frozen=True)
class Samples:
    """`arrays` {input: [n, ...]}, the sample first, or columns of them: of a constant a view that repeats it, of
    samples of different shapes an object array of n arrays.

    `axes` {input: the axis along which the model takes samples, None: the same array for every sample, "whole": each
    sample is all of the input}, `answers` {output: the axis of its samples}; 0 where nothing is said. `size`: samples
    that the model takes at once, None where that is open. `labels` [n, ...] if there are any; `names` of the samples
    in messages. Of steps of sequences: `states` {input: the output that it takes the value of at the next step},
    `begins` [n] whether a sequence begins; a state without an array is made by the file itself (runtimes/worker.py)."""

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, Axis] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None
    labels: np.ndarray | None = None
    names: Sequence[str] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    begins: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def alone(self) -> bool:
        """Whether the model takes one sample at a time."""
        return WHOLE in self.axes.values()

    @property
    def rows(self) -> int | None:
        """The number of samples that the model takes at once; None where it is open."""
        return 1 if self.alone else self.size

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{input: the shape of one sample, as the model takes it}; of samples of different shapes the largest."""
        sizes = sum(_sizes(a) for a in self.arrays.values() if a.dtype == object)
        first = int(np.argmax(sizes))
        return {name: array.shape for name, array in self.take(slice(first, first + 1)).feed().items()}

    @property
    def counted(self) -> str:
        """Which sample's `shapes` are, in words; "" where all are of one shape."""
        if not any(a.dtype == object for a in self.arrays.values()):
            return ""
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        return f"counted at the largest sample: {shown}"

    def take(self, rows: Any) -> Samples:
        """The samples of these rows: a slice, or numbers."""
        return replace(
            self,
            arrays={name: chosen(a, rows) for name, a in self.arrays.items()},
            labels=None if self.labels is None else self.labels[rows],
            names=[str(n) for n in np.asarray(self.names, object)[rows]] if len(self.names) else (),
            begins=None if self.begins is None else self.begins[rows],
        )

    def some(self, count: int) -> Samples:
        """The first samples, at most `count`, that the model takes at once."""
        return self.take(slice(0, self.rows or count))

    def feed(self) -> dict[str, np.ndarray]:
        """{input: array} of all samples at once, as the model takes them."""
        return {name: self._fed(name, a) for name, a in self.arrays.items()}

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of all samples in order: as many as the model takes at once, `size` where that is open. The last one
        may be smaller."""
        size = self.rows or size
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size)).feed()
            for array in self.arrays.values():
                unload(array)

    def _fed(self, name: str, array: np.ndarray) -> np.ndarray:
        axis = self.axes.get(name, 0)
        if axis is None:
            return np.asarray(array[0])  # of a scalar no Python or NumPy number, which runtimes don't take
        if axis == WHOLE:
            if len(array) != 1:
                raise ValueError(f"{len(array)} samples of {name}, which takes one at a time")
            return np.asarray(array[0])
        array = array[:] if isinstance(array, Column) else array
        return array if axis == 0 else np.ascontiguousarray(np.moveaxis(array, 0, int(axis)))


def chosen(values: Any, rows: Any) -> Any:
    """The rows of an array, or those of a column as another column."""
    return Rows(values, np.arange(len(values))[rows]) if isinstance(values, Column) else values[rows]


def _sizes(array: np.ndarray) -> np.ndarray:
    """[n] elements of each of several arrays."""
    return np.array([np.size(a) for a in array])


def of(values: Any) -> Samples:
    """Samples as they are; of arrays {input: [n, ...]}, or of one array, those along axis 0."""
    if isinstance(values, Samples):
        return values
    named = values if isinstance(values, Mapping) else {"": values}
    return Samples({name: a if isinstance(a, Column) else np.asarray(a) for name, a in named.items()})


def fitting(values: Any, model: onnx.ModelProto) -> Samples:
    """Samples as they are; of arrays {input: [n, ...]} those of an ONNX file that takes them along axis 0, as many at
    once as it fixes there."""
    found = of(values)
    if found is values:
        return found
    dims = (t.dims for t in of_model(model).inputs.values())
    return replace(found, size=next((max(1, d[0]) for d in dims if d and isinstance(d[0], int)), None))


def joined(parts: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
    """The values of one name over several feeds, with the samples first. Where samples are of different shapes: a row
    for each place along the last axis or the channels, as far as these agree, else single values."""
    moved = [np.moveaxis(p, axis, 0) if p.ndim > axis else p.reshape(-1) for p in parts]
    if len({p.shape[1:] for p in moved}) == 1:
        return np.concatenate(moved)
    for last in (-1, 1):
        if all(p.ndim > 1 for p in moved) and len({p.shape[last] for p in moved}) == 1:
            return np.concatenate([np.moveaxis(p, last, -1).reshape(-1, p.shape[last]) for p in moved])
    return np.concatenate([p.reshape(-1, 1) for p in moved])
