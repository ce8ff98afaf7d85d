"""Which layers lose most by their quantization: the noise that each brings to the output.

Noise of several layers adds up as long as it is small (Lin, Talathi, Annapureddy 2016, "Fixed Point Quantization of
Deep Convolutional Networks", section 3), so that each layer can be looked at alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgekd.inputs import each, length, positional

if TYPE_CHECKING:
    import torch
    from torch import fx

SAMPLES = 128  # looked at, at most


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer, in the output's unit squared (mean over samples and values):

    noise    when this layer alone is quantized: its weight, its bias, what it reads and what it makes
    gain     what the noise of the whole falls by when this layer alone stays in float; below 0 where errors had met and
             cancelled
    kl, kl_gain   the same as divergence of the answers from the float model's, in nats; None where the output is no
                  logits [B, 2 or more]"""

    noise: float
    gain: float
    kl: float | None
    kl_gain: float | None


def sensitivity(module: fx.GraphModule, graph: fx.GraphModule, batches: Iterable[Any]) -> dict[str, Sensitivity]:
    """{layer: what its quantization costs} of a calibrated (or settled) fake-quantized `module`, in graph order.
    `graph`: the captured float graph that its sites were inserted into. Layers that stay in float already are not in
    it.

    Of `batches` (inputs [B, ...] or {name: tensor}) at most SAMPLES rows are kept; 2 passes per layer, and 2. Nothing
    is changed."""
    from edgekd.quantization.torch_graph.sites import layers, place

    rows, sites, scheme = _rows(batches), _sites(module), module.meta["scheme"]
    wanted = [_run(module, graph, x, ()) for x in rows]

    def measured(active: Collection[str]) -> tuple[float, float | None]:
        return _distance(wanted, [_run(module, graph, x, active) for x in rows])

    found, every = {}, measured(sites)
    for name in (n for n in layers(graph) if n not in scheme.float_layers):
        alone = measured(_alone(module, graph, name))
        kept = place(graph, (*scheme.float_layers, *_sharing(graph, name)))
        rest = measured(
            {
                *(f"value_{n}" for n in kept.values),
                *(f"weight_{t}" for t in kept.weights),
                *(f"bias_{n}" for n in kept.biases),
            }
            & sites
        )
        kl = (None, None) if alone[1] is None else (alone[1], every[1] - rest[1])
        found[name] = Sensitivity(alone[0], every[0] - rest[0], *kl)
    return found


# ---------------------------------------------------------------- parts of a fake-quantized graph


def _sites(module: fx.GraphModule) -> set[str]:
    """Names of all fake-quantizing modules."""
    from edgekd.quantization.torch_graph.modules import Bias, Value, Weight

    return {name for name, part in module.named_modules() if isinstance(part, Value | Weight | Bias)}


def _alone(module: fx.GraphModule, graph: fx.GraphModule, name: str) -> set[str]:
    """The modules at a layer's weight and bias, at what it reads and at what it makes."""
    from edgekd.quantization.torch_graph.sites import clip, layers

    nodes, placement = {n.name: n for n in graph.graph.nodes}, module.meta["placement"]
    users = list(nodes[name].users)
    values = [nodes[name].args[0].name, name, *([users[0].name] if len(users) == 1 and clip(users[0]) else [])]
    found = {f"weight_{layers(graph)[name]}", f"bias_{name}", *(f"value_{placement.tied.get(v, v)}" for v in values)}
    return found & _sites(module)


def _sharing(graph: fx.GraphModule, name: str) -> list[str]:
    """The layers that read the same weight, itself among them."""
    from edgekd.quantization.torch_graph.sites import layers

    known = layers(graph)
    return [n for n, target in known.items() if target == known[name]]


def _run(module: fx.GraphModule, graph: fx.GraphModule, inputs: Any, active: Collection[str]) -> list[torch.Tensor]:
    """Outputs where only the `active` modules round; at the others `graph`'s weights and biases are read, and values
    pass."""
    import torch
    from torch import fx

    every, readers = _sites(module), {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(node.target, set()).update(u.target for u in node.users if u.op == "call_module")

    class Partly(fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target not in every or target in active:
                return super().call_module(target, args, kwargs)
            return args[0]

        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            return super().get_attr(target, args, kwargs) if readers[target] & set(active) else getattr(graph, target)

    with torch.no_grad():
        outputs = Partly(module).run(*positional(inputs))
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _distance(wanted: list[list[torch.Tensor]], found: list[list[torch.Tensor]]) -> tuple[float, float | None]:
    """(mean squared difference over all values, mean divergence KL(wanted || found) of rows in nats or None)."""
    import torch

    pairs = [
        (a.double(), b.double())
        for ours, theirs in zip(wanted, found, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    power = sum((a - b).square().sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    if len(wanted[0]) != 1 or wanted[0][0].ndim != 2 or wanted[0][0].shape[1] < 2:
        return power, None
    logs = [(torch.log_softmax(a, 1), torch.log_softmax(b, 1)) for a, b in pairs]
    return power, sum((p.exp() * (p - q)).sum().item() for p, q in logs) / sum(len(p) for p, _ in logs)


def _rows(batches: Iterable[Any]) -> list[Any]:
    """The first SAMPLES rows."""
    found, left = [], SAMPLES
    for batch in islice(batches, SAMPLES):
        if left <= 0:
            break
        found.append(each(batch, lambda tensor, most=left: tensor[:most]))
        left -= length(found[-1])
    return found
