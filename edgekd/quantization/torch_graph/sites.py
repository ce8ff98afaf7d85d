"""Where a captured graph is quantized: which of its values, weights and biases have a site."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.quantization import placement as rules
from edgekd.quantization.parameters import Limits
from edgekd.quantization.placement import COMBINES, CONVOLUTION, FLOAT, PRODUCT, TORCH, Flow, Operator

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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
RECURRENT = ("gru", "lstm", "rnn_tanh", "rnn_relu")
PRODUCTS = ("matmul", "mm")  # by a stored matrix they are layers too, without a bias
MOVES = frozenset(name for name, rule in TORCH.items() if rule == rules.MOVES)
_BINARY = {"add", "mul", "matmul", "mm", "bmm"}


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
    """`values` {name of a node whose value has a site: Limits}, in graph order; `tied` {node that moves values: the
    site whose parameters it has}; `weights` {attribute: Weight}; `biases` {node that reads it: Bias}, since a layer
    that is called twice has two."""

    values: dict[str, Limits]
    tied: dict[str, str]
    weights: dict[str, Weight]
    biases: dict[str, Bias]


def layers(module: fx.GraphModule) -> dict[str, str]:
    """{node of each layer with a weight: the attribute that holds it}, in graph order."""
    return {n.name: n.args[1].target for n in module.graph.nodes if _axis(module, n) is not None}


def recurrent(module: fx.GraphModule) -> list[str]:
    """The paths of the recurrent layers in the model, which stay in float: the runtime has no integer kernel of what
    ONNX has."""
    found = [n for n in module.graph.nodes if operator(n) in RECURRENT]
    return list(dict.fromkeys(n.args[2][0].target.replace("__", ".").rpartition(".")[0] or n.name for n in found))


def place(module: fx.GraphModule, float_layers: Collection[str] = ()) -> Placement:
    """Sites of a captured graph. A value has one if an integer operator makes it (after a clip that alone reads it), if
    an integer operator reads it, or if it is the graph's output and no state; values that are only moved, or cut at
    zero, are tied to their source.

    A table that is looked up has a site as a weight: it is stored as integers, and what is looked up is dequantized.

    `float_layers`: layers that are no integer operators here. Their weights and biases have no site, which is what
    keeps them in float in a file."""
    values, tied = rules.place(_flow(module, float_layers), trained=True)
    integer = [n for n in module.graph.nodes if _axis(module, n) is not None and n.name not in float_layers]
    weights: dict[str, Weight] = {}
    for node in integer:
        target = node.args[1].target
        order = _order(node, getattr(module, target).shape)
        weights.setdefault(target, Weight(target, _axis(module, node), order))
    for node in module.graph.nodes:  # after the layers: one that shares the table says how it is stored
        if operator(node) == "embedding" and node.args[0].op == "get_attr" and node.name not in float_layers:
            # a column keeps its scale through the look-up
            weights.setdefault(node.args[0].target, Weight(node.args[0].target, 1))
    return Placement(values, tied, weights, _biases(integer, {name: name for name in values} | tied))


def _axis(module: fx.GraphModule, node: fx.Node) -> int | None:
    """The axis of the output channels in a layer's weight; -1 where they are not one axis, None for a node that is no
    such layer."""
    name, axis = operator(node), WEIGHTED.get(operator(node))
    if name in PRODUCTS and node.args[1].op == "get_attr" and getattr(module, node.args[1].target).ndim == 2:
        axis = 1
    if axis is None or node.args[1].op != "get_attr":
        return None
    if name.startswith("conv_transpose") and len(node.args) > 6 and node.args[6] > 1:
        return -1  # grouped transposed convolution: one scale for the whole weight
    return axis


def _order(node: fx.Node, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a weight as its kernel goes through them: outputs first, then positions of the kernel before input
    channels."""
    name = operator(node)
    if name in PRODUCTS:
        return 1, 0
    if name.startswith("conv_transpose"):
        return None  # a float kernel
    # a kernel of its own, exact
    depthwise = name.startswith("conv") and shape[1] == 1 and shape[0] > 1 and node.args[6:7] == (shape[0],)
    return None if depthwise else (0, *range(2, len(shape)), 1)


def _biases(layers: Sequence[fx.Node], on: Mapping[str, str]) -> dict[str, Bias]:
    """Those of the layers whose input has a site; `on` {value: its site}."""
    found = {}
    for node in layers:
        bias = node.args[2] if operator(node) not in PRODUCTS and len(node.args) > 2 else None
        if bias is not None and bias.op == "get_attr" and node.args[0].name in on:
            found[node.name] = Bias(bias.target, on[node.args[0].name], node.args[1].target)
    return found


# ---------------------------------------------------------------- the graph as the rules see it


def _flow(module: fx.GraphModule, float_layers: Collection[str]) -> Flow:
    nodes = list(module.graph.nodes)
    return Flow(
        inputs=(),
        operators=tuple(_told(n, n.name in float_layers) for n in nodes if n.op != "output"),
        outputs=tuple(
            n.name for node in nodes if node.op == "output" for n in node.all_input_nodes if not n.meta.get("state")
        ),
        floats={n.name for n in nodes if _floats(n)},
        stored={n.name for n in nodes if n.op == "get_attr"},
    )


def _told(node: fx.Node, kept_float: bool) -> Operator:
    name, first = operator(node), node.args[0] if node.args else None
    return Operator(
        outputs=(node.name,),
        rule=_rule(node, kept_float),
        first=first.name if isinstance(first, type(node)) else "",
        operands=tuple(n.name for n in _operands(node)),
        result=clipped(node).name,
        clip=clip(node),
        share=name in ("softmax", "_softmax"),
    )


def _rule(node: fx.Node, kept_float: bool) -> str:
    name, rule = operator(node), TORCH.get(operator(node), FLOAT)
    if rule in (CONVOLUTION, PRODUCT, COMBINES) and (kept_float or not _floats(node)):
        return FLOAT
    if name in ("add", "mul"):  # with a number or a parameter it is a float operator
        return rule if all(isinstance(a, type(node)) and a.op != "get_attr" for a in node.args[:2]) else FLOAT
    return rule


def _operands(node: fx.Node) -> list[fx.Node]:
    found = node.args[0] if operator(node) == "cat" else node.args[: 2 if operator(node) in _BINARY else 1]
    return [n for n in found if isinstance(n, type(node)) and n.op != "get_attr"]


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


def clipped(node: fx.Node) -> fx.Node:
    """The clip that alone reads `node`, else `node`."""
    users = list(node.users)
    return users[0] if len(users) == 1 and clip(users[0]) else node


def _floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return value is not None and hasattr(value, "dtype") and value.dtype.is_floating_point
