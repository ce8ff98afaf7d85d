"""Channels of a value made equally wide, for whom one scale for all of them is coarse: the factor of a channel goes
from what makes the value into the weights that read it, so that the network computes the same.

Between two convolutions as in Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.1, but by the ranges of the value, since weights have a scale per output channel; behind a layer
norm as in Xiao et al. 2023, "SmoothQuant". Through a hard swish no factor goes by itself: its hard sigmoid reads the
value times the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import external
from edgekd.quantization.onnx_graph import gates
from edgekd.quantization.onnx_graph.draft import copied
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph, attribute, depthwise
from edgekd.quantization.qdq.values import session
from edgekd.samples.rows import Samples, fitting

if TYPE_CHECKING:
    import onnx

ROWS = 16  # samples of a run
FURTHEST = 100.0  # how much wider a channel may be made


@dataclass(frozen=True)
class Step:
    """A `value` whose channels (along `axis`) are divided: the stored tensors that make it, each with its axis of
    channels, and the weights that read it, as (name, axis, whether each is read by one channel alone). `gate`: the
    hard sigmoid that has to get it undivided, and `low`, below which its product is 0."""

    value: str
    axis: int
    makers: tuple[tuple[str, int], ...]
    readers: tuple[tuple[str, int, bool], ...]
    gate: str = ""
    low: float = -math.inf


def equalized(model: onnx.ModelProto, samples: Mapping[str, np.ndarray] | Samples) -> onnx.ModelProto:
    """A copy of a file in normal form that computes the same, by samples; the file where nothing can
    be made equal."""
    from onnx import numpy_helper

    graph = graphs.of(model)
    found = list(steps(graph))
    if not found:
        return model
    widths = _widths(model, found, fitting(samples, model))
    tensors, gated = {n: a.copy() for n, a in graph.constants.items()}, {}
    for step in found:
        factors = _factors(widths[step.value], step, tensors)
        for name, axis in step.makers:
            tensors[name] = tensors[name] / _along(factors, axis, tensors[name].ndim)
        for name, axis, _ in step.readers:
            tensors[name] = tensors[name] * _along(factors, axis, tensors[name].ndim)
        if step.gate:
            gated[step.gate] = factors
    made = external.copied(model)
    for tensor in made.graph.initializer:
        if tensor.data_type == 1:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name].astype(np.float32), tensor.name))
    if gated:
        _widen(made, graph, gated)
    return made


def _widen(made: onnx.ModelProto, graph: Graph, gated: Mapping[str, np.ndarray]) -> None:
    """Multiplies what hard sigmoids read by the factors that it was divided by."""
    from onnx import helper, numpy_helper

    taken, nodes = set(graph.makers) | set(graph.readers), []

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        return name

    for node in graph.nodes:
        if node.output[0] in gated:
            value = node.input[0]
            widths, whole = fresh(f"{value}.widths"), fresh(f"{value}.whole")
            factors = _along(gated[node.output[0]], 1, 4)  # of images
            made.graph.initializer.append(numpy_helper.from_array(factors, widths))
            nodes.append(helper.make_node("Mul", [value, widths], [whole]))
            node = copied(node)
            node.input[0] = whole
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)


def steps(graph: Graph) -> Iterable[Step]:
    """Values between two convolutions with at most a Relu or a hard swish, and those of layer norms that products alone
    read. Stored tensors that are read twice are left alone."""
    for node in graph.nodes:
        if node.op_type == "Conv":
            step = _between(node, graph) or _gated(node, graph)
        elif node.op_type == "LayerNormalization":
            step = _behind(node, graph)
        else:
            continue
        stored = () if step is None else (*(m[0] for m in step.makers), *(r[0] for r in step.readers))
        if step is not None and all(n in graph.constants and len(graph.readers[n]) == 1 for n in stored):
            yield step


def _between(node: onnx.NodeProto, graph: Graph) -> Step | None:
    value, reader = node.output[0], graph.reader(node.output[0])
    if reader is not None and reader.op_type == "Relu":
        value, reader = reader.output[0], graph.reader(reader.output[0])
    weight = _weight(reader, graph)
    return None if weight is None else Step(value, 1, tuple((n, 0) for n in node.input[1:] if n), (weight,))


def _gated(node: onnx.NodeProto, graph: Graph) -> Step | None:
    gate = gates.of(node.output[0], graph)
    weight = None if gate is None else _weight(graph.reader(gate.product.output[0]), graph)
    images = weight is not None and graph.constants[weight[0]].ndim == 4
    if gate is None or weight is None or not images or gate.hard.input[0] != node.output[0]:
        return None
    makers = tuple((n, 0) for n in node.input[1:] if n)
    return Step(node.output[0], 1, makers, (weight,), gate.hard.output[0], gates.ends(gate.hard)[0])


def _weight(reader: onnx.NodeProto | None, graph: Graph) -> tuple[str, int, bool] | None:
    """The weight of a convolution that reads a value, as `Step.readers` has it."""
    if reader is None or reader.op_type != "Conv" or reader.input[1] not in graph.constants:
        return None
    alone = depthwise(reader, graph.constants[reader.input[1]])
    if not alone and attribute(reader, "group", 1) != 1:
        return None
    return reader.input[1], 0 if alone else 1, alone


def _behind(node: onnx.NodeProto, graph: Graph) -> Step | None:
    readers, value = graph.readers.get(node.output[0], []), node.output[0]
    if (
        len(readers) == 1
        and readers[0] is not None
        and readers[0].op_type == "Reshape"
        and _rows(readers[0], node, graph)
    ):
        readers = graph.readers.get(readers[0].output[0], [])
    if attribute(node, "axis", -1) != -1 or not readers or len(node.input) < 2:
        return None
    found = []
    for reader in readers:
        if reader is None or reader.op_type not in ("Gemm", "MatMul") or reader.input[1] not in graph.constants:
            return None
        if graph.constants[reader.input[1]].ndim != 2 or attribute(reader, "transA", 0):
            return None
        found.append((reader.input[1], 1 if attribute(reader, "transB", 0) else 0, False))
    return Step(value, -1, tuple((n, 0) for n in node.input[1:] if n), tuple(found))


def _rows(node: onnx.NodeProto, norm: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a Reshape only gathers the rows of what a norm makes."""
    shape, gain = graph.constants.get(node.input[1]), graph.constants.get(norm.input[1])
    return shape is not None and gain is not None and shape.size > 0 and int(shape.ravel()[-1]) == gain.size


