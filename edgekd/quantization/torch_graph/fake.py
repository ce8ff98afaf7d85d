"""Fake-quantized models: the captured graph with a module at every site that rounds to its lattice.

In evaluation the arithmetic is what ONNX defines: q = clamp(round_half_even(x / s) + z), x = (q - z) s; in training x /
s is x (1 / s), which differs near ties only, and gradients pass straight through the rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from edgekd.errors import Problem, RunFailed
from edgekd.quantization.histogram import Histogram
from edgekd.quantization.parameters import BIAS_BITS, BIAS_HIGH, PAIR, SMALLEST, lattice
from edgekd.quantization.parameters import absorbs as absorbs
from edgekd.quantization.torch_graph import ties
from edgekd.quantization.torch_graph.capture import graph_digest, readable
from edgekd.quantization.torch_graph.rounding import Rounded, Stepped, Straight
from edgekd.quantization.torch_graph.sites import Limits, layers, place
from edgekd.records import Grid, Scheme, Site

if TYPE_CHECKING:
    from torch import fx

AVERAGE = 0.02  # share of a new batch in the moving range
FURTHEST = 64.0  # times that a learned scale may leave the calibrated one behind, either way


class Value(nn.Module):
    """Fake quantization of one value [...]: unsigned, one scale. `mode` observe (histogram, passes through) | train |
    exact."""

    def __init__(self, name: str, bits: int, learned: bool = False, limits: Limits = Limits()):  # noqa: B008  (frozen)
        super().__init__()
        self.name, self.high, self.limits, self.mode = name, 2**bits - 1, limits, "observe"
        self.learned = learned and not limits.share
        self.widest = math.inf  # scale that a learned one does not pass
        self.histogram = Histogram()
        self.register_buffer("low_value", torch.zeros(1))
        self.register_buffer("high_value", torch.zeros(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("follows", torch.ones(1, dtype=torch.int32))
        self.register_buffer("scale", torch.ones(1))
        if self.learned:
            self.gain = nn.Parameter(torch.ones(1))

    def step(self) -> torch.Tensor:
        """[1] scale in use. What is learned is its ratio to the calibrated one, so that a learning rate means the same
        everywhere."""
        if not self.learned:
            return self.scale
        self.gain.data.clamp_(1 / FURTHEST, min(FURTHEST, self.widest / self.scale.item()))
        return self.scale * self.gain

    def set_range(self, low: float, high: float) -> None:
        """The lattice that covers [low, high] and holds zero exactly."""
        scale, zero_point = lattice(low, high, self.high, self.limits)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)
        self.low_value.fill_(min(low, 0.0))
        self.high_value.fill_(max(high, 0.0))
        if self.limits.output:
            self.widest = scale
        elif math.isfinite(self.limits.low) and math.isfinite(self.limits.high):
            self.widest = lattice(self.limits.low, self.limits.high, self.high, self.limits)[0]

    def follow(self, x: torch.Tensor) -> None:
        """Moves the range towards that of `x` by a moving average."""
        low, high = (end.item() for end in torch.aminmax(x.detach()))
        if not math.isfinite(high - low):
            message = f"training diverged: the values at `{self.name}` are not finite"
            raise RunFailed(
                Problem(
                    "",
                    message,
                    "lower `lr`, lengthen `warmup` or set `clip`; folded norms want smaller steps than training did",
                )
            )
        low = self.low_value.item() + AVERAGE * (min(low, 0.0) - self.low_value.item())
        high = self.high_value.item() + AVERAGE * (max(high, 0.0) - self.high_value.item())
        self.low_value.fill_(low)
        self.high_value.fill_(high)
        scale, zero_point = lattice(low, high, self.high, self.limits)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "observe":
            if not x.isfinite().all():
                message = f"calibration met values that are not finite at `{self.name}`"
                raise RunFailed(Problem("", message, "look for NaN in the inputs, or a layer that overflows"))
            self.histogram.add(x.detach().float().numpy())
            return x
        if self.mode == "exact":
            q = torch.clamp(torch.round(x / self.scale) + self.zero_point, 0, self.high)
            return (q - self.zero_point) * self.scale
        if self.learned:
            # the step's gradient is scaled by 1 / sqrt(values of a sample * steps) (Esser et al. 2020, section 2.2)
            factor = (x.numel() / len(x) * self.high) ** -0.5
            return Rounded.apply(x, self.step(), self.zero_point.item(), self.high, factor)
        if self.training and not self.limits.share and self.follows.item():
            self.follow(x)
        return Rounded.apply(x, self.scale, self.zero_point.item(), self.high, None)


class Weight(nn.Module):
    """Fake quantization of a weight: signed, symmetric, one scale per output channel (`axis` -1: one in all). `order`:
    see sites.Weight, given where no two neighbours of one sign may add up to more than PAIR steps."""

    def __init__(
        self, name: str, axis: int, bits: int, learned: bool, weight: torch.Tensor, order: tuple[int, ...] | None = None
    ):
        super().__init__()
        self.name, self.axis, self.high, self.mode, self.learned = name, axis, 2 ** (bits - 1) - 1, "observe", learned
        self.order = order if 2 * self.high > PAIR else None
        self.floor: torch.Tensor | None = None
        self.register_buffer("scale", self.widest(weight.detach()))
        if learned:
            self.gain = nn.Parameter(torch.ones_like(self.scale))

    def step(self) -> torch.Tensor:
        """[channels] scales in use; `gain` is what is learned of them."""
        if not self.learned:
            return self.scale
        self.gain.data.clamp_(1 / FURTHEST, FURTHEST)
        step = self.scale * self.gain
        return step if self.floor is None else torch.maximum(step, self.floor)

    def bound(self, weight: torch.Tensor) -> None:
        """A learned step goes down to where `weight`'s neighbours together reach PAIR steps, not below."""
        self.floor = None if self.order is None else self.widest(weight.detach())

    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """[channels] scales that no weight exceeds. A dead channel takes the widest of the others: any scale holds its
        zeros."""
        if self.order is not None:
            # each of two may be rounded up, even by a whole step
            scale = pairs(weight.permute(self.order).flatten(1)).amax(1) / (PAIR - 2)
            scale = scale if self.axis >= 0 else scale.amax().reshape(1)
        else:
            dims = [d for d in range(weight.ndim) if d != self.axis]
            scale = weight.abs().amax(dims).reshape(-1) / self.high
        if scale.min().item() > SMALLEST:
            return scale
        largest = scale.max().item()
        return torch.where(scale > SMALLEST, scale, largest if largest > SMALLEST else 1.0)

    def shaped(self, like: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """[1, channels, 1] scales beside a weight [..., channels, ...]"""
        return (self.scale if scale is None else scale).reshape([-1 if d == self.axis else 1 for d in range(like.ndim)])

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.mode == "observe":
            return weight
        if self.mode == "exact":
            scale = self.shaped(weight)
            return torch.clamp(torch.round(weight / scale), -self.high, self.high) * scale
        if self.learned:
            self.bound(weight)
            return Stepped.apply(
                weight,
                self.shaped(weight, self.step()),
                self.high,
                (weight.numel() / len(self.scale) * self.high) ** -0.5,
            )
        self.scale.copy_(self.widest(weight.detach()))
        return Straight.apply(weight, self.shaped(weight), self.high)  # nothing is outside the range


def pairs(rows: torch.Tensor) -> torch.Tensor:
    """[outputs, pairs]: of neighbours (0, 1), (2, 3), ... of rows [outputs, sum] the sum of those above zero or of
    those below, whichever is greater: times an activation of at most 255 it is the furthest that their products get."""
    rows = nn.functional.pad(rows, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2))
    return torch.maximum(rows.clamp_min(0).sum(2), -rows.clamp_max(0).sum(2))


class Bias(nn.Module):
    """A bias rounded to int32 at the product of its operands' scales, the gradient passed straight through."""

    def __init__(self, value: Value, weight: Weight):
        super().__init__()
        self.operands = (value, weight)  # a tuple: they are modules of the graph, not of this one
        self.mode = "observe"

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        if self.mode == "observe":
            return bias
        return Straight.apply(bias, (self.operands[0].step() * self.operands[1].step()).detach(), BIAS_HIGH)


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
