"""The work of a network by operator: kinds and shapes, from an ONNX file. Independent of time and device.

Shapes are those of one inference. Multiply-accumulates are those of `probes.static.macs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from edgekd.errors import Problem, UsageError
from edgekd.onnx_files import fused
from edgekd.probes import _macs

if TYPE_CHECKING:
    import onnx

Kind = Literal["conv", "product", "pool", "elementwise", "move"]

# no data is touched
FREE = frozenset({"Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Dropout", "Cast"})
FREE |= frozenset({"QuantizeLinear", "DequantizeLinear"})  # a runtime folds them into the kernels beside them
POOLS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "QLinearGlobalAveragePool"}
)
MOVES = frozenset(
    {
        "Concat",
        "Slice",
        "Split",
        "Transpose",
        "Pad",
        "Resize",
        "Upsample",
        "Gather",
        "Expand",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
CONVOLUTIONS = _macs.CONVOLUTIONS | {"ConvTranspose"}
# step after step, or several products at once: nothing that was timed is like them
UNLIKE = _macs.RECURRENT | _macs.ATTENTION | _macs.SUBGRAPHS | {"Einsum"}
# done in the kernel that makes their input
FUSED = frozenset({"Relu", "Clip", "BatchNormalization", "LeakyRelu", "PRelu"})


@dataclass(frozen=True)
class Operator:
    """One operator at batch 1.

    conv         `ci` -> `co` channels, a kernel of `kernel` (rows, columns), `groups`, output of `height` x `width`
                 places; `stride` of the rows.
    product      a matrix product: `height` rows, `ci` terms per sum, `co` columns; `stored`: the right side is a
                 weight.
    pool         `co` channels out, window `kernel`.
    elementwise  reads `ci` channels of height x width, writes `co`: sums, products, activations that are not fused.
    move         the same, and computes nothing: concat, slice, shuffle, resize.

    `int8`: whether the file has it in integers; no part of what it does.
    """

    kind: Kind
    ci: int
    co: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    height: int = 1
    width: int = 1
    stored: bool = True
    int8: bool = field(default=False, compare=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates; 0 for operators other than convolutions and products."""
        if self.kind not in ("conv", "product"):
            return 0
        return self.height * self.width * self.co * (self.ci // self.groups) * math.prod(self.kernel)

    @property
    def weights(self) -> int:
        """Elements of the weight, without bias."""
        return (
            self.co * (self.ci // self.groups) * math.prod(self.kernel)
            if self.kind in ("conv", "product") and self.stored
            else 0
        )

    @property
    def read(self) -> int:
        """Elements of activations that it reads."""
        places = self.height * self.width
        if self.kind == "product":
            return places * self.ci + (0 if self.stored else self.ci * self.co)
        return places * self.stride**2 * self.ci if self.kind in ("conv", "pool") else places * self.ci

    @property
    def written(self) -> int:
        """Elements of activations that it writes."""
        return self.height * self.width * self.co


def macs(work: Sequence[Operator]) -> int:
    return sum(operator.macs for operator in work)


def work_of(model: onnx.ModelProto, sample: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Operator, ...]:
    """The operators of an ONNX model (from `probes.static.read`), in its order. Raises static.Open where a shape can't
    be found, or an operator is none of which the time of a kind says something."""
    found = _macs.known(model, sample)
    products = _macs.counted(model, found)
    other = (*products.left_out, *(n.op_type for n in model.graph.node if n.op_type in UNLIKE))
    why = f"it has {other[0]}, whose time is not predicted" if other else _macs.unshaped(model, found)
    if why:
        raise _macs.Open(Problem("", why))
    shapes, weights, integers = found.shapes, _weights(model), _integers(model)
    made = (
        (node, _operator(node, shapes, weights, products.each.get(position, 0)))
        for position, node in enumerate(model.graph.node)
    )
    return tuple(
        replace(operator, int8=_in_integers(node, weights, integers)) for node, operator in made if operator is not None
    )


def _weights(model: onnx.ModelProto) -> frozenset[str]:
    """Values that don't depend on the input: constants, and their quantized or reshaped forms."""
    from edgekd.probes import static

    fixed = set(static.constants(model))
    for node in model.graph.node:
        if node.op_type in FREE | {"Transpose"} and node.input and all(i in fixed for i in node.input if i):
            fixed.update(node.output)
    return frozenset(fixed)


def _integers(model: onnx.ModelProto) -> frozenset[str]:
    """Float values that represent integers: outputs of DequantizeLinear, and their reshaped forms."""
    told: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or (
            node.op_type in FREE | {"Transpose"} and node.input and node.input[0] in told
        ):
            told.update(node.output)
    return frozenset(told)


def _in_integers(node: onnx.NodeProto, weights: frozenset[str], integers: frozenset[str]) -> bool:
    """Whether a runtime computes a node in integers: a layer if both operands represent integers, another operator if
    its activations do."""
    kind = node.op_type
    if kind.startswith(("QLinear", "QGemm")) or "Integer" in kind or kind == "DynamicQuantizeMatMul":
        return True
    product = kind in fused.PRODUCTS
    operands = (
        [node.input[i] for i in fused.PRODUCTS[kind]] if product else [i for i in node.input if i and i not in weights]
    )
    return bool(operands) and all(i in integers for i in operands)


def _operator(
    node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], weights: frozenset[str], macs: int
) -> Operator | None:
    """`macs`: those of a product."""
    kind = node.op_type
    if kind in FREE | FUSED or node.output[0] in weights:
        return None
    out = shapes.get(node.output[0])
    if kind in fused.PRODUCTS and out is not None and kind not in CONVOLUTIONS:
        right, places = node.input[fused.PRODUCTS[kind][1]], math.prod(out)
        if not macs or not places:
            return None
        columns = (out or (1,))[-1]
        return Operator("product", macs // places, columns, height=places // columns, stored=right in weights)
    if not out or any(0 in shapes.get(name, ()) for name in (node.output[0], *node.input[:1])):
        return None  # nothing comes out, or nothing goes in
    if kind in POOLS and node.input[0] not in shapes:
        return None  # the places that it reads are not known
    co, height, width = _places(out)
    if kind in CONVOLUTIONS:
        return _convolution(node, shapes)
    read = [math.prod(shapes[i]) for i in node.input if i in shapes and i not in weights]
    channels = max(1, round(sum(read) / (height * width))) if read else co
    if kind in POOLS:
        before = _places(shapes.get(node.input[0], out))
        window = next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape" and a.ints), before[1:])
        return Operator(
            "pool", before[0], co, (window[0], window[-1]), max(1, before[1] // height), before[0], height, width
        )
    return Operator("move" if kind in MOVES else "elementwise", channels, co, height=height, width=width)


def _convolution(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> Operator:
    kind = node.op_type
    kernel = shapes[node.input[fused.PRODUCTS[kind][1]]][2:]
    window = (kernel[0], math.prod(kernel[1:]))
    (ci, before_h, before_w), (co, height, width) = _image(shapes[node.input[0]]), _image(shapes[node.output[0]])
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    stride = next((a.ints[0] for a in node.attribute if a.name == "strides" and a.ints), 1)
    if not 0 < groups <= ci:
        raise UsageError(
            Problem(
                f"{kind} {node.name or node.output[0]}", f"has {groups} groups, which don't divide its {ci} channels"
            )
        )
    if kind == "ConvTranspose":  # each input goes to every tap: the work of a convolution at the places of its input
        return Operator("conv", ci, co, window, 1, groups, before_h, before_w)
    return Operator("conv", ci, co, window, stride, groups, height, width)


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, rows, columns) of what a convolution reads or writes, along however many axes."""
    return shape[1], shape[0] * shape[2], math.prod(shape[3:])


def _places(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, rows, columns) of a value; sequences [n, tokens, channels] have tokens as rows. The rows of a batch
    follow each other."""
    if len(shape) >= 4:
        return shape[1], shape[0] * shape[2], math.prod(shape[3:])
    if len(shape) == 3:
        return shape[2], shape[0] * shape[1], 1
    return math.prod(shape), 1, 1
