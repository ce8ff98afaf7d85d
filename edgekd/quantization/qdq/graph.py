"""What an ONNX file says of its values: which node computes one, which read it, its quantization parameters, what only
moves or clips it. A `Graph` is made once per model; whatever looks into a file reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.onnx_files import subgraphs
from edgekd.quantization import placement
from edgekd.quantization.parameters import Limits, clips_itself, exactly

if TYPE_CHECKING:
    import onnx

# layers that onnxruntime has integer kernels for
LAYERS = ("Conv", "Gemm", "MatMul")
CLIPS = ("Relu", "Clip")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
# Operators whose result holds values of their first operand and no others, so that it can have that one's quantization
# parameters. onnxruntime computes them on the stored integers where the parameters before and behind them are equal
# (core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc); what it treats so besides
# (DepthToSpace, GatherElements, ReduceMax, ReduceMin) gets parameters of its own here.
MOVES = frozenset(name for name, rule in placement.ONNX.items() if rule == placement.MOVES)


@dataclass(frozen=True)
class Parameters:
    """Quantization parameters of a tensor: real = scale * (q - zero_point).

    q                  the name of its integers; `constant`: these, where they are stored
    scale, zero_point  [1], or [slices] along `axis` (None: one for the whole tensor); the zero point has the type of
                       the integers"""

    q: str
    scale: np.ndarray
    zero_point: np.ndarray
    constant: np.ndarray | None = None
    axis: int | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """The ends of the integer range."""
        ends = np.iinfo(self.zero_point.dtype)
        return int(ends.min), int(ends.max)


@dataclass(frozen=True)
class Graph:
    """The graph of a model, to look things up in.

    constants  {initializer: array}
    makers     {value: the node that computes it}
    readers    {value: the nodes that read it, one per operand; None for an output of the file and for a subgraph (of
               If, Loop) that reads it}"""

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, np.ndarray]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto | None]]

    def reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value; None where there is none, or another reader."""
        found = self.readers.get(name, ())
        return found[0] if len(found) == 1 else None

    def parameters(self, node: onnx.NodeProto | None) -> Parameters | None:
        """Those that a QuantizeLinear or DequantizeLinear names; None where they are computed, and of other nodes."""
        if node is None or node.op_type not in QUANTIZERS or node.input[1] not in self.constants:
            return None
        q = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
        constant, scale = self.constants.get(q), self.constants[node.input[1]]
        if len(node.input) > 2:
            zero_point = self.constants.get(node.input[2])
        else:
            zero_point = np.zeros((), np.uint8 if constant is None else constant.dtype)
        if zero_point is None:
            return None
        axis = attribute(node, "axis", 1) if scale.ndim else None
        return Parameters(q, scale.ravel(), zero_point.ravel(), constant, axis)

    def clip(self, node: onnx.NodeProto | None) -> tuple[float, float] | None:
        """(lowest, highest) number that a Relu or Clip lets through; None of other nodes, and of computed limits."""
        if node is None or node.op_type not in CLIPS:
            return None
        if node.op_type == "Relu":
            return 0.0, math.inf
        ends = [*node.input[1:], "", ""][:2]
        if any(n and n not in self.constants for n in ends):
            return None
        low, high = (self.constants[n].item() if n else None for n in ends)
        return -math.inf if low is None else float(low), math.inf if high is None else float(high)

    def clips_itself(self, clip: tuple[float, float], parameters: Parameters) -> bool:
        """Whether quantization with these parameters clips as a Relu or Clip before it does, which onnxruntime then
        drops (IsClipMadeRedundantByQ)."""
        low, high = parameters.limits
        return clips_itself(Limits(*clip), float(parameters.scale[0]), int(parameters.zero_point[0]) - low, high - low)

    def origin(self, name: str, clips: bool = False) -> str:
        """The value that this one was before it was moved, quantized and dequantized (and clipped)."""
        return (self._before_clips if clips else self._before).get(name, name)

    @cached_property
    def stored(self) -> frozenset[str]:
        """The constants, and the values that are made of them by dequantizing and moving alone."""
        found = set(self.constants)
        for node in self.nodes:
            if (moves(node) or node.op_type == "DequantizeLinear") and all(n in found for n in node.input if n):
                found |= set(node.output)
        return frozenset(found)

    @cached_property
    def _before(self) -> dict[str, str]:
        return self._traced(())

    @cached_property
    def _before_clips(self) -> dict[str, str]:
        return self._traced(CLIPS)

    def _traced(self, kinds: tuple[str, ...]) -> dict[str, str]:
        """{value: its origin}, in the file's order, so that no chain is walked twice."""
        found: dict[str, str] = {}
        for node in self.nodes:
            if moves(node) or node.op_type in QUANTIZERS or node.op_type in kinds:
                for name in node.output:
                    found[name] = found.get(node.input[0], node.input[0])
        return found


