"""Where a float ONNX file from elsewhere is quantized: `place` names its values with a lattice and its layers, as
`sites.place` does for captured graphs.

Two rules differ, since nothing is trained here that could get used to coarse values. What float operators alone read
has no lattice unless its layer is a convolution (a Gemm's or MatMul's integer kernel can give floats); and sums and
products are computed in integers only where all their operands have a lattice anyway, so that decoders of boxes, RMS
norms and residual streams between layer norms stay in float.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.parameters import Limits
from edgekd.quantization.qdq.graph import LAYERS, Graph, attribute, depthwise, moves

if TYPE_CHECKING:
    import onnx

ASKED = "it was asked to"
PRODUCTS = (
    *LAYERS,
    "ConvTranspose",
    "LSTM",
    "GRU",
    "RNN",
    "Einsum",
    "Attention",
    "DeformConv",
    "MultiHeadAttention",
    "FusedMatMul",
)
# operators that read and write integers where all that they read lies on lattices
INTEGER = ("Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")


@dataclass(frozen=True)
class Layer:
    """A product of matrices or a convolution. `name` its output in the file, `label` what a person calls it; `x` the
    site of its input, `weight` the initializer and `axis` that of its output channels in it (None: one scale), both
    None for a product of two values; `pairs` whether kernels of x86 may add products of neighbours in 16 bits. `reason`
    why it stays float."""

    name: str
    label: str
    kind: str
    x: str = ""
    weight: str | None = None
    axis: int | None = None
    bias: str | None = None
    pairs: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """`values` {value with a lattice: Limits}; `tied` {value that was moved or cut at zero: the one whose lattice it
    lies on}; `layers` in the file's order."""

    values: dict[str, Limits]
    tied: dict[str, str]
    layers: tuple[Layer, ...]


def place(graph: Graph, floats: AbstractSet[str], float_layers: Collection[str] = ()) -> Placement:
    """The lattices of a file. What a layer reads has one, and what a convolution writes (after a clip that alone reads
    it); from there they spread through operators of integers. `floats`: the values that are float32 tensors;
    `float_layers`: outputs of layers that stay float because somebody wants it."""
    layers = tuple(layer(n, graph, floats) for n in graph.nodes if n.op_type in PRODUCTS)
    layers = tuple(
        replace(known, reason=known.reason or ASKED) if known.name in float_layers else known for known in layers
    )
    integer = {known.name for known in layers if not known.reason}
    source = _sources(graph, floats)
    wanted, possible, rest = set(), set(), []
    for node in graph.nodes:
        if node.output and node.output[0] in integer:
            wanted |= {source.get(n, n) for n in node.input[:2] if n not in graph.constants}
            (wanted if node.op_type == "Conv" else possible).add(clipped(node.output[0], graph))
        elif node.op_type in (*INTEGER, "Sigmoid") and not any(
            n in graph.constants or n not in floats for n in node.input
        ):
            rest.append(node)
    before = -1
    while before != len(wanted):  # an operator that becomes one of integers may make others so
        before = len(wanted)
        for node in rest:
            operands, out = {source.get(n, n) for n in node.input}, clipped(node.output[0], graph)
            if not operands <= wanted | possible:
                continue
            if node.op_type == "Sigmoid":
                possible.add(out)
            elif operands & wanted:
                wanted |= operands | {out}
    wanted &= floats
    made = [*(i for i in graph.readers if i not in graph.makers), *(o for n in graph.nodes for o in n.output)]
    for name in made:  # the positive part of a value that lies on a lattice lies on it too
        node = graph.makers.get(name)
        if (
            name in wanted
            and clip(node, graph) == (0.0, math.inf)
            and source.get(node.input[0], node.input[0]) in wanted
        ):
            wanted.discard(name)
            source[name] = source.get(node.input[0], node.input[0])
        elif name in source:
            source[name] = source.get(source[name], source[name])
    tied = {n: s for n, s in source.items() if s in wanted and n in floats}
    values = {}
    for name in made:
        if name in wanted and name not in values:
            node = graph.makers.get(name)
            ends = clip(node, graph)
            values[name] = Limits(*(ends or (-math.inf, math.inf)), node is not None and node.op_type == "Softmax")
    return Placement(values, tied, tuple(_sited(known, graph, source) for known in layers))


def _sited(known: Layer, graph: Graph, source: Mapping[str, str]) -> Layer:
    x = graph.makers[known.name].input[0]
    return known if known.reason else replace(known, x=source.get(x, x))


def layer(node: onnx.NodeProto, graph: Graph, floats: AbstractSet[str]) -> Layer:
    """What `place` knows of a layer by itself."""
    label, kind = node.name or node.output[0], node.op_type
    found = {"name": node.output[0], "label": label, "kind": kind}
    first, second = (*node.input, "", "")[:2]
    if kind not in LAYERS:
        return Layer(**found, reason=f"onnxruntime has no integer kernel for {kind}")
    if first in graph.constants:
        return Layer(**found, reason="a stored matrix comes first in the product")
    if first not in floats:
        return Layer(**found, reason="its input is no float32 tensor")
    w, bias = graph.constants.get(second), node.input[2] if len(node.input) > 2 and node.input[2] else None
    if w is None and kind != "MatMul":
        return Layer(**found, reason="its weights are computed, not stored")
    if w is None:
        return Layer(**found) if second in floats else Layer(**found, reason="its input is no float32 tensor")
    if w.dtype != np.float32 or w.ndim < 2 or not w.size:
        return Layer(**found, reason=f"its weights are {w.dtype} of shape {list(w.shape)}")
    if kind == "Gemm" and (
        attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1
    ):
        return Layer(**found, reason="its input is transposed or scaled")
    axis = 0 if kind == "Conv" or attribute(node, "transB", 0) else 1 if w.ndim == 2 else None
    if bias is not None and (bias not in graph.constants or graph.constants[bias].shape != (w.shape[axis or 0],)):
        return Layer(**found, reason="its bias is no stored number per output")
    return Layer(**found, weight=second, axis=axis, bias=bias, pairs=not depthwise(node, w))


def clip(node: onnx.NodeProto | None, graph: Graph) -> tuple[float, float] | None:
    """The interval around zero that a node which only clips lets through; None for other nodes."""
    found = graph.clip(node)
    return found if found is not None and found[0] <= 0 <= found[1] and found[0] < found[1] else None


def clipped(name: str, graph: Graph) -> str:
    """What a clip that alone reads a value makes of it, else the value."""
    reader = graph.reader(name)
    return reader.output[0] if clip(reader, graph) is not None else name


def _sources(graph: Graph, floats: AbstractSet[str]) -> dict[str, str]:
    """{moved value: the value that it was}"""
    source: dict[str, str] = {}
    for node in graph.nodes:
        if moves(node) and node.input[0] not in graph.constants and node.input[0] in floats:
            for name in node.output:
                source[name] = source.get(node.input[0], node.input[0])
    return source
