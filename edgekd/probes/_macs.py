"""Multiply-accumulates of an ONNX model's operators, at the shapes of one inference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError
from edgekd.onnx_files import fused, loops, shapes
from edgekd.onnx_files.fused import attribute
from edgekd.onnx_files.known import PLAIN, Known, Shape

if TYPE_CHECKING:
    import onnx

CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv", "FusedConv"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})  # counted as the matrix products of their steps
ATTENTION = frozenset({"Attention", "QAttention", "MultiHeadAttention"})
SUBGRAPHS = frozenset({"If", "Loop", "Scan"})
UNCOUNTED = frozenset({"DeformConv", "GroupQueryAttention", "DFT", "STFT"})
HINT = "give samples with --data FILE.npz, or fix the dimensions other than the batch when exporting"


class Open(UsageError):
    """Raised where a shape that a count needs is not known in the file."""


@dataclass(frozen=True)
class Counts:
    """`each` {position of a node: its multiply-accumulates} of one inference; `left_out`: operators with products that
    are not counted; `rows`: samples of an inference that the file fixes, 1 where they are open."""

    each: dict[int, int]
    left_out: tuple[str, ...] = ()
    rows: int = 1

    @property
    def total(self) -> int:
        return sum(self.each.values())


def batch(rows: int, figure: int) -> str:
    """What a figure of one inference of so many samples is per sample; "" where that is the same."""
    return f"of a batch of {rows}: {round(figure / rows):,} per sample" if rows > 1 else ""


def known(model: onnx.ModelProto, sample: Mapping[str, Shape] | None = None) -> Known:
    """What is known of a model's values at batch 1, or at the batch that it fixes. Raises UsageError where the file
    contradicts itself."""
    found = shapes.infer(model, shapes.at(model, sample))
    if found.problem:
        problem = shapes.infer(model, shapes.inputs(model)).problem  # a batch of 1 may not be what it is made for
        if problem:
            raise UsageError(Problem("", f"the shapes in the file contradict each other: {problem}"))
    for name, shape in shapes.impossible(found):
        raise UsageError(Problem(name, f"has the shape {list(shape)[:8]}, which fits in no memory"))
    return found


def once(graph: onnx.GraphProto) -> set[str]:
    """Values that are computed from constants alone, such as dequantized weights: done once, at loading."""
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        # a subgraph may read what is no input of its node
        alone = bool(node.input) and all(name in fixed for name in node.input if name) and node.op_type not in SUBGRAPHS
        if node.op_type == "Constant" or alone:
            fixed.update(filter(None, node.output))
    return fixed


def unshaped(model: onnx.ModelProto, found: Known) -> str:
    """The first value that every inference computes or is given and whose shape is not known, in words; "" if all are:
    then memory can be planned, and time predicted."""
    fixed = once(model.graph)
    names = (*(i.name for i in model.graph.input), *(n for node in model.graph.node for n in node.output if n))
    value = next((n for n in names if n not in fixed and found.shape(n) is None), "")
    return f"the shape of `{value}` can't be found" if value else ""


def counts(model: onnx.ModelProto, sample: Mapping[str, Shape] | None = None) -> Counts:
    """The products of one inference. Raises Open where a shape is not known, UsageError where the file contradicts
    itself."""
    return counted(model, known(model, sample))


def counted(model: onnx.ModelProto, found: Known) -> Counts:
    """`counts` of what is known."""
    left_out = set[str]()
    each = _graph(model.graph, found, left_out)
    return Counts(each, tuple(sorted(left_out)), rows(model, found))


def node_macs(model: onnx.ModelProto, sample: Mapping[str, Shape] | None = None) -> dict[int, int]:
    """{position of a node: its multiply-accumulates}, of those that have some. Raises Open where a shape is not
    known."""
    return counts(model, sample).each


def rows(model: onnx.ModelProto, found: Known) -> int:
    """The first dimension that the file fixes for all inputs, where its outputs have it too."""
    given = [kind.tensor_type.shape.dim[:1] for kind in shapes.inputs(model).values()]
    sizes = {d.dim_value for dims in given for d in dims}
    made = {(found.shape(o.name) or (0,))[:1] for o in model.graph.output}
    return sizes.pop() if len(sizes) == 1 and min(sizes) > 1 and made == {tuple(sizes)} else 1


def _graph(graph: onnx.GraphProto, found: Known, left_out: set[str]) -> dict[int, int]:
    each = {}
    for position, node in enumerate(graph.node):
        if node.op_type in SUBGRAPHS:
            count = _subgraphs(position, node, found, left_out)
            if count:
                each[position] = count
        elif node.op_type in UNCOUNTED or _strange(node):
            left_out.add(node.op_type)
        elif node.op_type in ATTENTION or node.op_type == "Einsum":
            count = (_einsum if node.op_type == "Einsum" else _attention)(node, found)
            if count is None:
                left_out.add(node.op_type)
            else:
                each[position] = count
        elif node.op_type in fused.PRODUCTS or node.op_type in RECURRENT:
            each[position] = _product(node, found)
    return each


def _strange(node: onnx.NodeProto) -> bool:
    """Whether nothing is known of what an operator of another domain computes."""
    import onnx

    kinds = (fused.SAME, fused.STANDARD, fused.PRODUCTS, fused.RULES)
    plain = node.domain in PLAIN or onnx.defs.has(node.op_type)  # its own forms of standard operators
    return not plain and not any(node.op_type in kind for kind in kinds)


def _subgraphs(position: int, node: onnx.NodeProto, found: Known, left_out: set[str]) -> int:
    """Of an If, a Loop or a Scan, where it is the same for every input; else it is left out."""
    totals = []
    for a in node.attribute:
        inner = found.inside.get((position, a.name))
        if a.HasField("g") and inner is None and node.op_type != "If":
            left_out.add(node.op_type)  # deeper than anybody writes
        if a.HasField("g") and inner is not None:
            try:
                totals.append(sum(_graph(a.g, inner, left_out).values()))
            except Open:
                totals.append(-1)
    times = 1 if node.op_type == "If" else loops.times(position, node, found)
    if not any(totals):
        return 0
    if times is None or min(totals) < 0 or len(set(totals)) > 1:
        left_out.add(node.op_type)
        return 0
    return times * totals[0]


def _shape(node: onnx.NodeProto, name: str, found: Known) -> Shape:
    shape = found.shape(name)
    if shape is None:
        title = f"{node.op_type} {node.name or next(filter(None, node.output))}"
        reason = f" ({found.problem})" if found.problem else ""
        raise Open(Problem(title, f"the shape of `{name}` can't be found{reason}", HINT))
    return shape


def _product(node: onnx.NodeProto, found: Known) -> int:
    """Of a convolution, a matrix product, or a recurrent layer."""
    kind = node.op_type
    if kind in RECURRENT:
        given, w, state = (_shape(node, name, found) for name in node.input[:3])
        # each step multiplies by the weights of its input and of its state, in every direction
        return given[1 if attribute(node, "layout") else 0] * (math.prod(w) + math.prod(state)) * _batch(node, given)
    first, second = fused.PRODUCTS[kind]
    given, made = (_shape(node, name, found) for name in (node.input[first], node.output[0]))
    w = _shape(node, node.input[second], found)
    if not given or not w:
        raise UsageError(Problem(f"{kind} {node.name or node.output[0]}", "multiplies a scalar"))
    if kind in CONVOLUTIONS:
        return math.prod(made) * math.prod(w[1:])  # each output takes every tap of its group's input channels
    if kind == "ConvTranspose":
        return math.prod(given) * math.prod(w[1:])  # each input goes to every tap of its group's output channels
    columns = kind in ("Gemm", "FusedGemm", "QGemm", "FusedMatMul", "TransposeMatMul") and attribute(node, "transA")
    return math.prod(made) * given[-2 if columns else -1]


def _batch(node: onnx.NodeProto, given: Shape) -> int:
    """Sequences of a recurrent layer at once."""
    return given[0 if attribute(node, "layout") else 1]


def _attention(node: onnx.NodeProto, found: Known) -> int | None:
    """Scores and their products with the values, and the projection where an operator has its weights; None with keys
    and values of earlier steps, and of packed ones."""
    operands = [found.shape(n) if n else None for n in node.input]
    if node.op_type == "QAttention" or (node.op_type == "Attention" and node.domain not in PLAIN):
        x, w = _shape(node, node.input[0], found), _shape(node, node.input[1], found)
        sizes = attribute(node, "qkv_hidden_sizes", None) or [w[-1] // 3] * 3
        if any(node.input[4:5] if node.op_type == "Attention" else node.input[8:9]):
            return None
        return math.prod(x) * w[-1] + x[0] * x[1] * x[1] * (sizes[0] + sizes[2])
    past = node.input[6:8] if node.op_type == "MultiHeadAttention" else node.input[4:6]
    query, key, value = (*operands, None, None, None)[:3]
    if any(past) or query is None or key is None or value is None or len(query) not in (3, 4):
        return None
    tokens, heads = key[-2], attribute(node, "q_num_heads", 1) / max(1, attribute(node, "kv_num_heads", 1))
    widths = value[-1] * heads if len(value) == 3 else value[-1] * (query[1] if len(query) == 4 else value[1])
    steps = query[0] * query[-2]
    return math.prod(query) * tokens + round(steps * tokens * widths)


def _einsum(node: onnx.NodeProto, found: Known) -> int | None:
    """The product of the sizes of all indices, of two operands; 0 of one, which has no products."""
    equation = attribute(node, "equation", b"").decode().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(node.input) == 1:
        return 0
    operands = [_shape(node, name, found) for name in node.input]
    if len(terms) != 2 or any(len(t) != len(s) or not t.isalpha() for t, s in zip(terms, operands, strict=False)):
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())