def of(model: onnx.ModelProto) -> Graph:
    from onnx import numpy_helper

    nodes = tuple(model.graph.node)
    readers: dict[str, list[onnx.NodeProto | None]] = {o.name: [None] for o in model.graph.output}
    for node in nodes:
        for name in filter(None, node.input):  # an operand that is left out has an empty name
            readers.setdefault(name, []).append(node)
        for name in subgraphs.read(node):
            readers.setdefault(name, []).append(None)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    return Graph(model, nodes, constants, {o: n for n in nodes for o in n.output if o}, readers)


def moves(node: onnx.NodeProto) -> bool:
    """Whether a node only moves the values of its first operand. A Resize does if it takes the nearest value, a MaxPool
    if it doesn't give the places too: with these onnxruntime pools in floats; a LeakyRelu of slope 1, which stands
    behind float layers among integer ones."""
    if node.op_type == "Resize":
        return attribute(node, "mode", b"nearest") == b"nearest"
    if node.op_type == "LeakyRelu":
        return attribute(node, "alpha", 0.01) == 1
    return node.op_type in MOVES and (node.op_type != "MaxPool" or len(node.output) == 1)


def rectifies(node: onnx.NodeProto) -> bool:
    """Whether a node is a Relu in the form of a LeakyRelu of slope 0, as int8 files of edgekd have it."""
    return node.op_type == "LeakyRelu" and attribute(node, "alpha", 0.01) == 0


def may_be(kind: str, node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a node of an int8 file may be a float file's operator of this kind: a sum with a stored number in
    integers may be a hard sigmoid."""
    if node.op_type == kind or kind != "HardSigmoid" or node.op_type != "Add":
        return node.op_type == kind
    known = [graph.parameters(graph.makers.get(name)) for name in node.input]
    return any(p is not None and p.constant is not None for p in known)


def title(node: onnx.NodeProto) -> str:
    """`Conv(v29)`: how a node is called where its file gives it no name of its own."""
    return f"{node.op_type}({made(node)})"


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def outputs(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    """Output channels of a Conv, ConvTranspose or Gemm by its weight's shape."""
    if node.op_type == "ConvTranspose":
        return shape[1] * attribute(node, "group", 1)
    return shape[1] if node.op_type == "Gemm" and not attribute(node, "transB", 0) else shape[0]


def exact_bias(node: onnx.NodeProto, shape: Sequence[int], bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(int32, powers of two) of the bias (None: zeros) of a layer that stays float, with a weight of this shape: the
    same numbers. With a stored float bias, or none, onnxruntime would round the layer's weight to int8 with one scale
    (core/optimizer/qdq_transformer/weight_bias_quantization.cc)."""
    return exactly(np.zeros(outputs(node, shape), np.float32) if bias is None else bias.ravel())


def depthwise(node: onnx.NodeProto, weight: np.ndarray) -> bool:
    """Whether a node convolves each input channel with one output channel: onnxruntime has a kernel of its own for it,
    which is exact on every CPU."""
    return node.op_type == "Conv" and weight.shape[1] == 1 and weight.shape[0] == attribute(node, "group", 1)


def made(node: onnx.NodeProto) -> str:
    """The first output of a node that it gives a name: others are left out."""
    return next(filter(None, node.output), "")
