"""Which values of a graph are quantized: one set of rules for captured torch graphs (`torch_graph.sites`) and for float
ONNX files (`onnx_graph.placement`), which tell them their operators.

What a layer reads is quantized; so is what an operator with an integer kernel makes, after a clip that alone reads it.
Values that are only moved, or cut at zero, have the quantization parameters of their source. Where a graph is not
trained, these differ (`trained` is false), since nothing can get used to coarse values:

- what float operators alone read is not quantized, unless a convolution makes it (the integer kernel of a product of
  matrices can give floats), and neither are the graph's outputs;
- sums, products of values, concatenations and pools are computed in integers only where all their operands are
  quantized anyway, so that decoders of boxes, RMS norms and residual streams between layer norms stay in float.

Three kinds of operators differ by what the adapters tell: transposed convolutions and means over other axes than those
of an image have no integer kernel, and are quantized in torch graphs alone; a clip whose limits are both above or both
below zero is left to its layer in torch graphs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from edgekd.quantization.parameters import Limits

CONVOLUTION = "convolution"  # its kernel reads integers and makes integers
PRODUCT = "product"  # its kernel reads integers and makes integers or floats
COMBINES = "combines"  # computes with several values of its operands, no weight
LOOKUP = "look-up"  # a function of one value, in integers where that is quantized
MOVES = "moves"  # its result holds values of its first operand and no others
FLOAT = "float"

# (rule, what torch calls such operators, what ONNX calls them)
KINDS = (
    (CONVOLUTION, "conv1d conv2d conv3d", "Conv"),
    (CONVOLUTION, "conv_transpose1d conv_transpose2d conv_transpose3d", ""),
    (PRODUCT, "linear", "Gemm"),
    (PRODUCT, "matmul mm bmm", "MatMul"),
    (COMBINES, "add", "Add"),
    (COMBINES, "mul", "Mul"),
    (COMBINES, "cat", "Concat"),
    (COMBINES, "avg_pool1d avg_pool2d", "AveragePool"),
    (COMBINES, "mean adaptive_avg_pool1d adaptive_avg_pool2d", "GlobalAveragePool"),
    (LOOKUP, "sigmoid", "Sigmoid"),
    (LOOKUP, "", "HardSigmoid LeakyRelu"),
    (MOVES, "flatten", "Flatten"),
    (MOVES, "view reshape _unsafe_view", "Reshape"),
    (MOVES, "permute transpose t", "Transpose"),
    (MOVES, "unsqueeze", "Unsqueeze"),
    (MOVES, "squeeze", "Squeeze"),
    (MOVES, "slice select", "Slice"),
    (MOVES, "chunk split split_with_sizes unbind getitem", "Split"),
    (MOVES, "expand", "Expand Tile"),
    (MOVES, "", "Gather"),
    (MOVES, "max_pool1d max_pool2d", "MaxPool"),
    (MOVES, "upsample_nearest2d", "Resize"),
    # dropout does nothing in a model that isn't trained
    (MOVES, "alias clone contiguous detach identity dropout dropout1d dropout2d feature_dropout", "Identity"),
)
TORCH = {name: rule for rule, names, _ in KINDS for name in names.split()}
ONNX = {name: rule for rule, _, names in KINDS for name in names.split()}


def torch_names(*onnx: str) -> frozenset[str]:
    """What torch calls the operators that ONNX calls so.

    >>> sorted(torch_names("Flatten", "MaxPool"))
    ['flatten', 'max_pool1d', 'max_pool2d']
    """
    return frozenset(name for _, torch, names in KINDS if set(names.split()) & set(onnx) for name in torch.split())


@dataclass(frozen=True)
class Operator:
    """An operator as the rules see it, by the names of values.

    outputs   what it makes
    rule      of its kind; FLOAT where no integer kernel takes its operands
    first     its first operand, "" without one
    operands  those that its kernel reads as integers
    result    its first output, or what a clip that alone reads that makes of it
    clip      (lowest, highest) number that it lets through, if it does nothing else
    share     whether what it makes are shares of 1, by a softmax"""

    outputs: tuple[str, ...]
    rule: str = FLOAT
    first: str = ""
    operands: tuple[str, ...] = ()
    result: str = ""
    clip: tuple[float, float] | None = None
    share: bool = False


@dataclass(frozen=True)
class Flow:
    """A graph as the rules see it: its `inputs`, `operators` in order and `outputs`; `floats`: its values that are
    tensors of floats, `stored` those of them that are parameters."""

    inputs: tuple[str, ...]
    operators: tuple[Operator, ...]
    outputs: tuple[str, ...]
    floats: AbstractSet[str]
    stored: AbstractSet[str] = field(default_factory=frozenset)


def place(flow: Flow, trained: bool) -> tuple[dict[str, Limits], dict[str, str]]:
    """({value that is quantized: Limits}, in order; {value that was moved or cut at zero: the quantized one whose
    parameters it has})."""
    source = _sources(flow)
    outputs = {source.get(n, n) for n in flow.outputs}
    wanted = _all(flow.operators, source) | outputs if trained else _needed(flow.operators, source)
    wanted = (wanted & flow.floats) - flow.stored
    made = {name: op for op in flow.operators for name in op.outputs}
    order = list(dict.fromkeys([*flow.inputs, *made]))
    _tie_positive(order, made, source, wanted)
    outputs = {source.get(n, n) for n in outputs}
    values = {n: _limits(made.get(n), trained and n in outputs) for n in order if n in wanted}
    return values, {n: s for n, s in source.items() if s in wanted and n in flow.floats}


def _sources(flow: Flow) -> dict[str, str]:
    """{moved value: the value that it was}"""
    source: dict[str, str] = {}
    for op in flow.operators:
        if op.rule == MOVES and (op.first in flow.floats or op.first in source):
            source |= dict.fromkeys(op.outputs, source.get(op.first, op.first))
    return source


def _all(operators: Iterable[Operator], source: dict[str, str]) -> set[str]:
    """What operators with integer kernels read and make."""
    found: set[str] = set()
    for op in operators:
        if op.rule in (CONVOLUTION, PRODUCT, COMBINES):
            found |= {op.result, *(source.get(n, n) for n in op.operands)}
    return found


def _needed(operators: Sequence[Operator], source: dict[str, str]) -> set[str]:
    """What layers read, what convolutions make, and what comes of operators all of whose operands can be had as
    integers."""
    wanted: set[str] = set()
    possible: set[str] = set()  # what a kernel makes as integers if anybody wants them
    for op in operators:
        if op.rule in (CONVOLUTION, PRODUCT):
            wanted |= {source.get(n, n) for n in op.operands}
            (wanted if op.rule == CONVOLUTION else possible).add(op.result)
    rest = [op for op in operators if op.rule in (COMBINES, LOOKUP)]
    before = -1
    while before != len(wanted):  # an operator that becomes one of integers may make others so
        before = len(wanted)
        for op in rest:
            operands = {source.get(n, n) for n in op.operands}
            if not operands <= wanted | possible:
                continue
            if op.rule == LOOKUP:
                possible.add(op.result)
            elif operands & wanted:
                wanted |= operands | {op.result}
    return wanted


def _tie_positive(order: Iterable[str], made: dict[str, Operator], source: dict[str, str], wanted: set[str]) -> None:
    """The positive part of a quantized value has that one's parameters: onnxruntime makes one of two quantizations with
    nothing but a Relu between them."""
    for name in order:
        op = made.get(name)
        origin = source.get(op.first, op.first) if op is not None else ""
        if name in wanted and op is not None and op.clip == (0.0, math.inf) and origin in wanted:
            wanted.discard(name)
            source[name] = origin
        elif name in source:
            source[name] = source.get(source[name], source[name])


def _limits(op: Operator | None, output: bool) -> Limits:
    if op is None:
        return Limits(output=output)
    return Limits(*(op.clip or (-math.inf, math.inf)), op.share, output)
