"""SmoothQuant (Xiao, Lin, Seznec, Wu, Demouth, Han 2023, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models"): what makes a few features of a layer norm's output large goes into the weights
that read them, which have a scale per channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgekd.quantization.torch_graph.equalize import MOVES, follow, layer
from edgekd.quantization.torch_graph.sites import operator
from edgekd.quantization.watch import watch

if TYPE_CHECKING:
    import torch
    from torch import fx


def smooth(graph: fx.GraphModule, batches: Iterable[Any], alpha: float = 0.5) -> dict[str, tuple[str, ...]]:
    """Smooths each layer norm over one dimension that linear layers alone read, in place; returns {layer norm: linear
    layers} by the names of their nodes. The model computes the same.

    Equation 4: s = max|X|^alpha / max|W|^(1 - alpha) per feature, X on `batches` (inputs [B, ...] or {name: tensor}), W
    of all the layers that read it; the norm's weight and bias / s, the layers' weights * s. A feature that is always
    zero, or that no weight reads, keeps its scale; so does a norm without a weight, or with one that it shares. Raises
    ValueError for a graph with ranges: they would no longer be right."""
    import torch

    if any(n.op == "call_module" for n in graph.graph.nodes):
        raise ValueError("the graph has sites: smooth before they are inserted")
    nodes = {n.name: n for n in graph.graph.nodes}
    found = {
        name: linears for name, node in nodes.items() if own_norm(graph, node) and (linears := readers(graph, node))
    }
    largest: dict[str, torch.Tensor] = {}
    for seen in watch(graph, batches, found) if found else ():
        for name, value in seen.items():
            most = value.abs().flatten(0, -2).amax(0)
            largest[name] = torch.maximum(largest[name], most) if name in largest else most
    with torch.no_grad():
        for name, most in largest.items():
            weights = [getattr(graph, nodes[reader].args[1].target) for reader in found[name]]
            scale = scales(most, torch.stack([w.abs().amax(0) for w in weights]).amax(0), alpha)
            for given in nodes[name].args[2:4]:
                if given is not None:
                    getattr(graph, given.target).div_(scale)
            for weight in weights:
                weight.mul_(scale)
    return {name: found[name] for name in largest}


def scales(values: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """[features] equation 4 for the largest magnitudes [features] of values and weights; 1 where either is 0."""
    import torch

    dead = (values == 0) | (weights == 0)
    return torch.where(dead, 1.0, values**alpha / torch.where(dead, 1.0, weights) ** (1 - alpha))


def own_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a layer norm over the last dimension with a weight (and bias) of its own."""
    if operator(node) != "layer_norm" or len(node.args[1]) != 1 or len(node.args) < 3 or node.args[2] is None:
        return False
    given = [a for a in node.args[2:4] if a is not None]
    uses = lambda a: sum(len(n.users) for n in graph.graph.nodes if n.op == "get_attr" and n.target == a.target)
    return all(a.op == "get_attr" and uses(a) == 1 for a in given)


def readers(graph: fx.GraphModule, node: fx.Node) -> tuple[str, ...]:
    """The linear layers that read a value, in graph order; () if anything else reads it, or features are moved out of
    the last place."""
    found, waiting = [], [(node, node.meta["val"].ndim - 1)]
    while waiting:
        value, axis = waiting.pop()
        for reader in value.users:
            if (
                operator(reader) == "linear"
                and reader.args[0] is value
                and axis == value.meta["val"].ndim - 1
                and layer(graph, reader)
            ):
                found.append(reader)
            elif operator(reader) in MOVES and (followed := follow(reader, axis)) is not None and followed[1] == 1:
                waiting.append((reader, followed[0]))
            else:
                return ()
    return tuple(n.name for n in graph.graph.nodes if n in found)
