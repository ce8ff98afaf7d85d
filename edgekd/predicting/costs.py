"""The work of a network as eleven numbers, one for each kind of operation that costs time; the same on every device.

The split follows the kernels that CPU runtimes have (ncnn src/layer/arm and x86; onnxruntime core/mlas): matrix
products and 1x1 convolutions run as GEMM; 3x3 convolutions of stride 1 in Winograd's form (Lavin & Gray, 1509.09308),
whose transforms are paid by place and channel and not by product; other dense convolutions through im2col; depthwise
ones by element; convolutions of many small groups hardly vectorize; a product for one row waits for its weights; what
computes nothing waits for memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from edgekd.predicting.work import Operator

Precision = Literal["float", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float", "int8")

NAMES = (
    "gemm",
    "winograd",
    "dense",
    "depthwise",
    "grouped",
    "weights",
    "activations",
    "touched",
    "operators",
    "uneven",
    "transforms",
)
NARROW = 16  # channels below which a 3x3 convolution isn't worth a transform, and a group is too small for a GEMM
LANES = 4  # channels that kernels take together (ncnn's elempack on 128-bit registers); others are `uneven`

# milliseconds per million: what a core of 2015 takes, a start for the fit that a prior of +-1 in the logarithm hardly
# holds
START = dict(zip(NAMES, (0.15, 0.1, 0.2, 0.4, 0.4, 1.0, 0.5, 0.5, 1e4, 0.1, 1.0), strict=True))


def costs(work: Sequence[Operator]) -> np.ndarray:
    """[11] in the order of NAMES, in millions.

    gemm, winograd, dense, depthwise, grouped: multiply-accumulates. weights: elements, of products for one row.
    activations: elements read and written by convolutions and products. touched: by everything else. operators: how
    many. uneven: multiply-accumulates of convolutions with channels that are not a multiple of 4. transforms: elements
    read and written by 3x3 convolutions in Winograd's form."""
    total = dict.fromkeys(NAMES, 0.0)
    for operator in work:
        for name, amount in _of(operator).items():
            total[name] += amount
    return np.array([total[name] for name in NAMES]) / 1e6


def _of(o: Operator) -> dict[str, float]:
    moved = o.read + o.written
    if o.kind not in ("conv", "product"):
        return {"touched": moved, "operators": 1}
    if o.kind == "product" and o.height == 1:
        return {"weights": o.weights, "operators": 1}
    kernel = kernel_of(o)
    found = {kernel: o.macs, "activations": moved, "operators": 1}
    if o.kind == "conv" and (o.co % LANES or (o.ci % LANES and o.ci > LANES)):
        found["uneven"] = o.macs
    if kernel == "winograd":
        found["transforms"] = moved
    return found


def kernel_of(o: Operator) -> str:
    """Which kind of kernel computes a convolution or a product of many rows."""
    terms = o.ci // o.groups
    if o.kind == "product" or (o.kernel == (1, 1) and (o.groups == 1 or terms > NARROW)):
        return "gemm"
    if o.groups == o.ci and o.groups > 1:
        return "depthwise"
    if o.groups > 1 and terms <= NARROW:
        return "grouped"
    if o.kernel == (3, 3) and o.stride == 1 and terms >= NARROW and o.co // o.groups >= NARROW:
        return "winograd"
    return "dense"
