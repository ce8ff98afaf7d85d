"""Where int8 products saturate on x86 without VNNI: which layers of a QDQ file can give other results there, and which
do.

There onnxruntime multiplies with vpmaddubsw: of unsigned activations a and signed weights w two neighbouring products
are added in 16 bits, a0 w0 + a1 w1 clipped to [-32768, 32767] (Intel SDM, PMADDUBSW). Both are raw integers: zero
points are taken off later by sums of rows and columns. Neighbours are (0, 1), (2, 3), ... along kernel position, then
input channel, as QLinearConv works on channels last (onnxruntime core/providers/cpu/quantization/qlinearconv.cc,
mlas/lib/convsym.cpp), and along the plain order of MatMul and Gemm (mlas/lib/x86_64/ QgemmU8X8KernelAvx2.S). Signed
activations are made unsigned first: + 128.

Exact everywhere: convolutions with one input and one output channel per group (vpmaddwd on words), unsigned weights
(U8U8 kernels, vpmaddwd), weights within [-64, 64] (2 * 64 * 255 = 32640), and every layer in a session with
`session.x64quantprecision` = 1, which takes the U8U8 kernels (but onnxruntime 1.31 can't open files so where layers
share the initializer of a weight or of its zero point). Without AVX2 the kernels for Linux are exact too; those for
Windows use pmaddubsw (mlas/lib/qgemm_kernel_sse41.cpp) and the same pairs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import external
from edgekd.quantization.qdq.operands import Operands, columns, positions, read
from edgekd.quantization.qdq.pairs import HIGH, LOW, products, reach
from edgekd.quantization.qdq.values import session

if TYPE_CHECKING:
    import onnx

SLICE = 10**8  # weights times input values of the rows that are looked at together


@dataclass(frozen=True)
class Layer:
    """One Conv, MatMul or Gemm of an activation with constant weights that is computed in integers.

    name     its output in the file
    shape    of the weights
    bound    the largest |sum of a pair| that any input can reach; 0 where the kernel adds no pairs in 16 bits
    pairs    of the values that a feed brings: share of pairs outside 16 bits
    changed  share of outputs that come out otherwise, quantized if that is the next thing, else as sums
    most     the largest change in steps of the next scale; None where there is none"""

    name: str
    kind: str
    shape: tuple[int, ...]
    bound: int
    can_saturate: bool
    pairs: float | None = None
    changed: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Result:
    """A layer's output [positions, outputs] by exact and by saturating kernels: quantized as the output is, or sums
    where the output is not.

    `outside` of `pairs` sums of pairs left 16 bits."""

    exact: np.ndarray
    saturating: np.ndarray
    outside: int
    pairs: int


def audit(model: onnx.ModelProto, feed: Mapping[str, np.ndarray] | None = None) -> tuple[Layer, ...]:
    """The layers with integer operands in the file's order; with `feed` ({input: array}) also what its values do there.

    Each layer is judged by the exact values that reach it, so run this where products are exact (VNNI, ARM); changes of
    earlier layers are not in those of later ones. Products of two activations are unsigned, so exact, and not listed. A
    layer that `simulate` doesn't know (`plain` of its operands is false) has no figures of a feed."""
    found = read(model)
    layers = tuple(_bounded(o) for o in found)
    if feed is None:
        return layers
    values = _values(model, [o.x.q for layer, o in zip(layers, found, strict=True) if layer.can_saturate], feed)
    return tuple(_seen(layer, o, values) if o.plain else layer for layer, o in zip(layers, found, strict=True))


def saturated(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], names: Collection[str]
) -> dict[str, onnx.ModelProto]:
    """{layer: the file with what saturation takes from that layer's sums on `feed` added to its output}: run on `feed`
    it shows what becomes of the file's outputs where that layer alone saturates. Of the layers in `names` (as `audit`
    calls them) that `simulate` knows."""
    import onnx
    from onnx import helper, numpy_helper

    found = [o for o in read(model) if o.node.output[0] in names and o.plain and _adds_pairs(o)]
    values, made = _values(model, [o.x.q for o in found], feed), {}
    for o in found:
        x, name = values[o.x.q], o.node.output[0]
        parts = [_sums(o, x[first : first + _step(o, x)]) for first in range(0, len(x), _step(o, x))]
        excess = np.concatenate([saturating - exact for exact, saturating, *_ in parts]) * (
            o.x.scale[0] * o.weight.scale
        ).astype(np.float64)
        if o.node.op_type == "Conv":
            excess = np.moveaxis(excess.reshape(len(x), *positions(o, x), -1), -1, 1)
        else:
            excess = excess.reshape(*x.shape[:-1], -1)
        copy = external.copied(model)
        copy.graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(excess, np.float32), f"{name}.excess")
        )
        nodes = []
        for node in copy.graph.node:
            nodes.append(node)
            if node.output[0] == name:
                node.output[0] = f"{name}.exact"
                nodes.append(helper.make_node("Add", [f"{name}.exact", f"{name}.excess"], [name]))
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del copy.graph.node[:]
        copy.graph.node.extend(kept)
        made[name] = copy
    return made


