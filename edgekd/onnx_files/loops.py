"""If, Loop and Scan: the branch that is taken, how often a body runs, the types of what goes in and comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.onnx_files import fused
from edgekd.onnx_files.known import Known

if TYPE_CHECKING:
    import onnx


def taken(node: onnx.NodeProto, known: Known) -> str:
    """The branch that an If takes for every input; "" where that depends on what the inputs hold."""
    condition = known.numbers.get(node.input[0])
    return "" if condition is None or not condition.size else "then_branch" if condition.flat[0] else "else_branch"


def times(position: int, node: onnx.NodeProto, known: Known) -> int | None:
    """How often a Loop or Scan goes through its body; None where that depends on what the inputs hold."""
    body = next((a.g for a in node.attribute if a.name == "body"), None)
    if body is None or not body.output:
        return None
    if node.op_type == "Scan":
        count = sequences(node)
        shape = known.shape(node.input[-count]) if 0 < count <= len(node.input) else None
        axis = (fused.attribute(node, "scan_input_axes", None) or [0])[0]
        return shape[axis] if shape and -len(shape) <= axis < len(shape) else None
    most, begins = ((known.numbers.get(n) if n else None) for n in (*node.input, "", "")[:2])
    always = not any(node.input[1:2]) or (begins is not None and bool(begins.all()))
    makers, goes_on = {o: n for n in body.node for o in n.output}, body.output[0].name
    while goes_on in makers and makers[goes_on].op_type in ("Identity", "Cast"):
        goes_on = makers[goes_on].input[0]
    if (position, "body") not in known.inside:
        return None
    inner = known.inside[position, "body"].numbers.get(goes_on)
    on = (len(body.input) > 1 and goes_on == body.input[1].name) or (inner is not None and bool(inner.all()))
    return max(0, int(most.flat[0])) if always and on and most is not None and most.size else None


def stacked(kind: onnx.TypeProto, steps: int | None, axis: int) -> onnx.TypeProto:
    """The type of what a Loop or Scan collects of a value, one per step."""
    from onnx import helper

    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return helper.make_tensor_type_proto(kind.tensor_type.elem_type, None)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, steps)
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, dims)


def axis(node: onnx.NodeProto, number: int) -> int:
    axes = list(fused.attribute(node, "scan_output_axes", None) or [])
    return axes[number] if number < len(axes) else 0


def sequences(node: onnx.NodeProto) -> int:
    """The number of sequences that a Scan goes through."""
    return int(fused.attribute(node, "num_scan_inputs"))


def entering(node: onnx.NodeProto, graph: onnx.GraphProto, known: Known) -> dict[str, onnx.TypeProto]:
    """{input of a subgraph: type}: of a Loop number and condition, then what it carries; of a Scan its states, then one
    slice of each sequence."""
    import onnx

    found: dict[str, onnx.TypeProto] = {}
    if node.op_type == "Loop":
        outer = ["", "", *node.input[2:]]
    elif node.op_type == "Scan":
        outer = list(node.input)
    else:
        return {}
    count = sequences(node)
    axes = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), []) or [0] * count
    for i, value in enumerate(graph.input):
        kind = onnx.TypeProto()
        kind.CopyFrom(known.types.get(outer[i], value.type) if i < len(outer) and outer[i] else value.type)
        slices = i - (len(graph.input) - count)
        if node.op_type == "Scan" and slices >= 0 and kind.tensor_type.HasField("shape"):
            dims = kind.tensor_type.shape.dim
            if -len(dims) <= axes[slices] < len(dims):
                del dims[axes[slices]]
        found[value.name] = kind
    return found
