"""A file of 16-bit floats computed in float32: calibration and the layers that stay float have kernels of float32 only.
Its inputs and outputs keep their types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.onnx_files import external, subgraphs
from edgekd.onnx_files.shapes import inputs

if TYPE_CHECKING:
    import onnx

SHORT = (10, 16)  # TensorProto.FLOAT16, BFLOAT16
TYPED = ("to", "dtype")  # attributes that name a type


def short(model: onnx.ModelProto) -> bool:
    """Whether a file holds, takes or gives 16-bit floats."""
    values = (*model.graph.input, *model.graph.output)
    return any(t.data_type in SHORT for t in external.tensors(model)) or any(
        v.type.tensor_type.elem_type in SHORT for v in values
    )


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float32 in place of 16-bit floats, and a Cast behind each input and before each output of those; the
    model itself where it has none."""
    if not short(model):
        return model
    copy = external.copied(model)
    graph = copy.graph
    given = [name for name, kind in inputs(copy).items() if kind.tensor_type.elem_type in SHORT]
    made = {o.name: o.type.tensor_type.elem_type for o in graph.output if o.type.tensor_type.elem_type in SHORT}
    computed = {name for node in graph.node for name in node.output}
    renamed = {name: f"{name}.float32" for name in (*given, *(n for n in made if n in computed))}
    for tensor in external.tensors(copy):
        _widen(tensor)
    for inner in subgraphs.graphs(graph):
        _retype(inner, renamed, outer=inner is graph)
    _casts(graph, given, {n: kind for n, kind in made.items() if n in computed}, renamed)
    return copy


def _widen(tensor: onnx.TensorProto) -> None:
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_type in SHORT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _retype(graph: onnx.GraphProto, renamed: dict[str, str], outer: bool) -> None:
    """Types in attributes, names of values that a Cast stands beside, and what a subgraph says of its values."""
    del graph.value_info[:]
    for node in graph.node:
        node.input[:] = [renamed.get(n, n) for n in node.input]
        node.output[:] = [renamed.get(n, n) for n in node.output]
        for a in node.attribute:
            if a.name in TYPED and a.i in SHORT:
                a.i = 1
    if outer:
        return
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in SHORT:
            value.type.tensor_type.elem_type = 1
    for value in graph.output:  # a value of the outer graph that a branch gives
        value.name = renamed.get(value.name, value.name)


def _casts(graph: onnx.GraphProto, given: list[str], made: dict[str, int], renamed: dict[str, str]) -> None:
    from onnx import helper

    nodes = [helper.make_node("Cast", [n], [renamed[n]], to=1) for n in given]
    own = list(graph.node)
    ends = [helper.make_node("Cast", [renamed[n]], [n], to=kind) for n, kind in made.items()]
    graph.ClearField("node")
    graph.node.extend([*nodes, *own, *ends])
