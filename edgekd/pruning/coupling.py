"""Coupled channels of a model: removing one from a layer removes it from every layer that it reaches.

The graph is torch-pruning's (Fang et al. 2023, "DepGraph", arXiv:2301.12900). `check.py` checks its result.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.pruning.history import removal

if TYPE_CHECKING:
    import torch
    from torch import nn

Forward = Callable[["nn.Module", Any], Any]


@dataclass(frozen=True)
class Member:
    """A layer of a group. `side`: `out`, `in`, or `axis N` of a parameter outside any layer; `width`: its channels on
    that side; `index`: for each unit of the group, the channels of this layer that are removed with it (several after a
    flatten)."""

    layer: str
    kind: str
    side: str
    width: int
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. `name`: the layer that computes them; `width` channels in units of
    `unit` (more than 1 where a grouped convolution needs equal parts)."""

    name: str
    width: int
    unit: int
    members: tuple[Member, ...]

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
) -> tuple[list[Group], list[Refusal]]:
    """(groups of coupled channels that torch-pruning finds, layers that are refused). `protect`: layers to keep
    unchanged. Raises UsageError where the model can't be traced."""
    model = copy.deepcopy(model).eval()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point() or p.is_complex())
    try:
        graph = _traced(model, example, forward)
    except THEIRS as error:
        hint = "its forward must run on a batch of 2, with gradients"
        raise UsageError(Problem("model", f"can't be traced for pruning: {first_line(error)}", hint)) from error
    names, tied = {m: n for n, m in model.named_modules()}, _tied(model)
    found = _followed(graph, names)
    made = [each if isinstance(each, Refusal) else _group(graph, each, names, tied, set(protect)) for each in found]
    order = {name: i for i, name in enumerate(names.values())}
    made.sort(key=lambda each: order[each.name if isinstance(each, Group) else each.layer])
    taken: dict[tuple[str, str, int], str] = {}
    made = [each if isinstance(each, Refusal) else _apart(each, taken) for each in made]
    return [g for g in made if isinstance(g, Group)], list(dict.fromkeys(g for g in made if isinstance(g, Refusal)))


def _apart(group: Group, taken: dict[tuple[str, str, int], str]) -> Group | Refusal:
    """The group, added to `taken`, or a refusal: a channel belongs to one group only."""
    own = {(m.layer, m.side, i) for m in group.members for unit in m.index for i in unit}
    other = next((taken[channel] for channel in sorted(own) if channel in taken), None)
    if other is not None:
        return Refusal(group.name, f"some of its channels are coupled to those of `{other}`, others not")
    taken.update(dict.fromkeys(own, group.name))
    return group