def _widths(
    model: onnx.ModelProto, found: list[Step], samples: Mapping[str, np.ndarray] | Samples
) -> dict[str, np.ndarray]:
    """{value: [channels] largest magnitude}"""
    axes, low = {step.value: step.axis for step in found}, {step.value: step.low for step in found}
    infer, widths = session(model, list(axes)), {}
    for feed in samples.batches(ROWS):
        for name, value in infer(dict(feed)).items():
            if name in axes:
                rest = tuple(d for d in range(value.ndim) if d != axes[name] % value.ndim)
                widths[name] = np.maximum(np.abs(np.maximum(value, low[name])).max(rest), widths.get(name, 0))
    return widths


def _factors(width: np.ndarray, step: Step, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """What each channel is divided by: all of its width where the weight that reads it has a scale for it, else half of
    it, in logarithms, weighed against the weights."""
    share = width.astype(np.float64) / max(float(width.max()), 1e-30)
    if not all(alone for *_, alone in step.readers):
        rows = [np.abs(np.moveaxis(tensors[n], axis, 0)).reshape(len(width), -1).max(1) for n, axis, _ in step.readers]
        weight = np.max(rows, 0).astype(np.float64)
        share = np.sqrt(share / np.maximum(weight / max(float(weight.max()), 1e-30), 1 / FURTHEST))
        share = share / max(float(share.max()), 1e-30)
    powers = np.round(np.log2(np.clip(share, 1 / FURTHEST, 1.0)))  # exact in float32
    return np.exp2(np.where(width > 0, powers, 0.0)).astype(np.float32)


def _along(factors: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return factors.reshape([-1 if d == axis else 1 for d in range(rank)])
