"""Bias correction (Nagel, van Baalen, Blankevoort, Welling 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", section 4.2; from data as in its appendix D): rounded weights shift the mean of what a layer
makes, and its bias takes that back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgekd.quantization.torch_graph.sites import WEIGHTED, operator
from edgekd.quantization.watch import watch

if TYPE_CHECKING:
    import torch
    from torch import fx


def correct(graph: fx.GraphModule, float_graph: fx.GraphModule, batches: Iterable[Any]) -> dict[str, float]:
    """Takes E[quantized output] - E[float output] per output channel off the bias of each layer of the settled
    fake-quantized `graph`, in place; `float_graph` is what sites were inserted into. Layer by layer in graph order:
    each is measured behind corrected ones.

    `batches` (inputs [B, ...] or {name: tensor}) are gone through once per layer. Returns {node: largest shift taken
    off}. Layers without a bias, and those that share one, are left as they are: a bias more would be another graph. No
    scale changes: a bias stops at the largest that an int32 holds with room for the sum (`parameters.BIAS_BITS`)."""
    import torch

    from edgekd.quantization.parameters import BIAS_BITS

    batches, nodes = list(batches), {n.name: n for n in graph.graph.nodes}
    placement = graph.meta["placement"]
    layers = [
        name for name, node in nodes.items() if WEIGHTED.get(operator(node)) is not None and name in placement.biases
    ]
    owners = [placement.biases[name].target for name in layers]
    layers = [name for name, target in zip(layers, owners, strict=True) if owners.count(target) == 1]
    wanted = means(float_graph, batches, {name: _axis(nodes[name]) for name in layers})
    found = {}
    for name in layers:
        bias = placement.biases[name]
        shift = means(graph, batches, {name: _axis(nodes[name])})[name] - wanted[name]
        tensor, part = getattr(graph, bias.target), graph.get_submodule(f"weight_{bias.weight}")
        most = (graph.get_submodule(f"value_{bias.value}").scale * part.scale * 2.0**BIAS_BITS).double()
        with torch.no_grad():
            corrected = tensor.double() - shift
            tensor.copy_(torch.maximum(torch.minimum(corrected, most), -most))
        found[name] = shift.abs().max().item()
    return found


def means(graph: fx.GraphModule, batches: Iterable[Any], axes: dict[str, int]) -> dict[str, torch.Tensor]:
    """{node: [channels] float64 mean of its value over data and all but the axis given}."""
    sums: dict[str, Any] = {}
    counts = dict.fromkeys(axes, 0)
    for seen in watch(graph, batches, axes):
        for name, axis in axes.items():
            value = seen[name].double().movedim(axis, -1).flatten(0, -2)
            sums[name] = sums.get(name, 0) + value.sum(0)
            counts[name] += len(value)
    return {name: total / counts[name] for name, total in sums.items()}


def _axis(node: fx.Node) -> int:
    return node.meta["val"].ndim - 1 if operator(node) == "linear" else 1
