"""Biases that make up for what rounding a weight changes on average: Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", section 4.2, with the mean of the inputs measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantization.onnx_graph.placement import Layer, Placement
from edgekd.quantization.qdq.graph import Graph, attribute
from edgekd.quantization.qdq.values import session
from edgekd.records import Site
from edgekd.samples.rows import Samples, fitting

if TYPE_CHECKING:
    import onnx

ROWS = 16  # samples of a run


def corrected(
    graph: Graph, placement: Placement, sites: Mapping[str, Site], samples: Mapping[str, np.ndarray] | Samples
) -> dict[str, np.ndarray]:
    """{bias: its corrected numbers} of the layers in int8, by samples. A bias that several read, and
    layers without one, are left alone."""
    layers = [
        k
        for k in placement.layers
        if not k.reason and k.weight is not None and k.bias and len(graph.readers[k.bias]) == 1
    ]
    reads = {k.name: graph.makers[k.name].input[0] for k in layers}
    means = _means(
        graph.model, {reads[k.name]: 1 if k.kind == "Conv" else -1 for k in layers}, fitting(samples, graph.model)
    )
    return {k.bias: graph.constants[k.bias] - change(k, graph, sites[k.weight], means[reads[k.name]]) for k in layers}


def change(known: Layer, graph: Graph, site: Site, mean: np.ndarray) -> np.ndarray:
    """[outputs] what the rounding of a layer's weight adds to its outputs on average, where inputs have the `mean`."""
    weight = graph.constants[known.weight]
    scale = np.array(site.scale, np.float32)
    shaped = scale if site.axis is None else scale.reshape([-1 if d == site.axis else 1 for d in range(weight.ndim)])
    apart = (np.clip(np.round(weight / shaped), site.low, site.high) * shaped - weight).astype(np.float64)
    if known.kind != "Conv":
        return (apart @ mean if known.axis == 0 else mean @ apart).astype(np.float32)
    groups = attribute(graph.makers[known.name], "group", 1)
    sums = apart.reshape(groups, len(apart) // groups, apart.shape[1], -1).sum(-1)
    return np.einsum("goc,gc->go", sums, mean.reshape(groups, -1)).ravel().astype(np.float32)


def _means(
    model: onnx.ModelProto, axes: Mapping[str, int], samples: Mapping[str, np.ndarray] | Samples
) -> dict[str, np.ndarray]:
    """{value: [channels] mean over samples and places}"""
    inputs = {i.name for i in model.graph.input}
    infer, total, count = session(model, [n for n in axes if n not in inputs]), dict.fromkeys(axes, 0.0), Counter[str]()
    for feed in samples.batches(ROWS):
        values = {**feed, **infer(dict(feed))}
        for name, axis in axes.items():
            rest = tuple(d for d in range(values[name].ndim) if d != axis % values[name].ndim)
            size = math.prod(values[name].shape[d] for d in rest)
            total[name] = total[name] + size * values[name].mean(rest, dtype=np.float64)
            count[name] += size
    return {name: np.asarray(sum_ / count[name]) for name, sum_ in total.items()}
