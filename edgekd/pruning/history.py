"""The pruning history of a model as JSON, and how to apply it to a new instance, without pickle, tracing or weights.

A history is a list of removals {"layer", "side", "width", "removed"}, applied in order. `side`: `out` or `in` for a
layer's channels, `axis N` for a parameter outside any layer, or the name of an attribute that holds their number;
`width`: the number of channels before; `removed`: the indices of those removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError

if TYPE_CHECKING:
    from torch import nn

CHANGED = "the model differs from the one that was pruned: use the code that it was made with, or prune it again"


def removal(layer: str, side: str, width: int, removed: Sequence[int]) -> dict[str, Any]:
    return {"layer": layer, "side": side, "width": int(width), "removed": sorted(int(i) for i in removed)}


def apply(module: nn.Module, history: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Removes the channels of `history` from `module` in place. Raises UsageError with every removal that doesn't fit,
    and then changes nothing."""
    widths: dict[tuple[str, str], int] = {}
    problems = []
    for step in history:
        place = (step["layer"], step["side"])
        try:
            there = widths.get(place) or width(module, *place)
        except (AttributeError, TypeError, ValueError, IndexError):
            problems.append(Problem(f"layer `{step['layer']}`", "does not exist, or can't be pruned", CHANGED))
            continue
        if there != step["width"] or not set(step["removed"]) < set(range(there)):
            message = f"has {there} channels ({step['side']}), but its history needs {step['width']}"
            problems.append(Problem(f"layer `{step['layer']}`", message, CHANGED))
        widths[place] = there - len(step["removed"])
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    for step in history:
        cut(module, step["layer"], step["side"], step["removed"])
    return module


def width(module: nn.Module, layer: str, side: str) -> int:
    """The number of channels of `layer` on `side`."""
    import torch_pruning as tp
    from torch import nn
    from torch_pruning.pruner.function import PrunerBox

    if side.startswith("axis "):
        return module.get_parameter(layer).shape[int(side.removeprefix("axis "))]
    part = module.get_submodule(layer)
    if side not in ("in", "out"):
        return int(getattr(part, side))
    if isinstance(part, nn.RMSNorm):
        return part.normalized_shape[-1]
    pruner = PrunerBox[tp.ops.module2type(part)]
    return pruner.get_out_channels(part) if side == "out" else pruner.get_in_channels(part)


def cut(module: nn.Module, layer: str, side: str, removed: Sequence[int]) -> None:
    """Applies one removal with torch-pruning's function for the kind of layer; frozen parameters stay frozen."""
    import torch
    import torch_pruning as tp
    from torch import nn
    from torch_pruning.pruner.function import PrunerBox

    if side.startswith("axis "):
        from edgekd.pruning.attention import narrow

        owner, _, name = layer.rpartition(".")
        narrow(module.get_submodule(owner))
        old, axis = module.get_parameter(layer), int(side.removeprefix("axis "))
        keep = torch.tensor(sorted(set(range(old.shape[axis])) - set(removed)), device=old.device)
        setattr(
            module.get_submodule(owner),
            name,
            nn.Parameter(old.detach().index_select(axis, keep), requires_grad=old.requires_grad),
        )
        return
    part = module.get_submodule(layer)
    if side not in ("in", "out"):
        setattr(part, side, getattr(part, side) - len(removed))
        return
    if isinstance(part, (nn.RMSNorm, nn.LayerNorm)):
        kept = sorted(set(range(part.normalized_shape[-1])) - set(removed))
        part.normalized_shape = (*part.normalized_shape[:-1], len(kept))
        for name, p in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(p.detach()[..., kept].clone(), requires_grad=p.requires_grad))
        return
    frozen = {name for name, p in part.named_parameters(recurse=False) if not p.requires_grad}
    pruner = PrunerBox[tp.ops.module2type(part)]
    with torch.no_grad():
        (pruner.prune_out_channels if side == "out" else pruner.prune_in_channels)(part, list(removed))
    for name, p in part.named_parameters(recurse=False):
        p.requires_grad_(name not in frozen)
