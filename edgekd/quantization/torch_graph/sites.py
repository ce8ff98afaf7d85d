"""Where a captured graph is quantized: which values have a site, and which operators a target's kernels compute on
integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.quantization.parameters import Limits

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import fx

# operators with a weight, which batch norm folds into: {name: axis of the output channels in it}
WEIGHTED = {
    "conv1d": 0,
    "conv2d": 0,
    "conv3d": 0,
    "linear": 0,
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
    "conv_transpose3d": 1,
}
# operators that read and write integers (onnxruntime has an integer kernel, or the operator stands between such ones)
INTEGER = {
    *WEIGHTED, "matmul", "mm", "bmm", "add", "mul", "cat", "mean",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
}  # fmt: skip
# operators that move values without changing them: what comes out lies on the lattice of what went in
MOVES = {
    "flatten", "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "slice",
    "select", "max_pool1d", "max_pool2d", "dropout", "dropout1d", "dropout2d", "feature_dropout", "alias", "clone",
    "contiguous", "expand", "chunk", "split", "split_with_sizes", "unbind", "getitem", "upsample_nearest2d", "detach",
    "identity",
}  # fmt: skip


def operator(node: fx.Node) -> str:
    """The plain name of what a node calls: `conv2d`, `add`, `relu`; '' for nodes that call nothing."""
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))
    return name.removesuffix("_")


@dataclass(frozen=True)
class Weight:
    """A weight with a site: the attribute that holds it, the axis of its output channels, and the order of its axes
    [outputs, what is summed] in which kernels add products of neighbours in pairs (see `saturation`); None where they
    add none."""

    target: str
    axis: int
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Bias:
    """A bias that is rounded to int32 at the product of two scales: its attribute, the site of the input, the attribute
    of the weight."""

    target: str
    value: str
    weight: str


@dataclass(frozen=True)
class Placement:
    """`values` {name of a node whose value has a site: Limits}, in graph order; `tied` {node that moves values: site it
    lies on}; `weights` {attribute: Weight}; `biases` {node that reads it: Bias}, since a layer that is called twice has
    two."""

    values: dict[str, Limits]
    tied: dict[str, str]
    weights: dict[str, Weight]
    biases: dict[str, Bias]


def layers(module: fx.GraphModule) -> dict[str, str]:
    """{node of each layer with a weight: the attribute that holds it}, in graph order."""
    return {n.name: n.args[1].target for n in module.graph.nodes if _axis(module, n) is not None}


def _axis(module: fx.GraphModule, node: fx.Node) -> int | None:
    """The axis of the output channels in a layer's weight; -1 where they are not one axis, None for a node that is no
    such layer."""
    name, axis = operator(node), WEIGHTED.get(operator(node))
    if (
        axis is None
        and name in ("matmul", "mm")
        and node.args[1].op == "get_attr"
        and getattr(module, node.args[1].target).ndim == 2
    ):
        axis = 1
    if axis is None or node.args[1].op != "get_attr":
        return None
    if axis == 1 and name.startswith("conv_transpose") and len(node.args) > 6 and node.args[6] > 1:
        return -1  # grouped transposed convolution: one scale for the whole weight
    return axis


def place(module: fx.GraphModule, float_layers: Collection[str] = ()) -> Placement:
    """Sites of a captured graph. A value has one if an integer operator makes it (after a clipping activation that
    alone reads it), if an integer operator reads it, or if it is the graph's output; values that are only moved, or cut
    at zero, are tied to their source.

    A table that is looked up has a site as a weight: it is stored as integers, and what is looked up is told in float.

    `float_layers`: layers that are no integer operators here. Their weights and biases have no site, which is what
    keeps them in float in a file."""
    graph = module.graph
    source: dict[fx.Node, fx.Node] = {}  # moved value -> the value that it was
    wanted, outputs = set(), set()
    for node in graph.nodes:
        if operator(node) in MOVES and _moved(node, source):
            source[node] = source.get(node.args[0], node.args[0])
        if _integer(node) and node.name not in float_layers:
            wanted |= {source.get(n, n) for n in _operands(node)}
            wanted.add(_clipped(node))
        if node.op == "output":
            outputs = {source.get(n, n) for n in node.all_input_nodes}
            wanted |= outputs
    wanted = {n for n in wanted if _floats(n) and n.op != "get_attr"}
    for node in graph.nodes:  # the positive part of a value that lies on a lattice lies on it too
        if node in wanted and clip(node) == (0.0, math.inf) and source.get(node.args[0], node.args[0]) in wanted:
            wanted.discard(node)
            source[node] = source.get(node.args[0], node.args[0])
        elif node in source:
            source[node] = source.get(source[node], source[node])
    outputs = {source.get(n, n) for n in outputs}
    weights, biases = {}, {}
    for node in graph.nodes:
        name, axis = operator(node), _axis(module, node)
        if axis is None or node.name in float_layers:
            continue
        weights.setdefault(
            node.args[1].target,
            Weight(node.args[1].target, axis, _order(name, node, getattr(module, node.args[1].target).shape)),
        )
        origin = source.get(node.args[0], node.args[0])
        if (
            name not in ("matmul", "mm")
            and len(node.args) > 2
            and node.args[2] is not None
            and node.args[2].op == "get_attr"
            and origin in wanted
        ):
            biases[node.name] = Bias(node.args[2].target, origin.name, node.args[1].target)
    for node in graph.nodes:  # after the layers: one that shares the table says how it is stored
        if operator(node) == "embedding" and node.args[0].op == "get_attr" and node.name not in float_layers:
            # a column keeps its scale through the look-up
            weights.setdefault(node.args[0].target, Weight(node.args[0].target, 1))
    tied = {n.name: s.name for n, s in source.items() if s in wanted and _floats(n)}
    values = [n for n in graph.nodes if n in wanted]
    limits = {
        n.name: Limits(*(clip(n) or (-math.inf, math.inf)), operator(n) in ("softmax", "_softmax"), n in outputs)
        for n in values
    }
    return Placement(limits, tied, weights, biases)


def _order(name: str, node: fx.Node, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a weight as its kernel goes through them: outputs first, then positions of the kernel before input
    channels."""
    if name in ("matmul", "mm"):
        return 1, 0
    if name.startswith("conv_transpose"):
        return None  # a float kernel
    # a kernel of its own, exact
    depthwise = name.startswith("conv") and shape[1] == 1 and shape[0] > 1 and node.args[6:7] == (shape[0],)
    return None if depthwise else (0, *range(2, len(shape)), 1)


