"""Float ONNX files of any making become int8 files that agree with them, whose integer operators compute what the file says."""

import io
import os
import warnings
from contextlib import redirect_stdout

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from edgekd import quantizing, targets
from edgekd.cli import run as command
from edgekd.errors import RunFailed, UsageError
from edgekd.formats.onnx import float_kernels
from edgekd.quantization import foreign, normal, placing, qdq, simulate
from edgekd.quantization.lattice import lattice
from edgekd.records import Scheme

ROWS = 48


def numbers(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def file(nodes, inputs, outputs, stored, opset=17, ir=8, old=False):
    """A model by hand: inputs {name: shape}, outputs {name: rank or shape}, stored {name: array}."""
    value = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
    listed = [value(n, s) for n, s in inputs.items()] + [value(n, list(a.shape)) for n, a in stored.items() if old]
    initializers = [numpy_helper.from_array(a, n) for n, a in stored.items()]
    graph = helper.make_graph(nodes, "g", listed, [value(n, s) for n, s in outputs.items()], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(model, full_check=True)
    return model


def stir(module, seed=0):
    """Weights and batch statistics of a net that could have been trained."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.2)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return module.eval()


def traced(module, *shape, opset=13, fixed=False):
    torch.manual_seed(0)
    example, buffer = torch.randn(2, *shape), io.BytesIO()
    axes = {} if fixed else {"x": {0: "n"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(stir(module), (example,), buffer, dynamo=False, opset_version=opset, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    return onnx.load_model_from_string(buffer.getvalue()), {"x": numbers(ROWS, *shape)}


def block(i, o, groups=1, stride=1, act=nn.ReLU6):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(o), act())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = block(3, 16, act=nn.ReLU), block(16, 16, 4, act=nn.ReLU), block(16, 16, 2, act=nn.Identity)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        x = F.relu(x + self.b(self.a(x)))
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class Squeeze(nn.Module):
    """Gates by sigmoids, SiLU and hard swish, as in mobile nets."""

    def __init__(self):
        super().__init__()
        self.a, self.b = block(3, 8, act=nn.SiLU), block(8, 8, 8, act=nn.Hardswish)
        self.down, self.up, self.out = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.out(x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))))


class Up(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up, self.out = block(3, 12, stride=2), nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(20, 2, 1)

    def forward(self, x):
        low = self.down(x)
        return self.out(torch.cat([self.up(low), F.interpolate(low, scale_factor=2.0)], 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2, self.qkv, self.o = nn.LayerNorm(24), nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.f1, self.f2, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 4)

    def forward(self, x):
        q, k, v = (t.reshape(-1, 6, 2, 12).transpose(1, 2) for t in self.qkv(self.n1(x)).chunk(3, -1))
        shares = torch.softmax(q @ k.transpose(-1, -2) / 12**0.5, -1)
        x = x + self.o((shares @ v).transpose(1, 2).reshape(-1, 6, 24))
        return self.head((x + self.f2(F.gelu(self.f1(self.n2(x))))).mean(1))


def modern():
    """The same block as torch's newer exporter writes it."""
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("n", min=1)},)
        program = torch.onnx.export(
            Attention().eval(), (torch.randn(2, 6, 24),), dynamo=True, dynamic_shapes=shapes, input_names=["x"], external_data=False, verbose=False
        )
    return program.model_proto, {"x": numbers(ROWS, 6, 24)}


def gemms():
    """Gemm with its factors, transB 0 and 1, a bias of one row; a MatMul whose bias comes first in the Add."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], alpha=0.5, beta=2.0, transB=1),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["d"]),
        helper.make_node("Add", ["b3", "d"], ["y"]),
    ]
    stored = {"w1": numbers(16, 12), "b1": numbers(16, seed=1), "w2": numbers(16, 8, seed=2), "b2": numbers(1, 8, seed=3)}
    return file(nodes, {"x": ["n", 12]}, {"y": ["n", 6]}, stored | {"w3": numbers(8, 6), "b3": numbers(6)}), {"x": numbers(ROWS, 12)}


def tokens(open_dims):
    """MatMul and Add over [n, t, features]: as rows where one dimension is open, as they are where two are."""
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Add", ["a", "b1"], ["b"]), helper.make_node("Tanh", ["b"], ["c"])]
    nodes.append(helper.make_node("MatMul", ["c", "w2"], ["y"]))
    stored = {"w1": numbers(8, 16), "b1": numbers(16), "w2": numbers(16, 4)}
    t = "t" if open_dims == 2 else 5
    return file(nodes, {"x": ["n", t, 8]}, {"y": ["n", t, 4]}, stored), {"x": numbers(ROWS, 5, 8)}


def shared():
    """One kernel read by two convolutions, one matrix along two axes; a branch that is added to itself and joined with itself; an old file whose
    weights are inputs; a layer's value that is also an output."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "k"], ["b"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Add", ["b", "b"], ["c"]),
        helper.make_node("Concat", ["c", "c", "b"], ["d"], axis=1),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "m"], ["h"]),
        helper.make_node("Gemm", ["h", "m"], ["y"], transB=1),
    ]
    stored = {"k": numbers(4, 4, 3, 3, scale=0.3), "m": numbers(12, 12, seed=2)}
    outputs = {"y": ["n", 12], "a": ["n", 4, 7, 7]}
    return file(nodes, {"x": ["n", 4, 7, 7]}, outputs, stored, opset=11, ir=3, old=True), {"x": numbers(ROWS, 4, 7, 7)}


