"""Coupled channels of a model: removing one from a layer removes it from every layer that it reaches.

Groups are classes of channels (`trace.py`, `classes.py`) that touch the same layers in the same way. The idea of one
graph of dependencies for any architecture is that of Fang et al. 2023 ("DepGraph", arXiv:2301.12900). `check.py` checks
the result."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import THEIRS, Problem, UsageError, first_line
from edgekd.pruning.classes import Classes, varied
from edgekd.pruning.history import removal
from edgekd.pruning.layers import Layers
from edgekd.pruning.planes import Entry
from edgekd.pruning.trace import Forward, Trace, first_row, tensors, traced

if TYPE_CHECKING:
    from torch import nn

MAKERS = ("conv", "linear", "embedding", "recurrent")
OUTPUT = "its channels are the model's output"


@dataclass(frozen=True)
class Member:
    """A layer of a group. `side`: `out`, `in`, `axis N` of a parameter of no such layer, or the name of an attribute
    that holds a number of channels (`num_heads`); `width`: its channels on that side; `index`: for each unit of the
    group, the channels of this layer that are removed with it (several after a flatten)."""

    layer: str
    kind: str
    side: str
    width: int
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. `name`: the layer that computes them; `width` channels in units of
    `unit` (more than 1 where a grouped convolution needs equal parts, or an attention head goes whole). `attributes`:
    numbers of channels that modules keep, which may have to change too; `labels`: one label of each unit."""

    name: str
    width: int
    unit: int
    members: tuple[Member, ...]
    attributes: tuple[Member, ...] = ()
    labels: tuple[int, ...] = ()

    @property
    def units(self) -> int:
        return self.width // self.unit


@dataclass(frozen=True)
class Refusal:
    """A layer that is not pruned, and the reason."""

    layer: str
    reason: str
    is_output: bool = False

    def __str__(self) -> str:
        return f"layer `{self.layer}`: {self.reason}"


def coupled(
    model: nn.Module, example: Any, forward: Forward, protect: Iterable[str] = ()
) -> tuple[list[Group], list[Refusal], Classes, Trace]:
    """(groups of coupled channels, layers that are refused, classes of labels, the trace). `protect`: layers to keep
    unchanged. Raises UsageError where the model doesn't run."""
    model = copy.deepcopy(model).eval()
    try:
        trace, output = traced(model, first_row(example), forward)
    except THEIRS as error:
        hint = "its forward must run on one row"
        raise UsageError(Problem("model", f"can't be traced for pruning: {first_line(error)}", hint)) from error
    layers = Layers(model, trace)
    pins = [*layers.pins(set(protect)), *_outputs(trace, output)]
    classes = Classes(trace.notes, pins, layers.pairs())
    found, refused = [], []
    for units in _alike(layers, classes):
        made = _group(layers, classes, units)
        if isinstance(made, Group):
            found.append(made)
        elif made is not None:
            refused.append(made)
    order = {name: i for i, name in enumerate([*layers.modules, *layers.tensors])}
    found.sort(key=lambda g: order[g.name])
    refused.sort(key=lambda r: order[r.layer])
    return list(_attributes(layers, classes, found)), list(dict.fromkeys(refused)), classes, trace


def _outputs(trace: Trace, output: Any) -> Iterator[tuple[Sequence[int], str]]:
    for tensor in tensors(output):
        value = trace.value(tensor)
        for plane in (*value.planes, *value.means):
            yield plane.reshape(-1).tolist(), OUTPUT


def _alike(layers: Layers, classes: Classes) -> Iterator[list[list[tuple[Entry, int]]]]:
    """Classes that touch the same axes of the same parameters equally often: the units of one group, each a list of
    (axis of a parameter, channel)."""
    members: dict[int, list[tuple[Entry, int]]] = {}
    for entry in layers.entries:
        for i, each in enumerate(classes.of[entry.first : entry.first + entry.size].tolist()):
            members.setdefault(each, []).append((entry, i))
    groups: dict[Any, list[list[tuple[Entry, int]]]] = {}
    for each, found in members.items():
        touched = frozenset(Counter(entry.first for entry, _ in found).items())
        groups.setdefault((touched, classes.pinned.get(each)), []).append(found)
    yield from groups.values()


