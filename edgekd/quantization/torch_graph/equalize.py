"""Cross-layer equalization (Nagel, van Baalen, Blankevoort, Welling 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1): what one layer's output channel is divided by, the next layer's weights
for it are multiplied by.

A function f with f(s x) = s f(x) for s > 0 may stand between. The model computes the same; its weights lose less with
one scale for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.quantization.placement import torch_names
from edgekd.quantization.torch_graph.sites import WEIGHTED, clip, operator

if TYPE_CHECKING:
    import torch
    from torch import fx

RESHAPES = torch_names("Flatten", "Reshape")
TRANSPOSES = torch_names("Transpose")
# they move values one by one: `follow` tells where those of a channel go
MOVES = RESHAPES | TRANSPOSES | torch_names("Identity")
# f(s x) = s f(x) for s > 0, channel by channel
HOMOGENEOUS = MOVES | torch_names("MaxPool", "AveragePool", "GlobalAveragePool") | {"leaky_relu"}
# of the layer's largest range: what weight decay leaves of a channel; its bias would grow by the root of that
DEAD = 2.0**-20
# passes over all pairs at most; they end when no channel's scale moves by more than this share
ROUNDS, STILL = 200, 1e-4


@dataclass(frozen=True)
class Pair:
    """Two layers by the names of their nodes: each output channel of `first` is read by `second` alone, as `width` of
    its inputs."""

    first: str
    second: str
    width: int = 1


def equalize(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Equalizes every pair of layers of a captured graph in place; returns the pairs by the names of their nodes, in
    graph order.

    Equation 11: s = sqrt(r1 r2) / r2 per channel, with r the largest magnitude of its weights in the first and in the
    second layer; first weights and bias / s, second weights * s. All pairs in turn, again and again, until no scale
    moves (section 4.1.2). A channel that is dead on either side keeps its scale. Raises ValueError for a graph with
    ranges: they would no longer be right."""
    import torch

    found = pairs(graph)
    nodes = {n.name: n for n in graph.graph.nodes}
    names = {
        nodes[name].args[i].target
        for p in found
        for name, i in ((p.first, 1), (p.second, 1), (p.first, 2))
        if len(nodes[name].args) > i and nodes[name].args[i]
    }
    # many small steps, rounded to float32 once
    tensors = {name: getattr(graph, name).detach().double() for name in names}
    for _ in range(ROUNDS):
        moved = 0.0
        for pair in found:
            first, second = nodes[pair.first], nodes[pair.second]
            scale = balance(
                ranges_out(tensors[first.args[1].target]),
                ranges_in(tensors[second.args[1].target], groups(second), pair.width),
            )
            for name in [a.target for a in first.args[1:3] if a is not None]:
                tensors[name] = tensors[name] / scale.reshape(-1, *[1] * (tensors[name].ndim - 1))
            name = second.args[1].target
            tensors[name] = scaled_in(tensors[name], scale, groups(second), pair.width)
            moved = max(moved, scale.log().abs().max().item())
        if moved < STILL:
            break
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(graph, name).copy_(tensor)
    return [(p.first, p.second) for p in found]


def balance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[channels] scales of equation 11 for the ranges [channels] of the two layers; 1 where a channel is dead on either
    side."""
    import torch

    dead = (first <= DEAD * first.max()) | (second <= DEAD * second.max())
    return torch.where(dead, 1.0, (first / torch.where(dead, 1.0, second)).clamp_min(1e-300).sqrt())


def ranges_out(weight: torch.Tensor) -> torch.Tensor:
    """[out] largest magnitude of the weights [out, ...] of each output channel."""
    return weight.abs().flatten(1).amax(1)


def ranges_in(weight: torch.Tensor, groups: int, width: int = 1) -> torch.Tensor:
    """[channels] largest magnitude of the weights [out, channels width / groups, ...] that read each input channel."""
    return _by_channel(weight, groups, width).abs().amax((1, 3)).reshape(-1)


def scaled_in(weight: torch.Tensor, scale: torch.Tensor, groups: int, width: int = 1) -> torch.Tensor:
    """The weights [out, channels width / groups, ...] times the scale [channels] of the input channel that each
    reads."""
    return (_by_channel(weight, groups, width) * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _by_channel(weight: torch.Tensor, groups: int, width: int) -> torch.Tensor:
    """[groups, out / groups, channels / groups, all else]"""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1] // width, -1)


def groups(node: fx.Node) -> int:
    """aten's convolutions: input, weight, bias, stride, padding, dilation, groups."""
    return node.args[6] if operator(node) != "linear" and len(node.args) > 6 else 1