def odd(drowned=False):
    """Dead channels, weights of 1e-6 and 1e6 side by side, a bias that its scale can't hold, inputs in the thousands, a batch of three;
    `drowned`: one channel a thousand times larger than the others, which matter as much."""
    w1, w2 = numbers(8, 3, 3, 3), numbers(8, 8, 1, 1, seed=1, scale=0.1)
    w1[2], w1[3], w2[5], w2[6] = 0, w1[3] * 1e-6, 0, w2[6] * 1e6
    b1 = numbers(8, scale=100)
    b1[3] = 2e4
    if drowned:
        w1[4], w2[6], w2[:, 4] = w1[4] * 1e3, 0, w2[:, 4] * 1e-3
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Conv", ["b", "w2"], ["y"])]
    return file(nodes, {"x": [3, 3, 6, 6]}, {"y": [3, 8, 4, 4]}, {"w1": w1, "b1": b1, "w2": w2}), {"x": numbers(ROWS, 3, 6, 6, scale=3e3)}


def moved():
    """Values that are padded, cut, split, turned, picked and clipped between integer operators; limits that hold no zero."""
    stored = {"w": numbers(8, 3, 3, 3), "v": numbers(4, 4, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "i": np.array([1, 0, 3, 2]), "sizes": np.array([4, 4])}
    stored |= {"low": np.array(0.5, np.float32), "high": np.array(1.5, np.float32), "minus": np.array(-1, np.float32)}
    stored |= {"s": np.array([1]), "e": np.array([6]), "ax": np.array([2])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Clip", ["a", "minus", "high"], ["b"]),
        helper.make_node("Pad", ["b", "pads"], ["c"]),
        helper.make_node("Split", ["c", "sizes"], ["d", "e1"], axis=1),
        helper.make_node("Gather", ["d", "i"], ["f"], axis=1),
        helper.make_node("Conv", ["f", "v"], ["g"]),
        helper.make_node("Clip", ["g", "low", "high"], ["h"]),
        helper.make_node("Slice", ["e1", "s", "e", "ax"], ["j"]),
        helper.make_node("Transpose", ["j"], ["k"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["k", "v"], ["l"]),
        helper.make_node("ReduceMean", ["l"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMax", ["h"], ["o"], axes=[2, 3], keepdims=0),
        helper.make_node("Sub", ["m", "o"], ["y"]),
    ]
    return file(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 4]}, stored, opset=13), {"x": numbers(ROWS, 3, 8, 8)}


MOBILE = lambda: nn.Sequential(block(3, 16, stride=2), block(16, 16, 16), nn.Conv2d(16, 24, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
CASES = {  # {name: (what makes it, least dB with 7-bit weights, layers that stay float)}
    "mobile": (lambda: traced(MOBILE(), 3, 12, 12, opset=11), 20, 0),
    "fixed": (lambda: traced(MOBILE(), 3, 12, 12, fixed=True), 20, 0),
    "residual": (lambda: traced(Residual(), 3, 12, 12), 20, 0),
    "squeeze": (lambda: traced(Squeeze(), 3, 8, 8), 20, 0),
    "up": (lambda: traced(Up(), 3, 8, 8), 20, 1),
    "attention": (lambda: traced(Attention(), 6, 24, opset=17), 20, 0),
    "modern": (modern, 20, 0),
    "gemms": (gemms, 20, 0),
    "tokens": (lambda: tokens(1), 20, 0),
    "open tokens": (lambda: tokens(2), 20, 0),
    "shared": (shared, 20, 0),
    "odd": (odd, 20, 0),
    "moved": (moved, 20, 0),
}