def simulate(o: Operands, x: np.ndarray) -> Result:
    """The layer on its integer input `x` (shape as in the file). QLinearConv, QLinearMatMul, QGemm:
    saturate(round_half_even(sum * f) + zero) with f = x_scale * w_scale / y_scale in float32."""
    exact, saturating, outside, pairs = _sums(o, x)
    if o.output is not None:
        exact, saturating = _requantized(o, exact), _requantized(o, saturating)
    return Result(exact, saturating, outside, pairs)


def _sums(o: Operands, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(exact, saturating) sums of a layer on its integer input, zero points and bias taken off and added; how many of
    how many pairs left 16 bits."""
    shift = 128 if x.dtype == np.int8 else 0
    a = columns(o, x).astype(np.int64) + shift
    x_zero, w_zero = int(o.x.zero_point[0]) + shift, o.weight.zero_point.astype(np.int64)
    split = list(zip(np.split(a, o.groups, 1), np.split(o.rows.astype(np.int64), o.groups), strict=True))
    if _adds_pairs(o):
        made = [products(part, rows) for part, rows in split]
    else:
        made = [(sums, sums, 0) for sums in (part @ rows.T for part, rows in split)]
    totals = np.concatenate([np.repeat(part.sum(1, keepdims=True), len(rows), 1) for part, rows in split], 1)
    fixed = (
        -x_zero * o.rows.astype(np.int64).sum(1)
        + w_zero * (x_zero * o.rows.shape[1])
        + (0 if o.bias is None else o.bias)
    )
    exact, saturating = (np.concatenate([m[i] for m in made], 1) - w_zero * totals + fixed for i in (0, 1))
    return exact, saturating, sum(m[2] for m in made), len(a) * len(o.rows) * math.ceil(o.rows.shape[1] / 2)


def _step(o: Operands, x: np.ndarray) -> int:
    """Rows of `x` that are looked at together: an image becomes kernel-size times as large."""
    return len(x) if o.node.op_type == "Gemm" else max(1, SLICE // max(1, o.rows.size * x[:1].size))


def _requantized(o: Operands, sums: np.ndarray) -> np.ndarray:
    factor = (o.x.scale[0] * o.weight.scale / o.output.scale[0]).astype(np.float32)
    return np.clip(np.rint(sums.astype(np.float32) * factor) + int(o.output.zero_point[0]), *o.output.limits).astype(
        np.int64
    )


def _adds_pairs(o: Operands) -> bool:
    return o.rows.dtype == np.int8 and not o.depthwise


def _bounded(o: Operands) -> Layer:
    shift = 128 if o.x.zero_point.dtype == np.int8 else 0
    low, high = reach(o.rows, o.low + shift, o.high + shift) if _adds_pairs(o) else (0, 0)
    return Layer(o.node.output[0], o.node.op_type, o.weight.constant.shape, max(-low, high), low < LOW or high > HIGH)


def _seen(layer: Layer, o: Operands, values: Mapping[str, np.ndarray]) -> Layer:
    """The layer with what happens to its inputs among `values`. One that no input can saturate needs none."""
    if not layer.can_saturate:
        return replace(layer, pairs=0.0, changed=0.0, most=None if o.next is None else 0.0)
    x = values[o.x.q]
    step = (
        1.0
        if o.output is not None or o.next is None
        else o.x.scale[0] * o.weight.scale.astype(np.float64) / o.next.scale[0]
    )
    rows = _step(o, x)
    outside, pairs, changed, outputs, most = 0, 0, 0, 0, 0.0
    for first in range(0, len(x), rows):
        result = simulate(o, x[first : first + rows])
        apart = np.abs(result.saturating - result.exact)
        outside, pairs = outside + result.outside, pairs + result.pairs
        changed, outputs = changed + int(np.count_nonzero(apart)), outputs + apart.size
        most = max(most, float((apart * step).max(initial=0)))
    return replace(
        layer, pairs=outside / max(1, pairs), changed=changed / max(1, outputs), most=None if o.next is None else most
    )


def _values(model: onnx.ModelProto, names: list[str], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Integers inside the file, as onnxruntime computes them."""
    if not names:
        return dict(feed)
    return {**feed, **session(model, [n for n in names if n not in feed])(dict(feed))}