def clip(node: fx.Node) -> tuple[float, float] | None:
    """The interval that an activation which only clips lets through: the requantization before it can absorb that. None
    for other nodes."""
    name = operator(node)
    if name in ("relu", "relu6"):
        return 0.0, 6.0 if name == "relu6" else math.inf
    if name not in ("hardtanh", "clamp"):
        return None
    keys, defaults = (
        (("min_val", "max_val"), (-1.0, 1.0)) if name == "hardtanh" else (("min", "max"), (-math.inf, math.inf))
    )
    given = [node.args[i] if len(node.args) > i else node.kwargs.get(key) for i, key in enumerate(keys, 1)]
    low, high = (default if g is None else g for g, default in zip(given, defaults, strict=True))
    return (float(low), float(high)) if all(isinstance(b, int | float) for b in (low, high)) else None


def _moved(node: fx.Node, source: dict[fx.Node, fx.Node]) -> bool:
    """Whether the first operand of a moving operator is a value of numbers, or the parts that another one split it
    into."""
    first = node.args[0]
    return isinstance(first, type(node)) and (_floats(first) if operator(node) != "getitem" else first in source)


def _integer(node: fx.Node) -> bool:
    name = operator(node)
    if name not in INTEGER or not _floats(node):
        return False
    if name in ("add", "mul"):  # with a number or a parameter it is a float operator
        return all(isinstance(a, type(node)) and a.op != "get_attr" for a in node.args[:2])
    return True


def _operands(node: fx.Node) -> list[fx.Node]:
    found = (
        node.args[0]
        if operator(node) == "cat"
        else node.args[: 1 if operator(node) in WEIGHTED or operator(node) not in _BINARY else 2]
    )
    return [n for n in found if isinstance(n, type(node)) and n.op != "get_attr"]


_BINARY = {"add", "mul", "matmul", "mm", "bmm"}


def _clipped(node: fx.Node) -> fx.Node:
    """The clipping activation that alone reads `node`, else `node`."""
    users = list(node.users)
    return users[0] if len(users) == 1 and clip(users[0]) else node


def _floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return value is not None and hasattr(value, "dtype") and value.dtype.is_floating_point
