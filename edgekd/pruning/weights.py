"""The weights of a group by channel, which a criterion ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.pruning.coupling import Group, Member

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Slice:
    """The weights of one layer by channel of the group: `values` [channels, numbers]. `kind`: conv, linear, norm,
    embedding, other."""

    layer: str
    kind: str
    side: str
    values: torch.Tensor


@dataclass(frozen=True)
class Channels:
    """The input of a criterion: a group's number of channels to rank, and their weights in every layer."""

    name: str
    channels: int
    slices: tuple[Slice, ...]


def weights(model: nn.Module, group: Group) -> Channels:
    """The weights of a group by channel, as input of a criterion. Channels that are removed in units count as one per
    unit."""
    import torch

    slices = []
    for member in group.members:
        rows = _rows(model, member)
        if rows is not None:
            values = rows.detach().float()[torch.tensor(member.index)].flatten(1)  # [units, channels per unit, numbers]
            slices.append(
                Slice(member.layer, "conv" if member.kind == "depthwise" else member.kind, member.side, values)
            )
    return Channels(group.name, group.units, tuple(slices))


def _rows(model: nn.Module, member: Member) -> torch.Tensor | None:
    """A layer's weight as [channels of the member's side, numbers]; None where it has none."""
    if member.kind in ("number", "recurrent"):
        return None
    if member.side.startswith("axis "):
        rows = model.get_parameter(member.layer).movedim(int(member.side.removeprefix("axis ")), 0)
        return rows.reshape(len(rows), -1)
    module = model.get_submodule(member.layer)
    weight = getattr(module, "weight", None)
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
    """[a, b, ...] whose second axis goes in `groups` parts, each seeing `a` channels of its own -> [groups * a,
    numbers]."""
    a, b = weight.shape[:2]
    return weight.reshape(a, groups, b // groups, -1).transpose(0, 1).reshape(groups * a, -1)
