"""Where a float ONNX file from elsewhere is quantized: which of its values, and its layers. The rules are in
`quantization.placement`; here is what they need to know of ONNX's operators."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import subgraphs
from edgekd.quantization import placement as rules
from edgekd.quantization.onnx_graph import gates
from edgekd.quantization.parameters import Limits
from edgekd.quantization.placement import COMBINES, FLOAT, LOOKUP, MOVES, ONNX, Flow, Operator
from edgekd.quantization.qdq.graph import LAYERS, Graph, attribute, depthwise, made, moves

if TYPE_CHECKING:
    import onnx

ASKED = "it was asked to"
UNFUSED = "onnxruntime keeps it in float"
# what a person calls a layer; of these the others stay in float
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
    "TransposeMatMul",
    "FusedConv",
    "FusedGemm",
    "GemmFastGelu",
    "FusedMatMulActivation",
    "QAttention",
    "GroupQueryAttention",
)


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
    """`values` {value that is quantized: Limits}; `tied` {value that was moved or cut at zero: the one whose parameters
    it has}; `layers` in the file's order."""

    values: dict[str, Limits]
    tied: dict[str, str]
    layers: tuple[Layer, ...]


def place(
    graph: Graph, floats: AbstractSet[str], float_layers: Collection[str] = (), unfused: Collection[str] = ()
) -> Placement:
    """Where a file is quantized. `floats`: the values that are float32 tensors; `float_layers`: outputs of layers that
    stay float because somebody wants it; `unfused`: of those for which onnxruntime finds no integer kernel."""
    layers = tuple(known for n in graph.nodes for known in _layers(n, graph, floats))
    more = dict.fromkeys(unfused, UNFUSED) | dict.fromkeys(float_layers, ASKED)
    layers = tuple(replace(known, reason=known.reason or more.get(known.name, "")) for known in layers)
    integer = {known.name for known in layers if not known.reason}
    flow = Flow(
        inputs=tuple(n for n in graph.readers if n not in graph.makers),
        operators=tuple(_told(n, graph, floats, integer) for n in graph.nodes),
        outputs=tuple(o.name for o in graph.model.graph.output),
        floats=floats,
    )
    values, tied = rules.place(flow, trained=False)
    on = {name: name for name in values} | tied
    return Placement(values, tied, tuple(_sited(known, graph, on) for known in layers))


def _layers(node: onnx.NodeProto, graph: Graph, floats: AbstractSet[str]) -> Iterator[Layer]:
    """The layer that a node is; those inside an If, Loop or Scan, which stay in float."""
    if node.op_type in PRODUCTS:
        yield layer(node, graph, floats)
    for inner in subgraphs.nested(node):
        if inner.op_type in PRODUCTS:
            name = f"{made(node)}/{made(inner)}"
            reason = f"it is inside of {node.op_type} {node.name or made(node)}"
            yield Layer(name, inner.name or name, inner.op_type, reason=reason)


def _sited(known: Layer, graph: Graph, on: dict[str, str]) -> Layer:
    return known if known.reason else replace(known, x=on[graph.makers[known.name].input[0]])


def layer(node: onnx.NodeProto, graph: Graph, floats: AbstractSet[str]) -> Layer:
    """What `place` knows of a layer by itself."""
    found = Layer(made(node), node.name or made(node), node.op_type)
    reason = _reason(node, graph, floats)
    w = graph.constants.get(node.input[1]) if not reason else None
    if w is None:
        return replace(found, reason=reason)
    axis, bias = _axis(node, w), _bias(node)
    if bias is not None and (bias not in graph.constants or graph.constants[bias].shape != (w.shape[axis or 0],)):
        return replace(found, reason="its bias is not one stored number per output")
    return replace(found, weight=node.input[1], axis=axis, bias=bias, pairs=not depthwise(node, w))


def _reason(node: onnx.NodeProto, graph: Graph, floats: AbstractSet[str]) -> str:
    """Why a layer stays float, as far as its operands say it; "" if it doesn't."""
    kind, (first, second) = node.op_type, (*node.input, "", "")[:2]
    if kind not in LAYERS:
        return f"onnxruntime has no integer kernel for {kind}"
    if first in graph.constants:
        return "a stored matrix comes first in the product"
    w = graph.constants.get(second)
    if first not in floats or (kind == "MatMul" and w is None and second not in floats):
        return "its input is not a float32 tensor"
    if w is None:
        return "" if kind == "MatMul" else "its weights are computed, not stored"
    if w.dtype != np.float32 or w.ndim < 2 or not w.size:
        return f"its weights are {w.dtype} of shape {list(w.shape)}"
    if kind == "Gemm" and (attribute(node, "transA", 0), _factor(node, "alpha"), _factor(node, "beta")) != (0, 1, 1):
        return "its input is transposed or scaled"
    return ""


def _factor(node: onnx.NodeProto, name: str) -> float:
    return attribute(node, name, 1.0)


def _axis(node: onnx.NodeProto, w: np.ndarray) -> int | None:
    """The axis of the output channels in a weight; None where each matrix of a stack has its own."""
    if node.op_type == "Conv" or attribute(node, "transB", 0):
        return 0
    return 1 if w.ndim == 2 else None


def _bias(node: onnx.NodeProto) -> str | None:
    return node.input[2] if len(node.input) > 2 and node.input[2] else None


# ---------------------------------------------------------------- the graph as the rules see it


def _told(node: onnx.NodeProto, graph: Graph, floats: AbstractSet[str], integer: Collection[str]) -> Operator:
    operands = tuple(n for n in node.input[: 2 if node.op_type in LAYERS else None] if n not in graph.constants)
    return Operator(
        outputs=tuple(node.output),
        rule=_rule(node, graph, floats, integer),
        first=node.input[0] if node.input else "",
        operands=operands,
        result=clipped(node.output[0], graph) if node.output else "",
        clip=clip(node, graph),
        share=node.op_type == "Softmax",
    )


def _rule(node: onnx.NodeProto, graph: Graph, floats: AbstractSet[str], integer: Collection[str]) -> str:
    rule = ONNX.get(node.op_type, FLOAT)
    if node.op_type in LAYERS:
        return rule if node.output[0] in integer else FLOAT
    if node.op_type == "HardSigmoid" and not summed(node):
        return FLOAT
    if rule == COMBINES and gates.widths(node, graph) is not None:
        return rule if node.input[0] in floats else FLOAT
    if rule in (COMBINES, LOOKUP):  # with a number or a parameter it is a float operator
        return rule if all(n in floats and n not in graph.constants for n in node.input) else FLOAT
    if rule == MOVES:  # what is stored would have been folded
        return rule if moves(node) and node.input[0] in floats and node.input[0] not in graph.constants else FLOAT
    return rule


def summed(node: onnx.NodeProto) -> bool:
    """Whether a node is a HardSigmoid max(0, min(1, alpha x + beta)) that can be a sum of integers."""
    return node.op_type == "HardSigmoid" and attribute(node, "alpha", 0.2) > 0 and attribute(node, "beta", 0.5) >= 0


def clip(node: onnx.NodeProto | None, graph: Graph) -> tuple[float, float] | None:
    """The interval around zero that a node which only clips lets through; None for other nodes."""
    found = graph.clip(node)
    return found if found is not None and found[0] <= 0 <= found[1] and found[0] < found[1] else None


def clipped(name: str, graph: Graph) -> str:
    """What a clip that alone reads a value makes of it, else the value."""
    reader = graph.reader(name)
    return reader.output[0] if clip(reader, graph) is not None else name
