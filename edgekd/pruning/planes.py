"""Labels of channels along with the values of a forward pass, and notes on which of them go together.

Every element of a tensor has a label: the channel of a parameter that makes it. A plane is a tensor of labels along
with a value, of its number of axes, of size 1 along those on which labels do not depend. An element is gone if its
label is gone in any of its planes. `classes.py` makes classes of what is noted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NONE = 0  # the label of values that belong to no channel


@dataclass(frozen=True)
class Value:
    """What is known of a tensor: its planes; the planes of `means` that it is; whether it is made of parameters only,
    by moves."""

    planes: tuple[Tensor, ...] = ()
    means: tuple[Tensor, ...] = ()
    stored: bool = False


@dataclass(frozen=True)
class Entry:
    """An axis of a parameter, and the label of its first channel."""

    name: str
    axis: int
    first: int
    size: int


@dataclass
class Notes:
    """`entries`; pairs of labels of one class; `level`: (plane, axis) along which labels must be equal; `parts`:
    (plane, axis, sizes) of parts that must lose equally many; `grids`: planes that must stay rectangles; `fixed`:
    (plane, axis, reason): channels that vary along it can't go; `pins` (labels, reason); `means`: (plane, plane or
    None, reason) of a mean over channels and of what it is used on; `products`: (factor, [(plane, axis, size)]) for
    the cost; `shapes`: (modules, plane) where a shape was given; `norms` {number of the operator: planes}."""

    entries: list[Entry] = field(default_factory=list)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    level: list[tuple[Tensor, int]] = field(default_factory=list)
    parts: list[tuple[Tensor, int, tuple[int, ...], str]] = field(default_factory=list)
    grids: list[Tensor] = field(default_factory=list)
    fixed: list[tuple[Tensor, int, str]] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    means: list[tuple[Tensor, Tensor | None, str]] = field(default_factory=list)
    products: list[tuple[int, list[tuple[Tensor, int]]]] = field(default_factory=list)
    shapes: list[tuple[tuple[str, ...], Tensor]] = field(default_factory=list)
    labels: int = 1


def varies(plane: Tensor, axis: int) -> bool:
    return plane.shape[axis] > 1


def compact(plane: Tensor) -> Tensor:
    """A plane without the axes on which its labels do not depend."""
    for axis in range(plane.ndim):
        one = plane.narrow(axis, 0, 1)
        if plane.shape[axis] > 1 and (plane.stride(axis) == 0 or bool((plane == one).all())):
            plane = one
    return plane.clone()


def first(plane: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        plane = plane.narrow(axis, 0, 1)
    return plane


class Noting(TorchDispatchMode):
    """What is known of the tensors of a forward pass, and the notes on their labels. Operators are rules of its
    subclasses."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.notes, self.values, self.stack = Notes(), {}, [""]
        self.names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        self.modules = {m: n for n, m in model.named_modules()}
        self.norms: dict[int, Any] = {}
        self.reads: dict[int, list[tuple[int, tuple[Tensor, ...]]]] = {}
        self.number = -1

    def value(self, tensor: Tensor) -> Value:
        kept = self.values.get(id(tensor))
        if kept is not None:
            return kept[1]
        name = self.names.get(id(tensor))
        if name is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return Value()
        planes = [self.channels(name, axis, tensor.shape[axis], tensor.ndim) for axis in range(tensor.ndim)]
        return self.keep(tensor, Value(tuple(p for p in planes if p.numel() > 1), (), True))

    def channels(self, name: str, axis: int, size: int, ndim: int) -> Tensor:
        """A plane of new labels."""
        start = self.notes.labels
        self.notes.labels += size
        self.notes.entries.append(Entry(name, axis, start, size))
        return torch.arange(start, start + size).reshape([-1 if i == axis else 1 for i in range(ndim)])

    def keep(self, tensor: Any, value: Value) -> Value:
        if isinstance(tensor, torch.Tensor):
            self.values[id(tensor)] = (tensor, value)  # holding the tensor keeps its id
        return value

    def here(self) -> str:
        return self.stack[-1]

    def same(self, a: Tensor, b: Tensor) -> None:
        self.notes.pairs.append(tuple(torch.broadcast_tensors(a, b)))

    def even(self, plane: Tensor, axes: Sequence[int]) -> Tensor:
        """The plane, its labels along `axes` in one class."""
        one = first(plane, axes)
        self.same(plane, one)
        return one

    def empty(self, tensor: Tensor, planes: Sequence[Tensor]) -> bool:
        """Whether a value is 0, as a first state is, so that it has as many channels as `planes`."""
        if self.value(tensor).planes or bool((tensor != 0).any()):
            return False
        self.notes.shapes.extend((tuple(self.stack), p) for p in planes)
        return True

    def fix(self, value: Value, why: str, axes: Sequence[int] | None = None) -> None:
        for plane in value.planes:
            for axis in range(plane.ndim) if axes is None else axes:
                if varies(plane, axis):
                    self.notes.fixed.append((plane, axis, why))

    def ends(self, value: Value, why: str) -> None:
        """Means over channels that are used other than on these channels."""
        self.notes.means.extend((plane, None, why) for plane in value.means)

    def pointwise(self, given: Sequence[Value], shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> Value:
        """Values combined element by element: labels at one place go together; where a value without labels has as
        many elements as labels, they can't go."""
        made: list[Tensor] = []
        for value in given:
            for plane in value.planes:
                plane = plane.reshape([1] * (len(shape) - plane.ndim) + list(plane.shape))
                other = next(
                    (i for i, o in enumerate(made) if any(varies(o, a) and varies(plane, a) for a in range(o.ndim))),
                    None,
                )
                if other is None:
                    made.append(plane)
                else:
                    self.same(made[other], plane)
                    made[other] = torch.broadcast_tensors(made[other], plane)[0]
        why = f"they meet a constant of as many values in `{self.here()}`"
        for value, own in zip(given, shapes, strict=True):
            own = (1,) * (len(shape) - len(own)) + own
            for axis in range(len(shape)):
                if own[axis] > 1 and not any(
                    varies(p, axis - len(shape)) for p in value.planes if p.ndim >= len(shape) - axis
                ):
                    self.notes.fixed.extend((p, axis, why) for p in made if varies(p, axis))
        means = []
        for value in given:
            for mean in value.means:
                for plane in made:
                    self.notes.means.append((mean, plane, f"`{self.here()}` uses a mean over them on other channels"))
                means.extend([] if made else [mean])
        return Value(tuple(made), tuple(means), all(v.stored or not v.planes for v in given) and bool(made))