def pairs(graph: fx.GraphModule) -> list[Pair]:
    """Pairs of convolutions or linear layers with a positively homogeneous function, or nothing, between them, whose
    value is used by nothing else. Layers whose weight or bias is used elsewhere too are left out, and so are transposed
    convolutions."""
    if any(n.op == "call_module" for n in graph.graph.nodes):
        raise ValueError("the graph has sites: equalize before they are inserted")
    found = []
    for first in graph.graph.nodes:
        if not layer(graph, first):
            continue
        node, axis, width = first, 1 if operator(first) != "linear" else first.meta["val"].ndim - 1, 1
        while len(node.users) == 1:
            (reader,) = node.users
            if layer(graph, reader) and reader.args[0] is node:
                if axis == (1 if operator(reader) != "linear" else node.meta["val"].ndim - 1) and (
                    width == 1 or operator(reader) == "linear"
                ):
                    found.append(Pair(first.name, reader.name, width))
                break
            if not (operator(reader) in HOMOGENEOUS or clip(reader) == (0.0, math.inf)):
                break
            followed = follow(reader, axis)
            if followed is None or (width > 1 and followed[1] > 1):
                break
            node, (axis, more) = reader, followed
            width *= more
    return found


def layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a convolution or linear layer [out, in, ...] whose weight and bias are its own."""
    if WEIGHTED.get(operator(node)) != 0 or node.kwargs:
        return False
    given = [a for a in node.args[1:3] if a is not None]
    uses = lambda a: sum(len(n.users) for n in graph.graph.nodes if n.op == "get_attr" and n.target == a.target)
    return all(a.op == "get_attr" and uses(a) == 1 for a in given)


def follow(node: fx.Node, axis: int) -> tuple[int, int] | None:
    """(axis that the channels of axis `axis` of the first operand have in what `node` makes, values side by side that
    each became); None if they are not told apart any more."""
    name, before, after = operator(node), node.args[0].meta["val"], node.meta["val"]
    if name in RESHAPES:
        if axis == before.ndim - 1 and after.shape[-1] == before.shape[-1]:
            return after.ndim - 1, 1
        rest = before.shape[2:]
        if (
            axis == 1
            and after.ndim == 2
            and all(isinstance(d, int) for d in (*rest, after.shape[1]))
            and after.shape[1] == before.shape[1] * math.prod(rest)
        ):
            return 1, math.prod(rest)
        return None
    if name in TRANSPOSES:
        order = list(range(before.ndim))
        if name == "t":
            order.reverse()
        elif name == "transpose":
            i, j = node.args[1], node.args[2]
            order[i], order[j] = order[j], order[i]
        else:
            order = [d % before.ndim for d in node.args[1]]
        return order.index(axis), 1
    if name == "mean":
        dims = (
            [d % before.ndim for d in node.args[1]] if len(node.args) > 1 and node.args[1] else list(range(before.ndim))
        )
        if axis in dims or node.kwargs:
            return None
        return axis if node.args[2:] == (True,) else axis - sum(d < axis for d in dims), 1
    if "pool" in name and (axis != 1 or before.ndim != (3 if name.endswith("1d") else 4)):
        return None
    return axis, 1
