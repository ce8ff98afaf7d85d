"""Canonical names: nothing of the machine or of the source is left in a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def clean(
    model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Drops what is not computed with, and gives every value a canonical name; returns {old: new}."""
    from edgekd import __version__

    graph = model.graph
    live = {o.name for o in graph.output}
    for node in reversed(graph.node):
        if any(o in live for o in node.output):
            live |= set(node.input)
    for field, keep in (
        (graph.node, lambda n: any(o in live for o in n.output)),
        (graph.initializer, lambda i: i.name in live),
    ):
        kept = [copy.deepcopy(x) for x in field if keep(x)]
        del field[:]
        field.extend(kept)
    names = {"": ""}
    names |= {v.name: new for v, new in zip(graph.input, inputs, strict=True)} | {
        v.name: new for v, new in zip(graph.output, outputs, strict=True)
    }
    order = {name: i for i, name in enumerate(x for node in graph.node for x in (*node.input, *node.output))}
    first: dict[str, int] = {}
    for i, name in enumerate(x for node in graph.node for x in (*node.input, *node.output)):
        first.setdefault(name, i)
    initializers = sorted(graph.initializer, key=lambda i: first.get(i.name, len(order)))
    stored = {i.name for i in initializers}
    for name in sorted(first, key=first.__getitem__):
        if name not in names:
            names[name] = f"{'w' if name in stored else 'v'}{len(names)}"
    kept = [copy.deepcopy(i) for i in initializers]
    del graph.initializer[:]
    for tensor in kept:
        tensor.name = names[tensor.name]
        tensor.doc_string = ""
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [names[n] for n in node.input]
        node.output[:] = [names[n] for n in node.output]
        node.name, node.doc_string = "", ""
        del node.metadata_props[:]
    steps: dict[str, str] = {}
    for value in (*graph.input, *graph.output):
        value.name, value.doc_string = names[value.name], ""
        del value.metadata_props[:]
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_param"):
            dims[0].dim_param = "batch"
        for dim in dims[1:]:  # the tracer numbers these as it likes
            if dim.HasField("dim_param"):
                dim.dim_param = steps.setdefault(dim.dim_param, "steps" if not steps else f"steps{len(steps)}")
    graph.name, graph.doc_string = "edgekd", ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    del model.metadata_props[:]
    del model.functions[:]
    model.producer_name, model.producer_version, model.doc_string, model.domain, model.model_version = (
        "edgekd",
        __version__,
        "",
        "",
        0,
    )
    opsets = sorted((o.domain, o.version) for o in model.opset_import if o.domain in {n.domain for n in graph.node})
    del model.opset_import[:]
    for domain, version in opsets:
        model.opset_import.add(domain=domain, version=version)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=str(metadata[key]))
    return names
