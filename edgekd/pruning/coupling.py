"""Which channels of a model belong together: removing one from a layer removes it from every layer that it reaches.

The graph is torch-pruning's (Fang et al. 2023, "DepGraph", arXiv:2301.12900). What it says is not taken on trust: `proof.py` tries it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError
from edgekd.pruning.history import removal

if TYPE_CHECKING:
    import torch
    from torch import nn

Forward = Callable[["nn.Module", Any], Any]


@dataclass(frozen=True)
class Member:
    """A layer that a group touches. `side`: `out`, `in`, or `axis N` of a parameter that stands by itself; `width`: its channels on that
    side; `index`: for each unit of the group, the channels of this layer that go with it (several behind a flatten)."""

    layer: str
    kind: str
    side: str
    width: int
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. `name`: the layer that makes them; `width` channels in units of `unit` (more than 1
    where a grouped convolution wants its parts equal)."""

    name: str
    width: int
    unit: int
    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        return self.width // self.unit


@dataclass(frozen=True)
class Refusal:
    """A layer whose channels stay, and why."""

    layer: str
    reason: str
    is_output: bool = False

    def __str__(self) -> str:
        return f"layer `{self.layer}`: {self.reason}"


@dataclass(frozen=True)
class Slice:
    """The weights of one layer by channel of the group: `values` [channels, numbers]. `kind`: conv, linear, norm, embedding, other."""

    layer: str
    kind: str
    side: str
    values: torch.Tensor


@dataclass(frozen=True)
class Channels:
    """What a criterion sees of a group: how many channels there are to rank, and their weights in every layer."""

    name: str
    channels: int
    slices: tuple[Slice, ...]


def coupled(model: nn.Module, example: Any, forward: Forward, protect: Iterable[str] = ()) -> tuple[list[Group], list[Refusal]]:
    """Every group of coupled channels that torch-pruning finds, and those that its layers rule out. `protect`: layers to be left as they are.
    Raises UsageError where the model can't be traced."""
    import torch_pruning as tp

    model = copy.deepcopy(model).eval()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point() or p.is_complex())
    try:
        graph = _traced(model, example, forward)
        found = list(graph.get_all_groups(root_module_types=(tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, tp.ops.TORCH_EMBED)))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(Problem("model", f"can't be traced for pruning: {reason}", "its forward must run on a batch of 2 with gradients")) from error
    names, tied = {m: n for n, m in model.named_modules()}, _tied(model)
    made = [_group(graph, each, names, tied, set(protect)) for each in found]
    return [g for g in made if isinstance(g, Group)], list(dict.fromkeys(g for g in made if isinstance(g, Refusal)))


