"""Adaptive rounding (Nagel, Amjad, van Baalen, Louizos, Blankevoort 2020, "Up or Down? Adaptive Rounding for
Post-Training Quantization"): whether a weight is rounded up or down is learned per layer, so that the layer's output
stays what it was in floats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgekd.quantization.torch_graph.sites import WEIGHTED, clip, clipped, operator
from edgekd.quantization.watch import watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

ZETA, GAMMA = 1.1, -0.1  # the sigmoid is stretched by these and cut, so that it reaches 0 and 1 (equation 23)
# beta of equation 24: at first only what is nearly settled is drawn to an end, at last everything
START, END = 20.0, 2.0
LAMBDA = 0.01  # weight of equation 24 beside the error, which is told in that of nearest rounding
LEAST = 1.0  # weight of equation 24's mean in layers of few weights: else some would end between two points
WARM = 0.2  # share of the steps before equation 24 counts


@dataclass(frozen=True)
class Change:
    """What came of one layer. `nearest`, `learned`: mean square errors of its output on the data; `flipped`: share of
    weights that no longer go to the nearest point. Where learning found nothing better, nearest rounding stays and
    `flipped` is 0."""

    nearest: float
    learned: float
    flipped: float


def adaround(
    graph: fx.GraphModule,
    float_graph: fx.GraphModule,
    batches: Iterable[Any],
    *,
    steps: int = 400,
    lr: float = 0.03,
    rows: int = 64,
    seed: int = 0,
) -> dict[str, Change]:
    """Learns the rounding of each layer's weight of the settled fake-quantized `graph`, in graph order, and sets the
    weight to the integers chosen, dequantized: plain rounding then gives them. `float_graph` is what sites were
    inserted into; its weights are read, not changed.

    Equation 25: the layer's input is that of the quantized model, behind layers already done; its output is held to
    that of the float model, after the ReLU that alone reads it. `steps` of Adam on `rows` at a time. All of `batches`
    (inputs [B, ...] or {name: tensor}) is kept, and one layer's inputs and outputs of it. Weights that several layers
    share are left as they are. Returns {node: Change}."""
    batches, originals = list(batches), {n.name: n for n in float_graph.graph.nodes}
    found = {}
    for node in list(graph.graph.nodes):
        if WEIGHTED.get(operator(node)) is None or not _own(graph, originals[node.name]):
            continue
        original, end = originals[node.name], clipped(originals[node.name])
        x = torch.cat([seen[node.args[0].name] for seen in watch(graph, batches, [node.args[0].name])])
        y = torch.cat([seen[end.name] for seen in watch(float_graph, batches, [end.name])])
        part, weight = graph.get_submodule(f"weight_{original.args[1].target}"), getattr(graph, original.args[1].target)
        bias = _bias(graph, node)

        def output(
            x: torch.Tensor, weight: torch.Tensor, node: Any = node, bias: Any = bias, end: Any = end
        ) -> torch.Tensor:
            made = node.target(x, weight, bias, *node.args[3:], **node.kwargs)
            return made if clip(end) is None else made.clamp(*clip(end))

        with torch.no_grad():
            points, found[node.name] = learn(
                output, weight.detach(), part.shaped(weight), part.high, x, y, steps=steps, lr=lr, rows=rows, seed=seed
            )
            weight.copy_(points * part.shaped(weight))
    return found


def learn(
    output: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    scale: torch.Tensor,
    high: int,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    steps: int = 400,
    lr: float = 0.03,
    rows: int = 64,
    seed: int = 0,
) -> tuple[torch.Tensor, Change]:
    """(whole numbers of the shape of `weight` in [-high, high], what came of it) so that `output(x, whole numbers *
    scale)` is near `y`; each number is that below or above weight / scale."""
    below = torch.floor(weight / scale)
    nearest = torch.clamp(torch.round(weight / scale), -high, high)
    error = lambda points: (output(x, points * scale) - y).square().mean().item()
    at_first = error(nearest)
    if at_first == 0:
        return nearest, Change(0.0, 0.0, 0.0)
    chance = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        v = logit(weight / scale - below).requires_grad_()
        optimizer = torch.optim.Adam([v], lr)
        for step in range(steps):
            some = torch.randint(len(x), (min(rows, len(x)),), generator=chance)
            h = rectified(v)
            loss = (output(x[some], torch.clamp(below + h, -high, high) * scale) - y[some]).square().mean() / at_first
            if step >= WARM * steps:
                drawn = regular(h, beta((step / steps - WARM) / (1 - WARM)))
                loss = loss + max(LAMBDA * drawn.numel(), LEAST) * drawn.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    points = torch.clamp(below + (rectified(v.detach()) >= 0.5), -high, high)
    at_last = error(points)
    if at_last >= at_first:
        return nearest, Change(at_first, at_first, 0.0)
    return points, Change(at_first, at_last, (points != nearest).float().mean().item())


def rectified(v: torch.Tensor) -> torch.Tensor:
    """h(V) in [0, 1], equation 23."""
    return torch.clamp(torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1)


def logit(share: torch.Tensor) -> torch.Tensor:
    """The V with h(V) = share, for shares in [0, 1]."""
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


def regular(h: torch.Tensor, beta: float) -> torch.Tensor:
    """1 - |2 h - 1|^beta, equation 24: 0 where h is 0 or 1."""
    return 1 - (2 * h - 1).abs().pow(beta)


def beta(share: float) -> float:
    """From START to END along half a cosine as `share` goes from 0 to 1."""
    return END + (START - END) * (1 + math.cos(share * math.pi)) / 2


def _own(graph: fx.GraphModule, original: fx.Node) -> bool:
    """Whether a layer's weight is quantized and has no other reader."""
    target = original.args[1].target if original.args[1].op == "get_attr" else None
    readers = sum(len(n.users) for n in original.graph.nodes if n.op == "get_attr" and n.target == target)
    return target in graph.meta["placement"].weights and readers == 1


def _bias(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The bias as the layer of the fake-quantized graph reads it, rounded where it is."""
    given = node.args[2] if len(node.args) > 2 else None
    if given is None:
        return None
    if given.op == "call_module":
        return graph.get_submodule(given.target)(getattr(graph, given.args[0].target)).detach()
    return getattr(graph, given.target).detach()
