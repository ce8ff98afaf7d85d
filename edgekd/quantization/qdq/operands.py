"""The layers of a QDQ file that onnxruntime computes in integers, and what their kernels read: weights in the order of
the sum, lattices, bias.

Which layers those are follows onnxruntime core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc, as seen in
its optimized files: a Conv whose only user is QuantizeLinear, perhaps after a Relu or Clip that the lattice makes
superfluous; MatMul and Gemm also where none of their users is one. A Gemm with a bias has alpha = beta = 1. Everything
else stays in float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MOVES = {
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Slice",
    "Gather",
    "Identity",
    "QuantizeLinear",
    "DequantizeLinear",
}


@dataclass(frozen=True)
class Lattice:
    """The lattice of a tensor: `q` the name of its integers (`constant`: these, if stored); real = scale * (q - zero).

    `scale`, `zero`: 1-D arrays of one value, or of one per output channel."""

    q: str
    scale: np.ndarray
    zero: np.ndarray
    constant: np.ndarray | None

    @property
    def limits(self) -> tuple[int, int]:
        ends = np.iinfo(self.zero.dtype)
        return int(ends.min), int(ends.max)


@dataclass(frozen=True)
class Operands:
    """What the kernel of one Conv, MatMul or Gemm reads.

    rows       [outputs, sum] raw weights in the order of the sum: kernel position, then input channel
    bias       [outputs] int64 in steps of x.scale * weight.scale, or None
    low, high  what the raw activations can be
    output     the lattice that the result is rounded to; None if there is none, or not at once
    next       the lattice that it meets first, maybe after float operators
    depthwise  a convolution of each input channel with one output channel: a kernel of its own"""

    node: onnx.NodeProto
    x: Lattice
    weight: Lattice
    rows: np.ndarray
    bias: np.ndarray | None
    low: int
    high: int
    output: Lattice | None
    next: Lattice | None
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
    from onnx import numpy_helper

    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    users: dict[str, list[onnx.NodeProto | None]] = {o.name: [None] for o in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = (
        _operands(n, constants, makers, users) for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")
    )
    return [o for o in found if o is not None]


def _operands(node: onnx.NodeProto, constants: Mapping, makers: Mapping, users: Mapping) -> Operands | None:
    x, weight = (lattice(makers.get(n), constants) for n in node.input[:2])
    if (
        x is None
        or weight is None
        or weight.constant is None
        or x.zero.dtype.itemsize > 1
        or weight.constant.dtype not in (np.int8, np.uint8)
    ):
        return None
    alpha = attribute(node, "alpha", 1.0)
    if len(node.input) > 2 and (alpha, attribute(node, "beta", 1.0)) != (1, 1):
        return None
    weight = replace(weight, scale=weight.scale * np.float32(alpha))
    after = users.get(node.output[0], [])
    added = _added(node, after, constants)
    if added is not None:
        after = users.get(after[0].output[0], [])
    output, integer = _rounded(after, users, constants)
    if (
        not integer
        or (node.op_type == "Conv" and output is None)
        or (output is not None and output.zero.dtype != x.zero.dtype)
    ):
        return None
    if added is None and len(node.input) > 2 and node.input[2]:
        stored = lattice(makers.get(node.input[2]), constants)
        added = constants.get(node.input[2]) if stored is None else stored.constant
    if added is not None and added.dtype.kind == "f":  # onnxruntime rounds it
        added = np.rint(added / (x.scale * weight.scale))
    w = weight.constant
    return Operands(
        node=node,
        x=x,
        weight=weight,
        rows=_rows(node, w),
        bias=None if added is None else added.astype(np.int64).ravel(),
        low=(ends := _reach(makers.get(x.q), makers, constants, x))[0],
        high=ends[1],
        output=output,
        next=output or _next(node.output[0], users, constants),
        depthwise=node.op_type == "Conv" and w.shape[1] == 1 and w.shape[0] == attribute(node, "group", 1),
    )


def lattice(node: onnx.NodeProto | None, constants: Mapping[str, np.ndarray]) -> Lattice | None:
    """The lattice that a QuantizeLinear or DequantizeLinear of constant scale names; None of any other node."""
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in constants:
        return None
    q = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
    constant = constants.get(q)
    zero = (
        constants.get(node.input[2])
        if len(node.input) > 2
        else np.zeros((), np.uint8 if constant is None else constant.dtype)
    )
    return None if zero is None else Lattice(q, constants[node.input[1]].ravel(), zero.ravel(), constant)


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
    rank = len(kernel)
    pads, strides, dilations = (
        attribute(o.node, k, [d] * n)
        for k, d, n in (("pads", 0, 2 * rank), ("strides", 1, rank), ("dilations", 1, rank))
    )
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=o.x.zero[0])
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, span, tuple(range(2, 2 + rank)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in (*strides, *dilations)))]
    n, channels, *places = windows.shape[: 2 + rank]
    grouped = windows.reshape(n, o.groups, channels // o.groups, *places, *kernel)
    spots, inner = range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    return grouped.transpose(0, *spots, 1, *inner, 2).reshape(n * math.prod(places), -1)


def positions(o: Operands, x: np.ndarray) -> list[int]:
    """The places of a convolution's result along each axis of the image; `x` its integer input."""
    kernel = o.weight.constant.shape[2:]
    rank = len(kernel)
    pads, strides, dilations = (
        attribute(o.node, k, [d] * n)
        for k, d, n in (("pads", 0, 2 * rank), ("strides", 1, rank), ("dilations", 1, rank))
    )
    return [
        (x.shape[2 + i] + pads[i] + pads[rank + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(rank)
    ]


def _added(node: onnx.NodeProto, after: list, constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A bias that is added to a product of matrices by a node of its own."""
    if node.op_type != "MatMul" or len(after) != 1 or after[0] is None or after[0].op_type != "Add":
        return None
    return next((constants[n] for n in after[0].input if n in constants and constants[n].ndim <= 1), None)


def _rounded(after: list, users: Mapping, constants: Mapping[str, np.ndarray]) -> tuple[Lattice | None, bool]:
    """(lattice that a result is rounded to at once, or None; whether onnxruntime computes it in integers)."""
    if any(n is not None and n.op_type == "QuantizeLinear" for n in after):
        found = lattice(after[0], constants)
        return found, len(after) == 1 and found is not None
    ends = _ends(after[0], constants) if len(after) == 1 else None
    if ends is None:
        return None, True
    found, integer = _rounded(users.get(after[0].output[0], []), users, constants)
    if found is None:
        return None, integer
    low, high = (float(found.zero[0]) + np.rint(np.float32(e) / found.scale[0]) for e in ends)
    return found, integer and low <= found.limits[0] and high >= found.limits[1]


def _ends(node: onnx.NodeProto | None, constants: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """What a Relu or Clip clips to, in real numbers; None of another node."""
    if node is not None and node.op_type == "Relu":
        return 0.0, math.inf
    if node is not None and node.op_type == "Clip" and all(n in constants for n in node.input[1:] if n):
        low, high = (*node.input[1:], "", "")[:2]
        return float(constants[low]) if low else -math.inf, float(constants[high]) if high else math.inf
    return None


def _reach(
    node: onnx.NodeProto | None, makers: Mapping, constants: Mapping[str, np.ndarray], x: Lattice
) -> tuple[int, int]:
    """What raw activations can be: all of their type, or less after a clip; the zero point is in it, as it stands for
    what is outside an image."""
    while node is not None and node.op_type in MOVES:
        node = makers.get(node.input[0])
    ends = (0.0, 1.0) if node is not None and node.op_type in ("Softmax", "Sigmoid") else _ends(node, constants)
    if ends is None:
        return x.limits
    zero = int(x.zero[0])
    low, high = (int(np.clip(zero + np.rint(np.float32(e) / x.scale[0]), *x.limits)) for e in ends)
    return min(low, zero), max(high, zero)


def _next(name: str, users: Mapping, constants: Mapping[str, np.ndarray]) -> Lattice | None:
    """The first lattice along the first users of a value."""
    for _ in range(16):
        node = next(iter(users.get(name, [])), None)
        if node is None or node.op_type == "QuantizeLinear":
            return lattice(node, constants)
        name = node.output[0]
    return None


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