def _traced(model: nn.Module, example: Any, forward: Forward) -> Any:
    import torch
    import torch_pruning as tp

    with warnings.catch_warnings(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", category=UserWarning, module="torch_pruning")  # unknown operations, bare parameters: proof.py tries them
        return tp.DependencyGraph().build_dependency(model, example, forward_fn=forward, output_transform=_tensors, verbose=False)


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of an output that depend on parameters."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [t for each in output for t in _tensors(each)]
    return [output] if getattr(output, "grad_fn", None) is not None else []


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
    """torch-pruning's group as edgekd's, or why its channels stay."""
    from torch.nn.utils import parametrize
    from torch_pruning.ops import OPTYPE

    root = found[0].dep.target.module
    name, size = names[root], len(found[0].idxs)
    parts, rows, kinds = 1, [], _kinds()
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
                return Refusal(name, f"`{layer}` ({type(module).__name__}) normalises over its channels, so none can go without changing the others")
            if kind not in kinds:
                if kind == OPTYPE.ELEMENTWISE:
                    continue
                return Refusal(name, f"its channels meet `{layer}`, and layers of type {type(module).__name__} are not pruned")
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
        return Refusal(name, "no layer takes its channels in: they are an output, or end in an operation that is not traced")
    if size % parts or size == parts:
        return Refusal(name, f"a grouped convolution has only {size / parts:g} of its {size} channels per group")
    members = [_member(*row, size=size, parts=parts) for row in rows]
    if None in members:
        layer = rows[members.index(None)][0]
        return Refusal(name, f"its channels don't arrive one for one at `{layer}` (a split, a reshape or a mix in between)")
    return Group(name, size, parts, tuple(members))


def _width(graph: Any, module: nn.Module, side: str) -> int | None:
    return graph.get_out_channels(module) if side == "out" else graph.get_in_channels(module)


def _member(layer: str, kind: str, side: str, width: int, idxs: Sequence, roots: Sequence, *, size: int, parts: int) -> Member | None:
    """The channels of a layer by unit of the group; None where the units' shares differ."""
    by_root: dict[int, list[int]] = {}
    for index, root in zip(idxs, roots, strict=True):
        by_root.setdefault(root, []).append(index)
    step = size // parts
    index = tuple(tuple(sorted(i for part in range(parts) for i in by_root.get(part * step + unit, ()))) for unit in range(step))
    every = [i for unit in index for i in unit]
    sound = None not in by_root and len({len(unit) for unit in index}) == 1 and every and len(set(every)) == len(every)
    return Member(layer, kind, side, width, index) if sound and min(every) >= 0 and max(every) < width else None


def _kinds() -> dict[Any, str]:
    """torch-pruning's types of layers that can be pruned -> kind."""
    from torch_pruning.ops import OPTYPE as T

    other = {T.EMBED: "embedding", T.PRELU: "other", T.PARAMETER: "other"}
    return {T.CONV: "conv", T.DEPTHWISE_CONV: "depthwise", T.LINEAR: "linear", T.BN: "norm", T.IN: "norm", **other}


def removals(groups: Iterable[Group], gone: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    """The history of removing the units `gone` of each group, all counted before any is removed."""
    sides: dict[tuple[str, str, int], list[int]] = {}
    for group, units in zip(groups, gone, strict=True):
        for member in group.members if len(units) else ():
            sides.setdefault((member.layer, member.side, member.width), []).extend(i for u in units for i in member.index[u])
    return [removal(layer, side, width, removed) for (layer, side, width), removed in sides.items()]


def weights(model: nn.Module, group: Group) -> Channels:
    """The weights of a group, channel by channel, as a criterion wants them. Where channels go in units, a unit counts as one."""
    slices = []
    for member in group.members:
        rows = _rows(model, member)
        if rows is not None:
            values = rows.detach().float()[_long(member.index)].flatten(1)  # [units, channels per unit, numbers]
            slices.append(Slice(member.layer, "conv" if member.kind == "depthwise" else member.kind, member.side, values))
    return Channels(group.name, group.units, tuple(slices))


def _long(index: Sequence[Sequence[int]]) -> torch.Tensor:
    import torch

    return torch.tensor(index, dtype=torch.long)


def _rows(model: nn.Module, member: Member) -> torch.Tensor | None:
    """A layer's weight as [channels of the member's side, numbers]; None for a norm without weights."""
    if member.side.startswith("axis "):
        return model.get_parameter(member.layer).movedim(int(member.side.removeprefix("axis ")), 0).flatten(1)
    module = model.get_submodule(member.layer)
    weight = module.weight
    if weight is None or member.kind in ("norm", "other"):
        return None if weight is None else weight[:, None]
    if member.kind == "depthwise":
        return weight.flatten(1)
    if member.kind == "embedding" or (member.kind == "linear" and member.side == "in"):
        return weight.transpose(0, 1)
    if member.kind == "linear":
        return weight
    if module.transposed:  # [in, out / groups, ...]
        return weight.flatten(1) if member.side == "in" else _by_part(weight.transpose(0, 1), module.groups)
    return weight.flatten(1) if member.side == "out" else _by_part(weight.transpose(0, 1), module.groups)


def _by_part(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[a, b, ...] whose second axis goes in `groups` parts, each seeing `a` channels of its own -> [groups * a, numbers]."""
    a, b = weight.shape[:2]
    return weight.reshape(a, groups, b // groups, -1).transpose(0, 1).reshape(groups * a, -1)
