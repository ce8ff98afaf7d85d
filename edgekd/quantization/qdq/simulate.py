"""What an int8 file in QDQ form computes, in whole numbers and numpy: a reference to be read, beside the torch
evaluation (`exact`) and onnxruntime. It knows the file only, nothing of the model that it was made from. The arithmetic
is in `kernels`; float operators (LayerNorm, GELU) are those of the ONNX reference implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import subgraphs
from edgekd.onnx_files.known import PLAIN
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph, attribute, attributes
from edgekd.quantization.qdq.integers import F, Quantized, Target, onto, wrapped
from edgekd.quantization.qdq.kernels import KERNELS, products

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class File:
    """A file with its groups: `kernels` {stored value: the operator that an integer kernel computes it from}, `inside`
    the values that such a kernel has no array of."""

    graph: Graph
    kernels: dict[str, onnx.NodeProto]
    inside: set[str]


def read(model: onnx.ModelProto) -> File:
    """Finds the groups as onnxruntime does (qdq_selectors.cc): an operator that has a kernel, all operands behind
    DequantizeLinear, read by one QuantizeLinear alone; Relus and Clips may stand between if rounding clips as they
    do."""
    graph, kernels, inside = graphs.of(model), {}, set()
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] not in graph.makers:
            continue
        between = _between(node, graph)
        maker = graph.makers[between[-1]]
        moved = _moves(maker)
        if not moved and maker.op_type not in KERNELS or moved and len(between) > 1:
            continue
        operands = (graph.makers.get(n) for n in maker.input[: 1 if moved else None])
        alone = all(graph.reader(n) is not None for n in between)
        if alone and all(m is not None and m.op_type == "DequantizeLinear" for m in operands):
            kernels[node.output[0]] = maker
            inside.update(between)
    return File(graph, kernels, inside)


def _between(quantize: onnx.NodeProto, graph: Graph) -> list[str]:
    """What is quantized, and the values before it that only clips which this makes superfluous stand behind."""
    found, parameters = [quantize.input[0]], graph.parameters(quantize)
    while parameters is not None:
        node = graph.makers[found[-1]]
        clip = graph.clip(node)
        if clip is None or node.input[0] not in graph.makers or not graph.clips_itself(clip, parameters):
            break
        found.append(node.input[0])
    return found


def _moves(node: onnx.NodeProto) -> bool:
    """Whether an operator moves the stored integers, as the reference implementation does: of a Resize by odd factors
    that takes other neighbours than onnxruntime. (A MaxPool has a kernel here.)"""
    return node.op_type not in (*KERNELS, "Resize") and graphs.moves(node)


def run(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """{name: array} of the values in a file: stored integers as uint8 or int8, all others float32; values inside a
    group have no array. `given`: values that later nodes read instead of the computed ones, so that differences don't
    add up."""
    return compute(read(model), feed, given)


def compute(
    file: File,
    feed: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray] | None = None,
    wanted: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """`run` of a file that was read; with `wanted` of these values alone: only what they need is computed, and held no
    longer than it is read."""
    given = given or {}
    values, quantized, found = {**feed, **file.graph.constants, **given}, {}, {}
    needed, ends = (None, {}) if wanted is None else (_needed(file, given, wanted), _ends(file.graph))
    for node in file.graph.nodes:
        if file.inside.issuperset(node.output) or needed is not None and needed.isdisjoint(node.output):
            continue
        if node.op_type == "QuantizeLinear":
            made = [_stored(node, file, values, quantized)]
        elif node.op_type == "DequantizeLinear":
            quantized[node.output[0]] = _dequantized(node, values)
            made = [quantized[node.output[0]].real()]
        elif node.op_type in ("MatMul", "Gemm") and quantized.keys() >= set(node.input):
            # MatMulIntegerToFloat, QGemm without parameters of its result
            sums, scale = products(attributes(node), [quantized[name] for name in node.input])
            made = [wrapped(sums).astype(F) * scale]
        elif node.domain not in PLAIN and given.keys() >= set(filter(None, node.output)):
            made = [given[n] for n in node.output if n]  # onnxruntime's own, which the reference doesn't have
        else:
            made = _float(node, file.graph.model, values)
        for name, array in zip(filter(None, node.output), made, strict=True):
            if wanted is None or name in wanted:
                found[name] = array
            values[name] = given.get(name, array)
        for name in ends.get(graphs.made(node), ()):
            values.pop(name, None)
            quantized.pop(name, None)
    return found


def _needed(file: File, given: Mapping[str, np.ndarray], wanted: Collection[str]) -> set[str]:
    """The values that have to be computed for those that are `wanted`."""
    needed = set(wanted)
    for node in reversed(file.graph.nodes):
        if not needed.isdisjoint(node.output):
            maker = file.kernels.get(graphs.made(node))
            read = (*node.input, *subgraphs.read(node)) if maker is None else (*node.input[1:], *maker.input)
            needed.update(name for name in read if name and name not in given)
    return needed


def _ends(graph: Graph) -> dict[str, list[str]]:
    """{a node's first output: the values that no later node reads}. What an If or a Loop reads inside counts as read at
    the end."""
    last = {
        name: graphs.made(node)
        for node in graph.nodes
        for name in (*node.output, *node.input)
        if name and None not in graph.readers.get(name, ())
    }
    found: dict[str, list[str]] = {}
    for name, at in last.items():
        found.setdefault(at, []).append(name)
    return found


def _dequantized(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> Quantized:
    q, scale = (values[name] for name in node.input[:2])
    zero = values[node.input[2]] if len(node.input) > 2 else np.zeros((), q.dtype)
    return Quantized(q, scale, zero, attribute(node, "axis", 1))


def _stored(
    node: onnx.NodeProto, file: File, values: Mapping[str, np.ndarray], quantized: Mapping[str, Quantized]
) -> np.ndarray:
    """What a QuantizeLinear stores."""
    scale, zero = (values[name] for name in node.input[1:3])
    target, maker = Target(F(scale.item()), int(zero.item()), zero.dtype), file.kernels.get(node.output[0])
    if maker is None:
        return target.quantize(values[node.input[0]])
    if _moves(maker):
        x = quantized[maker.input[0]]
        moved = _float(maker, file.graph.model, {**values, maker.input[0]: x.q})
        return onto(Quantized(moved[[n for n in maker.output if n].index(node.input[0])], x.scale, x.zero), target)
    return KERNELS[maker.op_type](attributes(maker), [quantized[name] for name in maker.input], target)


def _float(node: onnx.NodeProto, model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A node by the ONNX reference implementation: the outputs that it gives a name."""
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    # what its subgraphs read of the graph around them is given to it too
    read = dict.fromkeys([*node.input, *(n for n in subgraphs.read(node) if n in values)])
    kinds = [onnx.ValueInfoProto(name=n) for n in read if n]
    outputs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
    one = helper.make_model(
        helper.make_graph([node], "one", kinds, outputs), opset_imports=model.opset_import, ir_version=model.ir_version
    )
    with np.errstate(over="ignore", invalid="ignore"):  # its sigmoid computes both branches everywhere
        return ReferenceEvaluator(one).run(None, {k.name: values[k.name] for k in kinds})