def _group(layers: Layers, classes: Classes, units: list[list[tuple[Entry, int]]]) -> Group | Refusal | None:
    """The units as a Group, or why they can't go; None where no layer makes them."""
    sides: dict[tuple[str, str, str, int], list[list[int]]] = {}
    for number, unit in enumerate(units):
        for entry, i in unit:
            for layer, kind, side, width, channels in layers.sides(entry, i):
                place = (layer, kind, side, width)
                if place not in sides:
                    sides[place] = [[] for _ in units]
                sides[place][number].extend(channels)
    members = tuple(Member(*place, tuple(tuple(sorted(set(u))) for u in index)) for place, index in sides.items())
    made = [m for m in members if m.kind in MAKERS and m.side in ("out", "hidden_size")]
    made = made or [m for m in members if m.kind in ("linear", "other") and m.side == "axis 0"]
    if not made:
        return None
    first = min(made, key=lambda m: layers.order[m.layer])
    bare = first.kind == "other"  # a parameter of no layer, such as a table of positions
    label = units[0][0][0].first + units[0][0][1]
    why = classes.pinned.get(int(classes.of[label]))
    if why is not None:
        return None if bare else Refusal(first.layer, why, why == OUTPUT)
    if first.width == 1:
        return None
    if not any(m.side == "in" or m.side.startswith("axis ") for m in members):
        return (
            None if bare else Refusal(first.layer, "no layer takes its channels in: they are the model's output", True)
        )
    if len(units) == 1:
        return None if bare else Refusal(first.layer, f"its {len(first.index[0])} channels can only go all together")
    each = len(first.index[0])
    labels = tuple(unit[0][0].first + unit[0][1] for unit in units)
    return Group(first.layer, each * len(units), each, members, labels=labels)


def _attributes(layers: Layers, classes: Classes, groups: Sequence[Group]) -> Iterator[Group]:
    """The groups with the numbers that modules keep of them, as sizes that they give to operators."""
    owner = {int(classes.of[label]): (g, u) for g, group in enumerate(groups) for u, label in enumerate(group.labels)}
    found: list[dict[tuple[str, str, int], dict[int, list[int]]]] = [{} for _ in groups]
    for stack, plane in layers.trace.notes.shapes:
        at = classes.at(plane)
        for axis in (a for a in range(at.ndim) if varied(at, a)):
            line = np.moveaxis(at, axis, 0).reshape(at.shape[axis], -1)[:, 0]
            owned = [(i, owner[c]) for i, c in enumerate(line.tolist()) if c in owner]
            for module, name in layers.numbers(stack, len(line)) if owned else ():
                for i, (g, unit) in owned:
                    index = found[g].setdefault((module, name, len(line)), {}).setdefault(unit, [])
                    index.extend([i] if i not in index else [])
    for group, places in zip(groups, found, strict=True):
        members = [
            Member(layer, "number", name, width, tuple(tuple(index.get(u, ())) for u in range(group.units)))
            for (layer, name, width), index in places.items()
        ]
        yield replace(group, attributes=tuple(m for m in members if len({len(i) for i in m.index}) == 1))


def removals(groups: Iterable[Group], gone: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    """The history of removing the units `gone` of each group; widths are those before any removal."""
    sides: dict[tuple[str, str, int], list[int]] = {}
    for group, units in zip(groups, gone, strict=True):
        for member in (*group.members, *group.attributes) if len(units) else ():
            sides.setdefault((member.layer, member.side, member.width), []).extend(
                i for u in units for i in member.index[u]
            )
    return [removal(layer, side, width, sorted(set(removed))) for (layer, side, width), removed in sides.items()]
