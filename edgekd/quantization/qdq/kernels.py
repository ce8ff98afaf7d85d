"""onnxruntime's integer kernels in numpy, one function each: what it computes in place of DequantizeLinear -> operator
-> QuantizeLinear.

The ONNX specification gives such a group a meaning in real numbers; onnxruntime replaces it by one kernel on integers
(core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc) whose roundings are its own. These
are the kernels of x86 with AVX2 or newer; `np.float32` stands wherever they round to float32. On ARM, QLinearAdd and
QLinearGlobalAveragePool multiply by whole numbers and shift, and round halves up: not modelled here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.quantization.qdq.integers import F, Quantized, Target, converted, onto, requantized, windows

PART = 2**21  # numbers that are multiplied at once


def conv(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """x [n, c, *s], w [o, c / groups, *k], bias [o] int32 at x_scale * w_scale -> [n, o, *s']. Padding is the zero
    point: 0 once that is taken."""
    x, w = operands[:2]
    weights = w.whole().astype(np.float64)  # whole numbers below 2^53: a product of float64 is exact
    seen = windows(x.whole().astype(np.float64), w.q.shape[2:], attributes, 0)  # [n, c, *s', *k]
    bias: Any = operands[2].q.reshape(-1, *(1 for _ in w.q.shape[2:])) if len(operands) > 2 else 0
    made = np.empty((len(seen), len(weights), *seen.shape[2 : x.q.ndim]), target.dtype)
    for n in range(len(seen)):
        for rows in _rows(seen):
            sums = _sums(seen[n : n + 1, :, rows], weights, attributes.get("group", 1)) + bias
            made[n : n + 1, :, rows] = requantized(sums, x.scale * w.scale, 1, target)
    return made


def _rows(seen: np.ndarray) -> Iterator[slice]:
    """Parts of the first axis of space of [n, c, *s', *k], whose copies take little memory."""
    step = max(1, PART // max(1, seen[:1, :, :1].size))
    return (slice(i, i + step) for i in range(0, seen.shape[2], step))


def _sums(seen: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    """[n, c, *s', *k], [o, c / groups, *k] -> [n, o, *s']"""
    rank = weights.ndim - 2
    if groups == seen.shape[1] == len(weights):  # depthwise
        kernel = list(range(2 + rank, 2 + 2 * rank))
        return np.einsum(seen, list(range(seen.ndim)), weights[:, 0], [1, *kernel], list(range(2 + rank)))
    axes = ((1, *range(2 + rank, 2 + 2 * rank)), range(1, 2 + rank))
    pairs = zip(np.split(seen, groups, 1), np.split(weights, groups), strict=True)
    return np.concatenate([np.moveaxis(np.tensordot(a, b, axes), -1, 1) for a, b in pairs], 1)


def products(attributes: Mapping, operands: Sequence[Quantized]) -> tuple[np.ndarray, np.ndarray]:
    """(sums [..., n], their float32 scale) of MatMul or Gemm: a [..., k], b [..., k, n], bias int32 at a_scale *
    b_scale."""
    a, b = (o.whole().astype(np.float64) for o in operands[:2])
    a, b = (a.T if attributes.get("transA") else a), (b.T if attributes.get("transB") else b)
    sums = a @ b + (operands[2].q if len(operands) > 2 else 0)
    return sums, F(attributes.get("alpha", 1)) * operands[0].scale * operands[1].scale


def matmul(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    sums, scale = products(attributes, operands)
    return requantized(sums, scale, -1, target)


def add(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qladd_avx2.cpp: fma(a, r_a, fma(b, r_b, z - fma(r_a, z_a, r_b z_b))), r = scale / y_scale, on stored integers.
    The operands change places if the first is one number beside a row of the other (qlinear_binary_op.cc; a row as the
    file lays it out, whatever the kernels' layout). A fused multiply-add rounds once: float64 holds the product of 8
    bits and a float32 exactly, and the sum nearly so."""
    a, b = operands
    if _one_beside_a_row(a.q.shape, b.q.shape):
        a, b = b, a
    ra, rb = a.scale / target.scale, b.scale / target.scale
    zeros = F(np.float64(ra) * int(a.zero) + np.float64(rb * F(b.zero)))
    inner = (b.q.astype(np.float64) * rb + (F(target.zero) - zeros)).astype(F)
    return target.saturate(converted((a.q.astype(np.float64) * ra + inner).astype(F)))


def _one_beside_a_row(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether onnxruntime's broadcasting (element_wise_ops.h) takes the first operand for one number: rows lie along
    the last axis that is not 1 in both. Where there is none, or the other is a number beside rows of one, it does too.
    """
    if not a or not b:
        return not a or a[-1] == 1
    while a and b and a[-1] == b[-1] == 1:
        a, b = a[:-1], b[:-1]
    return not a or not b or a[-1] == 1


def multiply(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlmul.cpp: round(float32(a b) * (a_scale * b_scale / y_scale) + z): the zero point comes before the rounding, so
    halves go to even q."""
    a, b = operands
    return target.saturate(
        converted((a.whole() * b.whole()).astype(F) * (a.scale * b.scale / target.scale) + F(target.zero))
    )


def global_average(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlgavgpool.cpp: round(float32(sum) * (x_scale / (y_scale * count)))."""
    (x,) = operands
    space = tuple(range(2, x.q.ndim))
    count = int(np.prod([x.q.shape[d] for d in space]))
    return target.rounded(x.whole().sum(space, keepdims=True).astype(F) * (x.scale / (target.scale * F(count))))


def average(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlinear_pool.cc: real values are summed in float32 row by row, divided by their count; round(mean / y_scale + z),
    halves to even q."""
    (x,) = operands
    kernel = attributes["kernel_shape"]
    places = list(np.ndindex(*kernel))
    seen = windows(x.real(), kernel, attributes, F(0))
    total = np.zeros(seen.shape[: x.q.ndim], F)
    for place in places:
        total = total + seen[(..., *place)]
    count: Any = F(len(places))
    if not attributes.get("count_include_pad", 0):
        count = windows(np.ones(x.q.shape, F), kernel, attributes, F(0)).sum(tuple(range(x.q.ndim, seen.ndim)), dtype=F)
    return target.saturate(converted(total / count / target.scale + F(target.zero)))


def maximum(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """MaxPool on stored integers: onnxruntime drops the parameters around it where they are equal, and rounds
    where not."""
    (x,) = operands
    seen = windows(x.q, attributes["kernel_shape"], attributes, np.iinfo(x.q.dtype).min)
    return onto(Quantized(seen.max(tuple(range(x.q.ndim, seen.ndim))), x.scale, x.zero, x.axis), target)


def concat(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlinear_concat.cc: each operand through a table of 256 numbers, quantize(dequantize(q)), and as it is where the
    parameters are equal."""
    return np.concatenate([onto(o, target) for o in operands], attributes["axis"])


def sigmoid(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlinear_lookup_table.cc: quantize(sigmoid(dequantize(q)))."""
    return target.quantize(0.5 + 0.5 * np.tanh(operands[0].real().astype(np.float64) / 2))


def leaky_relu(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlinear_lookup_table.cc: quantize(leaky_relu(dequantize(q)))."""
    x = operands[0].real()
    return target.quantize(np.where(x >= 0, x, x * F(attributes.get("alpha", 0.01))))


def softmax(attributes: Mapping, operands: Sequence[Quantized], target: Target) -> np.ndarray:
    """qlinear_softmax.cc: e^x from a table of float32, its greatest entry e^(ln(max / n) - 5) so that n of them can be
    summed; the row's greatest q is shifted onto it; round(e * floor(1 / y_scale) / sum) + z, never below 0."""
    (x,) = operands
    q = np.moveaxis(x.q.astype(np.int64), attributes.get("axis", -1), -1)
    shift = max(0.0, np.log(np.finfo(F).max / F(q.shape[-1])) - 5) / np.float64(x.scale)
    table = np.exp((np.arange(256) - 255 + shift) * np.float64(x.scale)).astype(F)
    shares = table[q + 255 - q.max(-1, keepdims=True)]
    total = np.zeros(q.shape[:-1], F)
    for i in range(q.shape[-1]):
        total = total + shares[..., i]
    found = np.rint(shares * np.floor(F(1) / target.scale) / total[..., None]) + target.zero
    return np.moveaxis(target.saturate(found), -1, attributes.get("axis", -1))


KERNELS: dict[str, Callable[..., np.ndarray]] = {
    "Conv": conv, "Gemm": matmul, "MatMul": matmul, "Add": add, "Mul": multiply, "GlobalAveragePool": global_average,
    "AveragePool": average, "MaxPool": maximum, "Concat": concat, "Sigmoid": sigmoid, "Softmax": softmax,
    "LeakyRelu": leaky_relu,
}  # fmt: skip
