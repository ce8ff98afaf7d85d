"""Which channels must go together: torch-pruning's dependency graph, read once, and an exact model of the multiply-accumulates.

What can't be pruned stays as it is, with the reason: outputs of the model, grouped convolutions, parameters that a module uses bare."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Touch:
    """A layer that a group reaches: its dotted path, which side, the kind of torch-pruning's pruner, and how many of its positions."""

    layer: str
    side: str
    kind: str
    positions: int


@dataclass(frozen=True)
class Group:
    """Coupled channels. `root`: the layer that makes them; `width`: how many; `fixed`: why they can't be pruned, '' where they can."""

    root: str
    width: int
    touches: tuple[Touch, ...]
    fixed: str = ""


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates of each layer as a product of what is kept of its two sides: sum_l full_l (O k + o)_l (I k + i)_l,
    where k [groups] are kept shares. Exact for convolutions and linear layers."""

    full: np.ndarray
    outs: np.ndarray
    out_rest: np.ndarray
    ins: np.ndarray
    in_rest: np.ndarray

    def macs(self, shares: np.ndarray) -> np.ndarray:
        """[...] of shares [..., groups]"""
        return ((shares @ self.outs.T + self.out_rest) * (shares @ self.ins.T + self.in_rest)) @ self.full


def dependencies(model: nn.Module, example: Any, forward: Any = None):
    """torch-pruning's graph of the model. Raises UsageError where it can't be traced."""
    import torch
    import torch_pruning as tp

    try:
        with warnings.catch_warnings(), torch.enable_grad():  # it traces by autograd
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                model.eval(), example, forward_fn=forward or (lambda model, inputs: model(inputs)), verbose=False
            )
    except Exception as error:
        text = f"can't be traced for pruning: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UsageError(Problem("model", text, "write the model with modules and tensor operations, or leave out the `prune` stage")) from error


def groups(model: nn.Module, example: Any, forward: Any = None, keep: Sequence[str] = ()) -> list[Group]:
    """The coupled channels of convolutions and linear layers, in the order of the model's modules."""
    import torch_pruning as tp
    from torch import nn

    graph = dependencies(model, example, forward)
    names = {module: name for name, module in model.named_modules()}
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = list(graph.get_all_groups(root_module_types=[nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear]))
    for group in every:
        root = group[0].dep.target.module
        width, fixed, touches = len(group[0].idxs), "", []
        for item in group:
            target, handler = item.dep.target, item.dep.handler
            module, pruner = target.module, type(handler.__self__).__name__
            if target.type == tp.ops.OPTYPE.PARAMETER:
                fixed = fixed or f"the parameter `{target.name}` is used bare"
            elif isinstance(module, nn.MultiheadAttention):
                fixed = fixed or f"`{names.get(module, '?')}` is a multi-head attention"
            elif module in names and any(True for _ in module.parameters(recurse=False)):
                side = "out" if "out" in handler.__name__ else "in"
                touches.append(Touch(names[module], side, pruner, len(item.idxs)))
                if side == "out" and any(names[module] == k or names[module].startswith(f"{k}.") for k in keep):
                    fixed = fixed or "kept by the recipe"
                if getattr(module, "groups", 1) > 1 and not _depthwise(module):
                    fixed = fixed or f"`{names[module]}` is a grouped convolution ({module.groups} groups)"
                if side == "out" and _is_output(graph.module2node[module]):
                    fixed = fixed or f"`{names[module]}` makes the model's output"
        found.append(Group(names[root], width, tuple(touches), fixed))
    order = {name: i for i, name in enumerate(names.values())}
    return sorted(found, key=lambda g: order[g.root])


def _depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels


def _is_output(node: Any) -> bool:
    """Whether what the node makes reaches the model's output through operations without channels of their own."""
    import torch_pruning as tp

    own = {tp.ops.OPTYPE.CONV, tp.ops.OPTYPE.LINEAR}
    stack, seen = [node], {node}
    while stack:
        here = stack.pop()
        if not here.outputs:
            return True
        for after in here.outputs:
            if after not in seen and after.type not in own:
                seen.add(after)
                stack.append(after)
    return False


def costs(model: nn.Module, example: Any, found: list[Group], forward: Any = None) -> Costs:
    """The cost model for the prunable groups of `found` (in their order)."""
    free = [g for g in found if not g.fixed]
    modules, full = dict(model.named_modules()), layer_macs(model, example, forward)
    names = list(full)
    outs, ins = np.zeros((len(names), len(free))), np.zeros((len(names), len(free)))
    for column, group in enumerate(free):
        for touch in group.touches:
            if touch.layer in full:
                module, row = modules[touch.layer], names.index(touch.layer)
                sides = (("out", outs), ("in", ins))
                total = {"out": _width(module, "out"), "in": _width(module, "in")}[touch.side]
                if _depthwise(module):  # its cost goes with its channels once
                    outs[row, column] = 1.0
                else:
                    dict(sides)[touch.side][row, column] += touch.positions / total
    return Costs(np.array(list(full.values()), float), outs, 1 - outs.sum(1), ins, 1 - ins.sum(1))


def _width(module: Any, side: str) -> int:
    names = ("out_channels", "out_features") if side == "out" else ("in_channels", "in_features")
    return next(getattr(module, n) for n in names if hasattr(module, n))


def layer_macs(model: nn.Module, example: Any, forward: Any = None) -> dict[str, float]:
    """{layer: multiply-accumulates for one sample} of convolutions and linear layers; a layer that is called twice counts twice."""
    import torch
    from torch import nn

    counted: dict[str, float] = {}
    rows = len(next(iter(example.values()))) if isinstance(example, Mapping) else len(example)

    def count(name: str):
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            per = module.weight.numel() / module.weight.shape[0]  # of one output value
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                amount = inputs[0].numel() * module.weight.numel() / module.weight.shape[0]
            else:
                amount = output.numel() * per
            counted[name] = counted.get(name, 0.0) + amount / rows

        return hook

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    handles = [m.register_forward_hook(count(n)) for n, m in model.named_modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            model.eval()
            forward(model, example) if forward is not None else model(example)
    finally:
        for handle in handles:
            handle.remove()
    return counted


def macs_and_parameters(model: nn.Module, example: Any, forward: Any = None) -> tuple[int, int]:
    """(multiply-accumulates of one sample, parameters)"""
    return round(sum(layer_macs(model, example, forward).values())), sum(p.numel() for p in model.parameters())
