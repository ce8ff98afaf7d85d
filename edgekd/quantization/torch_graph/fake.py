"""Fake-quantized models: the captured graph with a module at every site that rounds as integers do."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from edgekd.errors import RunFailed
from edgekd.quantization.parameters import BIAS_BITS, SMALLEST
from edgekd.quantization.torch_graph import ties
from edgekd.quantization.torch_graph.capture import graph_digest, readable
from edgekd.quantization.torch_graph.modules import Bias, Value, Weight
from edgekd.quantization.torch_graph.sites import layers, place
from edgekd.records import Grid, Scheme, Site

if TYPE_CHECKING:
    from torch import fx


def insert(graph: fx.GraphModule, scheme: Scheme = Scheme(), *, learned: bool = False) -> fx.GraphModule:  # noqa: B008  (frozen)
    """A copy of the captured `graph` with Value, Weight and Bias modules at its sites, observing at first."""
    module = copy.deepcopy(graph)
    placement, nodes = place(module, scheme.float_layers), {n.name: n for n in module.graph.nodes}
    bits = {target: scheme.layer_bits[name] for name, target in layers(module).items() if name in scheme.layer_bits}
    module.meta["placement"], module.meta["scheme"], module.meta["digest"] = placement, scheme, graph_digest(graph)
    for name, limits in placement.values.items():
        module.add_submodule(f"value_{name}", Value(name, scheme.activation_bits, learned, limits))
        _after(module, nodes[name], f"value_{name}")
    for target, site in placement.weights.items():
        axis = site.axis if scheme.per_channel else -1
        wide = bits.get(target, scheme.weight_bits)
        part = Weight(
            readable(target), axis, wide, learned, getattr(module, target), site.order if scheme.pairs16 else None
        )
        module.add_submodule(f"weight_{target}", part)
        for node in [n for n in module.graph.nodes if n.op == "get_attr" and n.target == target]:
            _after(module, node, f"weight_{target}")
    for name, bias in placement.biases.items():
        part = Bias(module.get_submodule(f"value_{bias.value}"), module.get_submodule(f"weight_{bias.weight}"))
        module.add_submodule(f"bias_{name}", part)
        reader = nodes[name]
        with module.graph.inserting_before(reader):
            called = module.graph.call_module(f"bias_{name}", (reader.args[2],))
        reader.args = (*reader.args[:2], called, *reader.args[3:])
    module.recompile()
    return module


def _after(module: fx.GraphModule, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with module.graph.inserting_after(node):
        called = module.graph.call_module(target, (node,))
    for user in users:
        user.replace_input_with(node, called)


def parts(module: nn.Module, kind: type | tuple[type, ...] = (Value, Weight, Bias)) -> Iterable[nn.Module]:
    return [m for m in module.modules() if isinstance(m, kind)]


def set_mode(module: nn.Module, mode: Literal["observe", "train", "exact"]) -> nn.Module:
    for part in parts(module):
        part.mode = mode
    return module


def freeze(module: nn.Module) -> None:
    """Averaged ranges stand still from now on."""
    for value in parts(module, Value):
        value.follows.zero_()


def settle(module: fx.GraphModule) -> Grid:
    """Fixes every scale for good and returns the grid; the module is exact from now on."""
    with torch.no_grad():
        placement = module.meta["placement"]
        for value in parts(module, Value):
            _keep(value, value.step())
            ties.clear(module, value)
        for target in placement.weights:
            part, weight = module.get_submodule(f"weight_{target}"), getattr(module, target)
            part.bound(weight)
            _keep(part, part.step() if part.learned else part.widest(weight))
        for bias in placement.biases.values():  # a channel whose bias would not fit takes a wider scale
            value, part, tensor = (
                module.get_submodule(f"value_{bias.value}"),
                module.get_submodule(f"weight_{bias.weight}"),
                getattr(module, bias.target),
            )
            needed = tensor.abs() / (value.scale * 2.0**BIAS_BITS)
            part.scale.copy_(torch.maximum(part.scale, needed.max().reshape(1) if part.axis < 0 else needed))
    set_mode(module, "exact")
    return grid_of(module)


def _keep(part: Value | Weight, scale: torch.Tensor) -> None:
    part.scale.copy_(scale.clamp_min(SMALLEST))
    if part.learned:
        part.gain.data.fill_(1)


def grid_of(module: fx.GraphModule) -> Grid:
    """The grid of a fake-quantized graph: activations by node name, weights by dotted path."""
    sites = {}
    for value in parts(module, Value):
        sites[value.name] = Site((value.scale.item(),), int(value.zero_point.item()), 0, value.high)
    for part in parts(module, Weight):
        sites[part.name] = Site(
            tuple(part.scale.tolist()), 0, -part.high, part.high, None if part.axis < 0 else part.axis
        )
    return Grid(module.meta["digest"], module.meta["scheme"], sites)


def apply(graph: fx.GraphModule, grid: Grid) -> fx.GraphModule:
    """The fake-quantized model, exact and in evaluation mode, that `grid` describes on the captured `graph`."""
    if graph_digest(graph) != grid.graph:
        raise RunFailed(
            "the grid belongs to another graph than this model's: the model or torch has changed since it was made"
        )
    module = insert(graph, grid.scheme)
    for value in parts(module, Value):
        site = grid.sites[value.name]
        value.scale.fill_(site.scale[0])
        value.zero_point.fill_(site.zero_point)
    for part in parts(module, Weight):
        part.scale.copy_(torch.tensor(grid.sites[part.name].scale))
    return set_mode(module.eval(), "exact")
