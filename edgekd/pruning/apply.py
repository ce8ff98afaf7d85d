"""Pruning a model, and doing the same again to a fresh one from a history of JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import RunFailed
from edgekd.pruning.groups import dependencies

if TYPE_CHECKING:
    import torch
    from torch import nn


def prune(model: nn.Module, example: Any, widths: Mapping[str, int], criterion: Callable, forward: Any = None) -> list[dict[str, Any]]:
    """Prunes every group to its width in place, keeping the channels that `criterion` scores highest (ties: the first), and returns the
    history: [{layer, kind, side, channels}] in the order in which it was done."""
    from torch import nn

    graph = dependencies(model, example, forward)
    names = {module: name for name, module in model.named_modules()}
    modules = dict(model.named_modules())
    kept = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for root, width in widths.items():
            group = graph.get_pruning_group(modules[root], _out(modules[root]), idxs=list(range(_width(modules[root]))))
            scores = criterion(weights_of(group, names))
            order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
            kept[root] = sorted(order[width:])
        history = []
        for root, channels in kept.items():
            if not channels:
                continue
            group = graph.get_pruning_group(modules[root], _out(modules[root]), idxs=channels)
            if not graph.check_pruning_group(group):
                raise RunFailed(f"pruning `{root}` to {widths[root]} channels would leave a layer without any")
            for item in group:
                module, handler = item.dep.target.module, item.dep.handler
                if module in names and isinstance(module, nn.Module) and next(module.parameters(recurse=False), None) is not None:
                    side = "out" if "out" in handler.__name__ else "in"
                    history.append(
                        {"layer": names[module], "kind": type(handler.__self__).__name__, "side": side, "channels": [int(i) for i in item.idxs]}
                    )
            group.prune()
    return history


def apply(model: nn.Module, history: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Does to a fresh model what the history tells; its weights are then loaded over. Raises RunFailed for a history of another model."""
    from torch_pruning.pruner import function

    pruners = {type(p).__name__: p for p in function.PrunerBox.values()}
    modules = dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in history:
            module, pruner = modules.get(entry["layer"]), pruners.get(entry["kind"])
            if module is None or pruner is None:
                raise RunFailed(f"the pruning history names `{entry['layer']}` ({entry['kind']}), which this model has not")
            act = pruner.prune_out_channels if entry["side"] == "out" else pruner.prune_in_channels
            act(module, list(entry["channels"]))
    return model


def weights_of(group: Any, names: Mapping[Any, str]) -> list[torch.Tensor]:
    """What a criterion looks at: of each layer's weight in the group, [channels, values of that channel]."""
    found = []
    for item in group:
        module, handler = item.dep.target.module, item.dep.handler
        weight = getattr(module, "weight", None)
        if module not in names or weight is None or weight.ndim < 2:
            continue
        transposed = type(module).__name__.startswith("ConvTranspose")
        axis = 0 if ("out" in handler.__name__) != transposed else 1
        if weight.shape[axis] <= max(item.idxs):
            continue  # a depthwise weight has one input position
        rows = weight.detach().float().transpose(0, axis).flatten(1)[list(item.idxs)]
        found.append(rows.reshape(len(group[0].idxs), -1))
    return found


def _out(module: nn.Module) -> Callable:
    import torch_pruning as tp

    return tp.pruner.function.PrunerBox[tp.ops.module2type(module)].prune_out_channels


def _width(module: nn.Module) -> int:
    return getattr(module, "out_channels", None) or module.out_features


def trial(model: nn.Module, example: Any, widths: Mapping[str, int], forward: Any = None) -> dict[str, str]:
    """{root: why} of the groups that the model does not survive: each is pruned alone on a copy, and the copy is run. {} if all is well.

    Finds what no graph shows: channel counts written into a forward, views of a fixed size."""
    import copy

    import torch

    run = forward or (lambda model, inputs: model(inputs))

    def attempt(some: Mapping[str, int]) -> str:
        trial = copy.deepcopy(model).eval()
        try:
            prune(trial, example, some, lambda weights: torch.arange(len(weights[0]), 0, -1), forward)
            with torch.no_grad():
                shape = run(model.eval(), example).shape
                after = run(trial, example).shape
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return "" if after == shape else f"the output's shape becomes {list(after)} instead of {list(shape)}"

    if not attempt(widths):
        return {}
    found = {root: attempt({root: width}) for root, width in widths.items()}
    return {root: why for root, why in found.items() if why} or {next(iter(widths)): attempt(widths)}
