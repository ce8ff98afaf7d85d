"""Where int8 products saturate on x86 without VNNI: which layers of a QDQ file can give other results there, and which do.

There onnxruntime's kernels multiply with vpmaddubsw: of unsigned activations a and signed weights w two neighbouring products are added in 16 bits,
a0 w0 + a1 w1 clipped to [-32768, 32767] (Intel SDM, PMADDUBSW). Both are the raw integers: zero points are taken off afterwards by sums of rows and
columns. Neighbours along the sum are (0, 1), (2, 3), ... in the order kernel position, then input channel: QLinearConv works on channels last
(onnxruntime core/providers/cpu/quantization/qlinearconv.cc, `ReorderFilter`; mlas/lib/convsym.cpp, `MlasConvSymPackW`; MatMul and Gemm have their
plain order, mlas/lib/qgemm_kernel_avx2.cpp). Positions outside the image hold the zero point. Exact everywhere: depthwise convolutions with one
output channel per input channel (vpmaddwd), and unsigned weights (U8U8 kernels: vpmaddwd). Checked against onnxruntime 1.31 under `qemu-x86_64`.

Weights within [-64, 64] never saturate: 2 * 64 * 255 = 32640.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

LOW, HIGH = -(2**15), 2**15 - 1
MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Identity"}


@dataclass(frozen=True)
class Layer:
    """One Conv, MatMul or Gemm of an activation with constant weights on integer lattices.

    name   its output in the file (nodes of edgekd's files have no names of their own)
    shape  of the weights
    bound  largest |sum of a pair| that any input can reach; 0 where the kernel adds no pairs in 16 bits
    Of a feed: `pairs`, the share of pair sums outside 16 bits; `changed`, the share of outputs that come out otherwise (on their lattice where
    the output is quantized at once, else before what follows); `most`, the largest change in steps of the next lattice (None: there is none)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bound: int
    can_saturate: bool
    pairs: float | None = None
    changed: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Lattice:
    """A tensor of a QDQ file: `q` its integers' name, raw = real / scale + zero; scale and zero arrays with one value or one per channel."""

    q: str
    scale: np.ndarray
    zero: np.ndarray
    constant: np.ndarray | None


@dataclass(frozen=True)
class Operands:
    """What a layer's kernel reads. `rows` int [outputs, sum]: raw weights in the order of the sum; `low`, `high`: what the raw activations reach,
    shifted to unsigned; `output`: the lattice that its result goes to, `direct` if nothing but a clip to [floor, ...] lies between."""

    node: onnx.NodeProto
    x: Lattice
    weight: Lattice
    rows: np.ndarray
    bias: np.ndarray | None
    low: int
    high: int
    saturating: bool
    output: Lattice | None
    direct: bool
    floor: float
    ceiling: float


def audit(model: onnx.ModelProto, feed: Mapping[str, np.ndarray] | None = None) -> tuple[Layer, ...]:
    """The layers with integer operands in the file's order; with `feed` ({input: array}) also what its values do there.

    The feed's values inside are this machine's: where it saturates itself, so do they. Products of two activations are unsigned: not listed."""
    found = _operands(model)
    layers = tuple(_bounded(layer) for layer in found)
    if feed is None:
        return layers
    values = _values(model, [layer.x.q for layer in found], feed)
    return tuple(_seen(layer, o, values[o.x.q]) for layer, o in zip(layers, found, strict=True))


def safe_bits(model: onnx.ModelProto) -> dict[str, int]:
    """{layer: 7 where a pair of its products can leave 16 bits, else 8}: bits of its weights that are safe on every x86."""
    return {layer.name: 7 if layer.can_saturate else 8 for layer in audit(model)}


def reach(rows: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """(lowest, highest) sum of two neighbouring products over all raw activations in [low, high]; `rows` int [outputs, sum]."""
    even, odd = _pairs(rows)
    most = np.maximum(even * low, even * high) + np.maximum(odd * low, odd * high)
    least = np.minimum(even * low, even * high) + np.minimum(odd * low, odd * high)
    return int(least.min(initial=0)), int(most.max(initial=0))


def products(a: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(exact sums, sums whose pairs saturate in 16 bits, pairs outside 16 bits): int64 [positions, outputs] twice; `a` raw unsigned
    [positions, sum], `rows` raw signed [outputs, sum]."""
    even, odd = _pairs(rows)
    first, second = _pairs(a)
    exact = np.rint(a.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.int64)  # whole numbers far below 2^53
    excess, outside = np.zeros_like(exact), 0
    for n in range(len(rows)):
        at = np.flatnonzero(np.abs(even[n]) + np.abs(odd[n]) > 128)  # 128 * 255 fits
        sums = first[:, at] * even[n, at] + second[:, at] * odd[n, at]
        over = sums - np.clip(sums, LOW, HIGH)
        excess[:, n] = over.sum(1)
        outside += int(np.count_nonzero(over))
    return exact, exact - excess, outside


def _pairs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The even and the odd members of the sum, the last odd one 0 if there is none: int64 [..., pairs] twice."""
    rows = np.pad(rows.astype(np.int64), [(0, 0), (0, rows.shape[1] % 2)])
    return rows[:, 0::2], rows[:, 1::2]


def simulate(layer: Operands, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(exact, saturating, pairs outside, pairs) of raw activations `x`: results [positions, outputs] in integers of the output's lattice
    where it is direct (QLinearConv: saturate(round_half_even(sum * (x_scale * w_scale / y_scale)) + z)), else the sums themselves."""
    groups = _attribute(layer.node, "group", 1) if layer.node.op_type == "Conv" else 1
    a = columns(layer.node, x, layer.weight.constant.shape, layer.x.zero)
    a = a.astype(np.int64) + (128 if x.dtype == np.int8 else 0)
    parts = [products(part, rows) for part, rows in zip(np.split(a, groups, 1), np.split(layer.rows, groups), strict=True)]
    exact, saturating = (np.concatenate([p[i] for p in parts], 1) for i in (0, 1))
    if not layer.saturating:
        saturating, parts = exact, [(*p[:2], 0) for p in parts]
    zx, zw = int(layer.x.zero.ravel()[0]) + (128 if x.dtype == np.int8 else 0), layer.weight.zero.astype(np.int64).ravel()
    total = np.concatenate([np.repeat(p.sum(1, keepdims=True), len(layer.rows) // groups, 1) for p in np.split(a, groups, 1)], 1)
    fixed = layer.rows.astype(np.int64).sum(1) * -zx + zw * (zx * layer.rows.shape[1]) + (0 if layer.bias is None else layer.bias.astype(np.int64))
    exact, saturating = exact - zw * total + fixed, saturating - zw * total + fixed
    pairs = len(a) * len(layer.rows) * math.ceil(layer.rows.shape[1] / 2)
    if layer.direct:
        exact, saturating = (_requantized(layer, s) for s in (exact, saturating))
    return exact, saturating, sum(p[2] for p in parts), pairs


def _requantized(layer: Operands, sums: np.ndarray) -> np.ndarray:
    out, zero = layer.output, int(layer.output.zero.ravel()[0])
    limits = np.iinfo(out.zero.dtype)
    factor = (layer.x.scale.ravel()[0] * layer.weight.scale.ravel() / out.scale.ravel()[0]).astype(np.float32)
    q = np.rint(sums.astype(np.float32) * factor) + zero
    ends = [zero + np.rint(np.float32(e) / out.scale.ravel()[0]) for e in (layer.floor, layer.ceiling)]
    return np.clip(np.clip(q, *ends), limits.min, limits.max).astype(np.int64)


def columns(node: onnx.NodeProto, x: np.ndarray, shape: tuple[int, ...], zero: np.ndarray) -> np.ndarray:
    """The activations that each result is a sum over, in the weights' order: [positions, groups * sum]."""
    if node.op_type != "Conv":
        x = x.T if node.op_type == "Gemm" and _attribute(node, "transA", 0) else x
        return x.reshape(-1, x.shape[-1])
    rank, groups = len(shape) - 2, _attribute(node, "group", 1)
    pads, strides, dilations = (_attribute(node, k, [d] * (rank * n)) for k, d, n in (("pads", 0, 2), ("strides", 1, 1), ("dilations", 1, 1)))
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=zero.ravel()[0])
    span = [(k - 1) * d + 1 for k, d in zip(shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, span, tuple(range(2, 2 + rank)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    n, channels, *places = windows.shape[: 2 + rank]
    grouped = windows.reshape(n, groups, channels // groups, *places, *shape[2:])
    spots, kernel = range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    return grouped.transpose(0, *spots, 1, *kernel, 2).reshape(n * math.prod(places), -1)


def _bounded(o: Operands) -> Layer:
    low, high = reach(o.rows, o.low, o.high) if o.saturating else (0, 0)
    return Layer(o.node.output[0], o.node.op_type, o.weight.constant.shape, max(-low, high), low < LOW or high > HIGH)


def _seen(layer: Layer, o: Operands, x: np.ndarray) -> Layer:
    exact, saturating, outside, pairs = simulate(o, x)
    apart = np.abs(saturating - exact)
    most = None if o.output is None else float(apart.max(initial=0))
    if o.output is not None and not o.direct:
        step = o.x.scale.ravel()[0] * o.weight.scale.ravel().astype(np.float64) / o.output.scale.ravel()[0]
        most = float((apart * step).max(initial=0))
    return replace(layer, pairs=outside / max(1, pairs), changed=float((apart > 0).mean()) if apart.size else 0.0, most=most)


def _operands(model: onnx.ModelProto) -> list[Operands]:
    from onnx import numpy_helper

    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        x, weight = (_lattice(makers.get(n), constants) for n in node.input[:2])
        if x is None or weight is None or weight.constant is None or x.zero.dtype.itemsize > 1 or weight.zero.dtype.itemsize > 1:
            continue
        output, direct, floor, ceiling = _output(node, users, constants)
        if node.op_type == "Conv" and not direct:
            continue  # onnxruntime keeps it in float
        bias = _lattice(makers.get(node.input[2]), constants) if len(node.input) > 2 and node.input[2] else None
        w, groups = weight.constant, _attribute(node, "group", 1)
        single = node.op_type == "Conv" and w.shape[1] == 1 and w.shape[0] == groups
        low, high = _range(makers.get(x.q), makers, constants, x)
        signed = 128 if x.zero.dtype == np.int8 else 0
        found.append(
            Operands(
                node=node,
                x=x,
                weight=weight,
                rows=_rows(node, w),
                bias=None if bias is None else bias.constant,
                low=low + signed,
                high=high + signed,
                saturating=w.dtype == np.int8 and not single,
                output=output,
                direct=direct,
                floor=floor,
                ceiling=ceiling,
            )
        )
    return found


def _lattice(node: onnx.NodeProto | None, constants: Mapping[str, np.ndarray]) -> Lattice | None:
    """The lattice that a QuantizeLinear or DequantizeLinear with constant scale names; None of any other node."""
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in constants:
        return None
    q = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
    scale, constant = constants[node.input[1]], constants.get(q)
    if len(node.input) > 2 and node.input[2] in constants:
        zero = constants[node.input[2]]
    else:
        zero = np.zeros((), np.uint8 if constant is None else constant.dtype)
    return Lattice(q, scale, zero, constant)


def _rows(node: onnx.NodeProto, w: np.ndarray) -> np.ndarray:
    """Weights in the order that they are added in: [outputs, sum]."""
    if node.op_type == "Conv":  # [out, in, kernel...] -> kernel position, then input channel
        return np.moveaxis(w, 1, -1).reshape(len(w), -1)
    if node.op_type == "Gemm" and _attribute(node, "transB", 0):
        return w
    return np.swapaxes(w, -1, -2).reshape(-1, w.shape[-2])


def _output(node: onnx.NodeProto, users: Mapping[str, list], constants: Mapping[str, np.ndarray]) -> tuple[Lattice | None, bool, float, float]:
    """(the next lattice, whether only a clip lies before it, the clip's ends in real numbers)."""
    direct, floor, ceiling, name = True, -math.inf, math.inf, node.output[0]
    for _ in range(16):
        following = users.get(name, [])
        if len(following) != 1:
            return None, False, floor, ceiling
        (after,) = following
        if after.op_type == "QuantizeLinear":
            return _lattice(after, constants), direct, floor, ceiling
        ends = _ends(after, constants)
        if ends is None:
            direct = False
        else:
            floor, ceiling = max(floor, ends[0]), min(ceiling, ends[1])
        name = after.output[0]
    return None, False, floor, ceiling


def _ends(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """What a clipping activation clips to, in real numbers; None of another node."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type == "Clip" and all(n in constants for n in node.input[1:] if n):
        given = [float(constants[n]) if n else None for n in (*node.input[1:], "", "")[:2]]
        return -math.inf if given[0] is None else given[0], math.inf if given[1] is None else given[1]
    return None


def _range(node: onnx.NodeProto | None, makers: Mapping, constants: Mapping[str, np.ndarray], x: Lattice) -> tuple[int, int]:
    """What raw activations can be: the type's range, or less after a clip (and the zero point: it stands for what is outside an image)."""
    limits = np.iinfo(x.zero.dtype)
    while node is not None and node.op_type in MOVES | {"QuantizeLinear", "DequantizeLinear"}:
        node = makers.get(node.input[0])
    ends = (0.0, 1.0) if node is not None and node.op_type in ("Softmax", "Sigmoid") else None if node is None else _ends(node, constants)
    if ends is None:
        return int(limits.min), int(limits.max)
    zero = int(x.zero.ravel()[0])
    low, high = (np.clip(zero + np.rint(np.float32(e) / x.scale.ravel()[0]), limits.min, limits.max) for e in ends)
    return min(int(low), zero), max(int(high), zero)


def _values(model: onnx.ModelProto, names: list[str], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The quantized values of the file."""
    import onnx

    from edgekd.quantization.check import file_values

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return {**file_values(path, names, feed), **{n: feed[n] for n in names if n in feed}}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
