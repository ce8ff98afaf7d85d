"""A fake-quantized model evaluated in the integer arithmetic of its kernels: accumulators are whole numbers,
requantization is the float32 multiplication that onnxruntime's QLinear operators make (ONNX QLinearConv: y =
saturate(round_half_even(acc * (x_scale * w_scale / y_scale)) + z)).

A fake-quantized model in plain floats rounds its sums before they are quantized; near a tie one then falls to the other
side, and over the depth of a network such steps add up. Whole numbers leave nothing to add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from edgekd.inputs import positional
from edgekd.quantization.parameters import clips_itself
from edgekd.quantization.torch_graph.integers import (
    WAITING,
    Mean,
    Pooled,
    Quantized,
    QuantizedWeight,
    Sum,
    Two,
    real,
    requantize,
)
from edgekd.quantization.torch_graph.modules import Bias, Value, Weight
from edgekd.quantization.torch_graph.sites import MOVES, WEIGHTED, clip, operator

AVERAGES = ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d")  # onnxruntime's QLinearAveragePool


def evaluate(module: fx.GraphModule, inputs: Any, sites: bool = False) -> Any:
    """What the settled fake-quantized `module` computes for `inputs` (tensor or {name: tensor}), in real numbers.

    With `sites` also {site: its values}."""
    interpreter = _Exact(module)
    with torch.no_grad():
        outputs = interpreter.run(*positional(inputs))
    return (outputs, interpreter.seen) if sites else outputs


class Settled(nn.Module):
    """The quantized model as the integer kernels compute it: `forward` takes real inputs and gives real outputs,
    quantized."""

    def __init__(self, module: fx.GraphModule):
        super().__init__()
        self.module = module.eval()

    def forward(self, *tensors: torch.Tensor) -> Any:
        with torch.no_grad():
            return _Exact(self.module).run(*tensors)


class _Exact(fx.Interpreter):
    """Runs the graph node by node on Quantized, QuantizedWeight and Sum where it can, on real tensors elsewhere."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.seen: dict[str, torch.Tensor] = {}

    def output(self, target, args, kwargs):
        return fx.node.map_aggregate(args[0], lambda x: x.real() if isinstance(x, Quantized | WAITING) else x)

    def call_module(self, target, args, kwargs):
        part, (x,) = self.fetch_attr(target), args
        if isinstance(part, Value):
            made = requantize(part, x)
            self.seen[part.name] = made.real()
            return made
        if isinstance(part, Weight):
            scale = part.shaped(x)
            q = torch.clamp(torch.round(x / scale), -part.high, part.high)
            return QuantizedWeight(q.double(), part.scale.detach().numpy().astype(np.float32), q * scale)
        if isinstance(part, Bias):
            return (x, part)
        return super().call_module(target, (real(x),), kwargs)

    def run_node(self, node):
        if node.op != "call_function":
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        name = operator(node)
        if name in WEIGHTED and isinstance(args[0], Quantized) and isinstance(args[1], QuantizedWeight):
            return _layer(node, name, args, kwargs)
        if name in ("add", "mul") and len(args) == 2 and all(isinstance(a, Quantized) for a in args) and not kwargs:
            return Two(*args, product=name == "mul")
        if (
            name in AVERAGES
            and isinstance(args[0], Quantized)
            and not (name == "adaptive_avg_pool2d" and list(args[1]) == [1, 1])
        ):
            return Mean(node.target(args[0].real(), *args[1:], **kwargs))
        if clip(node) and isinstance(args[0], WAITING) and self._absorbed(node):
            return args[0]
        if name == "relu" and isinstance(args[0], Sum | Two):
            return replace(args[0], relu=True)
        if clip(node) == (0.0, math.inf) and isinstance(args[0], Quantized):
            return replace(args[0], q=args[0].q.clamp_min(0))
        if name in MOVES and isinstance(args[0], Quantized):
            moved = node.target(args[0].q, *args[1:], **kwargs)
            return (
                replace(args[0], q=moved)
                if isinstance(moved, torch.Tensor)
                else tuple(replace(args[0], q=m) for m in moved)
            )
        if name == "getitem" and isinstance(args[0], tuple) and isinstance(args[0][0], Quantized):
            return args[0][args[1]]
        if name == "adaptive_avg_pool2d" and isinstance(args[0], Quantized) and list(args[1]) == [1, 1]:
            return _pool(args[0], (2, 3))
        if (
            name == "mean"
            and isinstance(args[0], Quantized)
            and args[0].q.ndim == 4
            and sorted(d % 4 for d in args[1]) == [2, 3]
            and args[2:] == (True,)
        ):
            return _pool(args[0], (2, 3))
        return node.target(*fx.node.map_aggregate(args, real), **fx.node.map_aggregate(kwargs, real))

    def _absorbed(self, node):
        """Whether the rounding of a clipped value clips by itself."""
        (site,) = node.users
        part = self.fetch_attr(site.target) if site.op == "call_module" else None
        return isinstance(part, Value) and clips_itself(
            part.limits, part.scale.item(), int(part.zero_point.item()), part.high
        )


def _layer(node: fx.Node, name: str, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """A convolution or linear layer as a sum of whole numbers: in float32 where no partial sum can reach 2^24, else in
    float64 (2^53)."""
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else None
    scale = (np.float32(x.scale) * weight.scale).astype(np.float32)
    matrix = name == "linear" and x.q.ndim != 2  # a product of matrices in ONNX: its bias is added in real numbers
    whole = None
    if isinstance(bias, tuple):
        whole = torch.clamp(
            torch.round(bias[0] / torch.from_numpy(np.ascontiguousarray(scale))), -(2.0**31), 2.0**31 - 128
        ).double()
    elif bias is not None:
        return node.target(x.real(), weight.real, bias, *args[3:], **kwargs)
    added = None if matrix else whole
    most = weight.q.abs().sum(tuple(range(1, weight.q.ndim)) if not name.startswith("conv_t") else None).max() * 255
    most = most + (added.abs().max() if added is not None else 0)
    kind = torch.float32 if most < 2**24 else torch.float64
    summed = node.target(
        x.q.to(kind), weight.q.to(kind), None if added is None else added.to(kind), *args[3:], **kwargs
    )
    made = Sum(summed.double(), scale, -1 if name == "linear" else 1)
    if matrix and bias is not None:
        return made.real() + (whole.float() * torch.from_numpy(scale)).float()
    return made


def _pool(x: Quantized, dims: tuple[int, ...]) -> Any:
    return Pooled(x.q.sum(dims, keepdim=True), x.scale, int(np.prod([x.q.shape[d] for d in dims])))
