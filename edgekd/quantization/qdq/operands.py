"""The layers of a QDQ file that onnxruntime computes in integers, and what their kernels read: weights in the order of
the sum, quantization parameters, bias.

Which layers those are follows onnxruntime core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc, as its
optimized files show: a Conv whose only reader is QuantizeLinear, perhaps behind Relus and Clips that this makes
superfluous; MatMul and Gemm also where none of their readers is one. A Gemm with a bias has alpha = beta = 1. All else
stays in float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph, Parameters, attribute, attributes
from edgekd.quantization.qdq.integers import windows

if TYPE_CHECKING:
    import onnx

SHARES = ("Softmax", "Sigmoid")  # what they make lies in [0, 1]


@dataclass(frozen=True)
class Operands:
    """What the kernel of one Conv, MatMul or Gemm reads.

    rows       [outputs, sum] raw weights in the order of the sum: kernel position, then input channel
    bias       [outputs] int64 in steps of x.scale * weight.scale, or None
    low, high  what the raw activations can be
    output     the parameters that the result is quantized with; None if it isn't, or not at once
    next       the parameters that it meets first, maybe behind float operators
    depthwise  a convolution of each input channel with one output channel: a kernel of its own"""

    node: onnx.NodeProto
    x: Parameters
    weight: Parameters
    rows: np.ndarray
    bias: np.ndarray | None
    low: int
    high: int
    output: Parameters | None
    next: Parameters | None
    depthwise: bool

    @property
    def groups(self) -> int:
        return attribute(self.node, "group", 1) if self.node.op_type == "Conv" else 1

    @property
    def plain(self) -> bool:
        """Whether the sums are those of one matrix per group, and padding is given in numbers."""
        if self.node.op_type == "Conv":
            return attribute(self.node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        return self.weight.constant.ndim == 2


def read(model: onnx.ModelProto) -> list[Operands]:
    """The layers with constant 8-bit weights that are computed in integers, in the file's order."""
    graph = graphs.of(model)
    found = (_operands(n, graph) for n in graph.nodes if n.op_type in graphs.LAYERS)
    return [o for o in found if o is not None]


def _operands(node: onnx.NodeProto, graph: Graph) -> Operands | None:
    x, weight = (graph.parameters(graph.makers.get(n)) for n in node.input[:2])
    alpha = attribute(node, "alpha", 1.0)
    if not _bytes(x, weight) or (len(node.input) > 2 and (alpha, attribute(node, "beta", 1.0)) != (1, 1)):
        return None
    weight = replace(weight, scale=weight.scale * np.float32(alpha))
    after = graph.readers.get(node.output[0], [])
    added = _added(node, graph)
    if added is not None:
        after = graph.readers.get(after[0].output[0], [])
    output, integer = _quantized(after, graph)
    if not integer or (output is None and node.op_type == "Conv"):
        return None
    if output is not None and output.zero_point.dtype != x.zero_point.dtype:
        return None
    low, high = _reach(graph, x)
    return Operands(
        node=node,
        x=x,
        weight=weight,
        rows=_rows(node, weight.constant),
        bias=_bias(node, graph, x, weight) if added is None else _steps(added, x, weight),
        low=low,
        high=high,
        output=output,
        next=output or _next(node.output[0], graph),
        depthwise=graphs.depthwise(node, weight.constant),
    )


def _bytes(x: Parameters | None, weight: Parameters | None) -> bool:
    """Whether a layer's input and its stored weight are integers of 8 bits."""
    return (
        x is not None
        and weight is not None
        and weight.constant is not None
        and x.zero_point.dtype.itemsize == 1
        and weight.constant.dtype in (np.int8, np.uint8)
    )


def _bias(node: onnx.NodeProto, graph: Graph, x: Parameters, weight: Parameters) -> np.ndarray | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    stored = graph.parameters(graph.makers.get(node.input[2]))
    found = graph.constants.get(node.input[2]) if stored is None else stored.constant
    return None if found is None else _steps(found, x, weight)


