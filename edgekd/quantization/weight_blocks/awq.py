"""Where a scale of activation-aware quantization goes in a captured graph: into the norm before the layers if it can,
else before the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.torch_graph.equalize import RESHAPES
from edgekd.quantization.torch_graph.sites import operator
from edgekd.quantization.torch_graph.smooth import own_norm, readers
from edgekd.quantization.weight_blocks.blocks import Blocks

if TYPE_CHECKING:
    from torch import fx


def groups(graph: fx.GraphModule, layers: Collection[str]) -> dict[str, tuple[str, ...]]:
    """{value: the layers that read it}, in graph order: queries, keys and values read one. A value whose rows are only
    gathered is itself."""
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.graph.nodes:
        if node.name in layers:
            name = _origin(node.args[0]).name
            found[name] = (*found.get(name, ()), node.name)
    return found


def _origin(value: fx.Node) -> fx.Node:
    width = lambda node: node.meta["val"].shape[-1]
    while operator(value) in RESHAPES and width(value.args[0]) == width(value):
        value = value.args[0]
    return value


def absorbed(graph: fx.GraphModule, value: fx.Node, table: Mapping[str, Blocks], gain: np.ndarray) -> dict[str, Blocks]:
    """The table of layers that read `value` times `gain` [K]. A layer norm with weights of its own that these layers
    alone read takes the gain, in place, and their float weights are divided by it: the graph computes the same. Else
    the layers keep it."""
    import torch

    if not (own_norm(graph, value) and set(readers(graph, value)) == set(table)):
        return {name: dataclasses.replace(blocks, gain=gain.astype(np.float32)) for name, blocks in table.items()}
    nodes, factor = {n.name: n for n in graph.graph.nodes}, torch.from_numpy(gain)
    with torch.no_grad():
        for given in value.args[2:4]:
            if given is not None:
                getattr(graph, given.target).mul_(factor)
        for name in table:
            getattr(graph, nodes[name].args[1].target).div_(factor)
    return dict(table)
