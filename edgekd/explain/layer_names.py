"""What the layers of an int8 file are called where it was made: in the table of `quantize`, in the captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.quantization.qdq.graph import CLIPS, QUANTIZERS, moves

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgekd.explain.inputs import FromRun
    from edgekd.quantization.qdq.graph import Graph


def labels(
    model: onnx.ModelProto, plain: onnx.ModelProto, feed: Mapping[str, np.ndarray], int8: onnx.ModelProto
) -> dict[str, tuple[str, ...]]:
    """{layer of a finding: (its label in the table of `quantize`,)}, matched by their order; of an operator without
    weights, or an input, the labels of the layers that read it. `plain`: `model` in normal form."""
    from edgekd.quantization.onnx_graph import convert
    from edgekd.quantization.onnx_graph.placement import layer
    from edgekd.quantization.qdq import graph as graphs

    graph, floats = graphs.of(plain), frozenset(convert.everything(plain, feed, "")[0])
    found = [layer(n, graph, floats) for n in graph.nodes if n.op_type in graphs.LAYERS]
    named = convert.labelled(found, convert.node_names(model))
    nodes = [n for n in int8.graph.node if n.op_type in graphs.LAYERS]
    if len(nodes) != len(named):
        return {}
    own = {n.output[0]: k.label for n, k in zip(nodes, named, strict=True) if k.weight is not None}
    found = {graphs.title(n): (own[n.output[0]],) for n in nodes if n.output[0] in own}
    made = graphs.of(int8)
    others = {graphs.title(n): n.output[0] for n in int8.graph.node if n.op_type not in graphs.LAYERS}
    others |= {n if n.startswith("input") else f"input {n}": n for n in (i.name for i in int8.graph.input)}
    return found | {title: reading for title, value in others.items() if (reading := _reading(value, made, own))}


def _reading(value: str, graph: Graph, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Labels of the layers that read a value, quantized or moved in between."""
    found: list[str] = []
    for node in graph.readers.get(value, ()):
        if node is None:
            continue
        if node.output[0] in labels:
            found.append(labels[node.output[0]])
        elif node.op_type in (*QUANTIZERS, *CLIPS) or moves(node):
            found += _reading(node.output[0], graph, labels)
    return tuple(dict.fromkeys(found))


def captured(source: FromRun, int8_file: Path) -> dict[str, tuple[str, ...]]:
    """{layer of a finding: its names in the graph of a fresh student}; {} where these don't agree."""
    from edgekd import quantization
    from edgekd.models import saved
    from edgekd.quantization.torch_graph import sites
    from edgekd.quantization.torch_graph.capture import capture

    task, name = source.resolved.task, getattr(source.resolved.recipe.stages[0].stage, "model", "student")
    graph = capture(
        saved.create(task, name, 0), quantization.example_of(source.resolved.data("train")), task.traced, task.lengths
    )
    return layers(int8_file, graph, sites.layers(graph))


def layers(int8_file: Path, graph: Any, known: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """{layer of a finding: names in the captured graph of the layers that read its weight}."""
    import onnx

    from edgekd.quantization.diagnosis.mixed_precision import named
    from edgekd.quantization.qdq.graph import title

    try:
        nodes = [n for n in named(onnx.load(int8_file), graph).graph.node if n.name in known]
    except ValueError:
        return {}
    return {title(n): tuple(o for o in known if known[o] == known[n.name]) for n in nodes}