def _steps(bias: np.ndarray, x: Parameters, weight: Parameters) -> np.ndarray:
    """[outputs] int64; a bias in floats is rounded by onnxruntime."""
    whole = np.rint(bias / (x.scale * weight.scale)) if bias.dtype.kind == "f" else bias
    return whole.astype(np.int64).ravel()


def _rows(node: onnx.NodeProto, w: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":  # [outputs, channels, kernel ...]
        return np.moveaxis(w, 1, -1).reshape(len(w), -1)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return w
    return np.swapaxes(w, -1, -2).reshape(-1, w.shape[-2])


def columns(o: Operands, x: np.ndarray) -> np.ndarray:
    """The raw activations that each result sums over, in the weights' order: [positions, groups * sum], the positions
    in the order of a result with channels last. `x`: the layer's integer input; outside an image lies its zero
    point."""
    if o.node.op_type != "Conv":
        x = x.T if o.node.op_type == "Gemm" and attribute(o.node, "transA", 0) else x
        return x.reshape(-1, x.shape[-1])
    kernel = o.weight.constant.shape[2:]
    rank, seen = len(kernel), windows(x, kernel, attributes(o.node), o.x.zero_point[0])
    n, channels, *places = seen.shape[: 2 + rank]
    grouped = seen.reshape(n, o.groups, channels // o.groups, *places, *kernel)
    spots, inner = range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    return grouped.transpose(0, *spots, 1, *inner, 2).reshape(n * math.prod(places), -1)


def positions(o: Operands, x: np.ndarray) -> list[int]:
    """The places of a convolution's result along each axis of the image; `x` its integer input."""
    kernel = o.weight.constant.shape[2:]
    return list(windows(x[:1, :1], kernel, attributes(o.node), 0).shape[2 : 2 + len(kernel)])


def _added(node: onnx.NodeProto, graph: Graph) -> np.ndarray | None:
    """A bias that is added to a product of matrices by a node of its own."""
    add = graph.reader(node.output[0])
    if node.op_type != "MatMul" or add is None or add.op_type != "Add":
        return None
    stored = (graph.constants[n] for n in add.input if n in graph.constants)
    return next((array for array in stored if array.ndim <= 1), None)


def _quantized(after: Sequence[onnx.NodeProto | None], graph: Graph) -> tuple[Parameters | None, bool]:
    """(parameters that a result with these readers is quantized with at once, or None; whether onnxruntime computes it
    in integers)."""
    if any(n is not None and n.op_type == "QuantizeLinear" for n in after):
        found = graph.parameters(after[0])
        return found, len(after) == 1 and found is not None
    clip = graph.clip(after[0]) if len(after) == 1 else None
    if clip is None:
        return None, True
    found, integer = _quantized(graph.readers.get(after[0].output[0], []), graph)
    return found, integer and (found is None or graph.clips_itself(clip, found))


def _reach(graph: Graph, x: Parameters) -> tuple[int, int]:
    """What raw activations can be: all of their type, or less after a clip; the zero point is in it, as it stands for
    what is outside an image."""
    node = graph.makers.get(graph.origin(x.q))
    ends = (0.0, 1.0) if node is not None and node.op_type in SHARES else graph.clip(node)
    if ends is None:
        return x.limits
    zero = int(x.zero_point[0])
    low, high = (int(np.clip(zero + np.rint(np.float32(e) / x.scale[0]), *x.limits)) for e in ends)
    return min(low, zero), max(high, zero)


def _next(name: str, graph: Graph) -> Parameters | None:
    """The first quantization parameters along the first readers of a value."""
    for _ in range(16):
        node = next(iter(graph.readers.get(name, [])), None)
        if node is None or node.op_type == "QuantizeLinear":
            return graph.parameters(node)
        name = node.output[0]
    return None