def _traced(model: nn.Module, example: Any, forward: Forward) -> Any:
    import torch
    import torch_pruning as tp

    def differentiable(output: Any) -> list[torch.Tensor]:
        return [t for t in tensors(output) if t.grad_fn is not None]

    with warnings.catch_warnings(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        # unknown operations, bare parameters: check.py tries them
        warnings.filterwarnings("ignore", category=UserWarning, module="torch_pruning")
        return tp.DependencyGraph().build_dependency(
            model, example, forward_fn=forward, output_transform=differentiable, verbose=False
        )


def _followed(graph: Any, names: dict) -> Iterator[Any]:
    """torch-pruning's group of every layer that computes channels, each group once; a refusal where it fails to trace
    them."""
    import torch_pruning as tp

    seen = set()
    for module in graph.module2node:
        if module in seen or not isinstance(module, (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, tp.ops.TORCH_EMBED)):
            continue
        pruner = graph.get_pruner_of_module(module)
        try:
            group = graph.get_pruning_group(
                module, pruner.prune_out_channels, list(range(pruner.get_out_channels(module)))
            )
        except THEIRS as error:
            yield Refusal(
                names[module],
                f"its channels can't be followed through the model ({type(error).__name__}: {first_line(error)})",
            )
            continue
        seen |= {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        yield group


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a model's output, in order."""
    if isinstance(output, dict):
        output = list(output.values())
    return [t for each in output for t in tensors(each)] if isinstance(output, (list, tuple)) else [output]


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _tied(model: nn.Module) -> set[str]:
    """Layers that share a parameter with another layer."""
    owners: dict[Any, set[Any]] = {}
    modules = list(model.named_modules())
    for _, module in modules:
        for _, p in module.named_parameters(recurse=False):
            owners.setdefault(p, set()).add(module)
    shared = {m for group in owners.values() if len(group) > 1 for m in group}
    return {name for name, module in modules if module in shared}


def _group(graph: Any, found: Any, names: dict, tied: set[str], protect: set[str]) -> Group | Refusal:
    """torch-pruning's group as a Group, or a refusal."""
    from torch.nn.utils import parametrize
    from torch_pruning.ops import OPTYPE

    root, size = found[0].dep.target, len(found[0].idxs)
    name, parts, rows, kinds = _first_maker(graph, found, names, root), 1, [], _kinds()
    for item in found:
        module, kind = item.dep.target.module, item.dep.target.type
        if kind == OPTYPE.OUTPUT:
            return Refusal(name, "its channels are the model's output", is_output=True)
        if kind == OPTYPE.PARAMETER:
            layer, side = graph._param_to_name[module], f"axis {graph.module2node[module].pruning_dim % module.ndim}"
            there = module.shape[graph.module2node[module].pruning_dim]
        elif module in names:
            layer, side = names[module], "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            if kind in (OPTYPE.LN, OPTYPE.GN):
                return Refusal(
                    name,
                    f"`{layer}` ({type(module).__name__}) normalises over its channels, so none can go without "
                    "changing the others",
                )
            if kind not in kinds:
                if kind == OPTYPE.ELEMENTWISE:
                    continue
                return Refusal(
                    name, f"its channels meet `{layer}`, and layers of type {type(module).__name__} are not pruned"
                )
            there = _width(graph, module, side)
            if there is None:  # a PReLU with one slope for all channels
                continue
            if parametrize.is_parametrized(module):
                return Refusal(name, f"the weight of `{layer}` is computed from other tensors (a parametrization)")
            if kind == OPTYPE.CONV:
                parts = math.lcm(parts, module.groups)
        else:
            continue  # an operation without weights
        if layer in tied:
            return Refusal(name, f"`{layer}` shares a weight with another layer")
        if any(layer == p or layer.startswith(f"{p}.") for p in protect):
            return Refusal(name, f"`{layer}` is protected")
        rows.append((layer, kinds[kind], side, there, item.idxs, item.root_idxs))
    if not any(side == "in" for _, _, side, *_ in rows):
        return Refusal(name, "no layer takes its channels in: they are the model's output", is_output=True)
    if size % parts or size == parts:
        return Refusal(name, f"a grouped convolution has only {size / parts:g} of its {size} channels per group")
    members = [_member(*row, size=size, parts=parts) for row in rows]
    if None in members:
        layer = rows[members.index(None)][0]
        return Refusal(
            name, f"its channels don't arrive one for one at `{layer}` (a split, a reshape or a mix in between)"
        )
    return Group(name, size, parts, tuple(members))


def _first_maker(graph: Any, found: Any, names: dict, root: Any) -> str:
    """The name of the group: the first layer of the model, in its own order, that computes these channels."""
    makers = {names[root.module]}
    for item in found:
        node = item.dep.target
        if (
            _kinds().get(node.type) in ("conv", "linear", "embedding")
            and graph.is_out_channel_pruning_fn(item.dep.handler)
            and len(item.idxs) == len(found[0].idxs)
        ):
            makers.add(names[node.module])
    return next(name for name in names.values() if name in makers)


def _width(graph: Any, module: nn.Module, side: str) -> int | None:
    return graph.get_out_channels(module) if side == "out" else graph.get_in_channels(module)


def _member(
    layer: str, kind: str, side: str, width: int, idxs: Sequence, roots: Sequence, *, size: int, parts: int
) -> Member | None:
    """The channels of a layer by unit of the group; None where the units' shares differ."""
    by_root: dict[int, list[int]] = {}
    for index, root in zip(idxs, roots, strict=True):
        by_root.setdefault(root, []).append(index)
    step = size // parts
    index = tuple(
        tuple(sorted(i for part in range(parts) for i in by_root.get(part * step + unit, ()))) for unit in range(step)
    )
    every = [i for unit in index for i in unit]
    sound = None not in by_root and len({len(unit) for unit in index}) == 1 and every and len(set(every)) == len(every)
    return Member(layer, kind, side, width, index) if sound and min(every) >= 0 and max(every) < width else None


def _kinds() -> dict[Any, str]:
    """torch-pruning's types of layers that can be pruned -> kind."""
    from torch_pruning.ops import OPTYPE as T

    other = {T.EMBED: "embedding", T.PRELU: "other", T.PARAMETER: "other"}
    return {T.CONV: "conv", T.DEPTHWISE_CONV: "depthwise", T.LINEAR: "linear", T.BN: "norm", T.IN: "norm", **other}


def removals(groups: Iterable[Group], gone: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    """The history of removing the units `gone` of each group; widths are those before any removal."""
    sides: dict[tuple[str, str, int], list[int]] = {}
    for group, units in zip(groups, gone, strict=True):
        for member in group.members if len(units) else ():
            sides.setdefault((member.layer, member.side, member.width), []).extend(
                i for u in units for i in member.index[u]
            )
    return [removal(layer, side, width, removed) for (layer, side, width), removed in sides.items()]
