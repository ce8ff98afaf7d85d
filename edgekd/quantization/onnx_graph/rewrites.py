"""Operators of a float ONNX file written as those that integer kernels know, in place: means over an image as pooling,
padding in numbers, products of matrices with their bias as Gemm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.quantization.onnx_graph.draft import Draft, copied
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph, attribute

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, tuple[int | None, ...]]
POOLS = ("Conv", "MaxPool", "AveragePool")
# operators that keep the form of what they read
KEEP = ("Relu", "Clip", "Add", "Mul", "HardSwish", "Sigmoid", "Concat", "LeakyRelu", "Elu", "PRelu", "Gelu")


def open_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """{value: shape}, None for a dimension that is open; values of unknown rank are left out."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a file may run whose shapes onnx can't follow
        inferred = model
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def pool(model: onnx.ModelProto) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel; without kept axes, a
    Flatten follows."""
    graph, draft = graphs.of(model), Draft(model.graph)
    for node in _means(graph):
        draft.replace([node], _pooling(node, draft))
    if draft.made:
        draft.write()


def _means(graph: Graph) -> Iterator[onnx.NodeProto]:
    """The means over height and width alone of images."""
    ranks = _ranks(graph)
    for node in graph.nodes:
        if node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4:
            axes = attribute(node, "axes", None) if len(node.input) < 2 else graph.constants.get(node.input[1])
            if axes is not None and sorted(int(a) % 4 for a in np.ravel(axes)) == [2, 3]:
                yield node


def _ranks(graph: Graph) -> dict[str, int]:
    """{value: number of axes} of what convolutions of images and pools make, and of what keeps its form."""
    ranks: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type in POOLS and attribute(node, "kernel_shape", None) is not None:
            ranks[node.output[0]] = 2 + len(attribute(node, "kernel_shape", []))
        elif node.op_type in KEEP:
            ranks[node.output[0]] = max((ranks.get(n, 0) for n in node.input), default=0)
    return ranks


def _pooling(node: onnx.NodeProto, draft: Draft) -> list[onnx.NodeProto]:
    from onnx import helper

    if attribute(node, "keepdims", 1):
        return [helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output), name=node.name)]
    kept = draft.fresh(f"{node.output[0]}.kept")
    return [
        helper.make_node("GlobalAveragePool", [node.input[0]], [kept], name=node.name),
        helper.make_node("Flatten", [kept], list(node.output), axis=1),
    ]


def pad(model: onnx.ModelProto, shapes: Shapes) -> None:
    """auto_pad as pads, where the sizes are known."""
    from onnx import helper

    graph = graphs.of(model)
    for node in graph.nodes:
        kind = attribute(node, "auto_pad", b"NOTSET")
        if node.op_type not in POOLS or kind in (b"NOTSET", b""):
            continue
        pads = _pads(node, kind, _kernel(node, graph), shapes.get(node.input[0], ())[2:])
        if pads is not None:
            _set(node, ("auto_pad", "pads"), helper.make_attribute("pads", pads))


def _kernel(node: onnx.NodeProto, graph: Graph) -> list[int] | None:
    found = attribute(node, "kernel_shape", None)
    if found is None and len(node.input) > 1 and node.input[1] in graph.constants:
        return list(graph.constants[node.input[1]].shape[2:])
    return found


def _pads(
    node: onnx.NodeProto, kind: bytes, kernel: list[int] | None, sizes: tuple[int | None, ...]
) -> list[int] | None:
    """Begins, then ends (ONNX operator Conv: SAME splits what is missing evenly, the odd one at the end or
    beginning)."""
    if kernel is None or (kind != b"VALID" and (len(sizes) != len(kernel) or None in sizes)):
        return None
    rank = len(kernel)
    pads = [0] * (2 * rank)
    if kind == b"VALID":
        return pads
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    for d, size in enumerate(sizes):
        covered = (-(-size // strides[d]) - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1
        missing = max(0, covered - size)
        small, large = missing // 2, missing - missing // 2
        pads[d], pads[d + rank] = (small, large) if kind == b"SAME_UPPER" else (large, small)
    return pads


def _set(node: onnx.NodeProto, names: tuple[str, ...], *made: onnx.AttributeProto) -> None:
    """Gives a node attributes in place of those in `names`."""
    kept = [copied(a) for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])


def by_rows(model: onnx.ModelProto, shapes: Shapes) -> None:
    """MatMul by a stored matrix and a bias that alone reads it become a Gemm over rows [n, features] between two views:
    a Gemm's integer kernel adds the bias before it rounds. Left alone where more than one dimension is open, which no
    single view can restore."""
    graph, draft = graphs.of(model), Draft(model.graph)
    for node in graph.nodes:
        add = graph.reader(node.output[0]) if node.op_type == "MatMul" else None
        bias = _bias(node, add, graph, shapes)
        if bias is not None:
            draft.replace([node, add], _gemm(node, add, bias, graph, shapes[node.output[0]], draft))
    if draft.made:
        draft.write()


def _bias(node: onnx.NodeProto, add: onnx.NodeProto | None, graph: Graph, shapes: Shapes) -> str | None:
    """The bias that `add` adds to the product that `node` makes; None where the two are no Gemm."""
    if add is None or add.op_type != "Add" or node.input[0] in graph.constants:
        return None
    weight, shape = graph.constants.get(node.input[1]), shapes.get(node.output[0])
    name = next((n for n in add.input if n in graph.constants), None)
    if weight is None or weight.ndim != 2 or name is None or shape is None or None in shape[1:]:
        return None
    bias = graph.constants[name]
    fits = len(shape) >= max(2, bias.ndim) and bias.size == weight.shape[1] and bias.shape[-1:] == weight.shape[1:]
    return name if fits else None


def _gemm(
    node: onnx.NodeProto,
    add: onnx.NodeProto,
    bias: str,
    graph: Graph,
    shape: tuple[int | None, ...],
    draft: Draft,
) -> list[onnx.NodeProto]:
    from onnx import helper

    output, array = add.output[0], graph.constants[bias]
    flat = bias if array.ndim == 1 else draft.store(f"{bias}.flat", array.ravel())
    if len(shape) == 2:
        return [helper.make_node("Gemm", [node.input[0], node.input[1], flat], list(add.output), name=node.name)]
    rows, made = (draft.fresh(f"{output}.{part}") for part in ("rows", "made"))
    width = draft.store(f"{output}.width", np.array([-1, graph.constants[node.input[1]].shape[0]], np.int64))
    back = draft.store(f"{output}.shape", np.array([-1, *shape[1:]], np.int64))
    return [
        helper.make_node("Reshape", [node.input[0], width], [rows]),
        helper.make_node("Gemm", [rows, node.input[1], flat], [made], name=node.name),
        helper.make_node("Reshape", [made, back], list(add.output)),
    ]


def unscale(model: onnx.ModelProto) -> None:
    """Gemm's factors alpha and beta go into stored operands, and its bias becomes one number per output."""
    graph, draft = graphs.of(model), Draft(model.graph)
    for node in graph.nodes:
        if node.op_type == "Gemm" and node.input[1] in graph.constants:
            _unscaled(node, graph, draft)


def _unscaled(node: onnx.NodeProto, graph: Graph, draft: Draft) -> None:
    w, bias = graph.constants[node.input[1]], (*node.input, "")[2]
    width = w.shape[0 if attribute(node, "transB", 0) else 1]
    factors = {key: np.float32(attribute(node, key, 1.0)) for key in ("alpha", "beta")}
    if w.dtype != np.float32 or (bias and bias not in graph.constants):
        return
    array = graph.constants.get(bias)
    if array is not None and (array.size not in (1, width) or array.shape[-1:] not in ((), (1,), (width,))):
        return  # one number per row is no bias that a kernel takes; place() says so
    if factors["alpha"] != 1:
        node.input[1] = draft.store(f"{node.input[1]}.alpha", w * factors["alpha"])
    if array is not None and (factors["beta"] != 1 or array.shape != (width,)):
        spread = np.broadcast_to(array.ravel() * factors["beta"], width)
        node.input[2] = draft.store(f"{node.output[0]}.beta", spread)
    _set(node, tuple(factors))


def hard_sigmoid(model: onnx.ModelProto) -> None:
    """min(max(x + a, 0), b), or its product with x, divided by b becomes HardSigmoid, as newer exporters write it."""
    from onnx import helper

    graph, draft = graphs.of(model), Draft(model.graph)
    for add in graph.nodes:
        found = _hard(add, graph)
        if found is None:
            continue
        clip, times, divide, x, shift, width = found
        gate = divide.output[0] if times is None else draft.fresh(f"{divide.output[0]}.gate")
        factors = {"alpha": 1 / width, "beta": shift / width}
        made = [helper.make_node("HardSigmoid", [x], [gate], name=add.name, **factors)]
        if times is not None:
            made.append(helper.make_node("Mul", [x, gate], list(divide.output), name=times.name))
        draft.replace([n for n in (add, clip, times, divide) if n is not None], made)
    if draft.made:
        draft.write()


def _hard(add: onnx.NodeProto, graph: Graph) -> tuple[Any, ...] | None:
    """(Clip, Mul by x or None, Div, x, what is added, the Clip's width) behind an Add; None where they are none."""
    if add.op_type != "Add":
        return None
    shift, x = _number(add, graph), next((n for n in add.input if n not in graph.constants), "")
    clip = graph.reader(add.output[0])
    limits = graph.clip(clip) if clip is not None and clip.op_type == "Clip" else None
    if not x or shift is None or limits is None or limits[0] != 0 or not 0 <= shift < limits[1] < np.inf:
        return None
    after = graph.reader(clip.output[0])
    times = after if after is not None and after.op_type == "Mul" and x in after.input else None
    divide = after if times is None else graph.reader(times.output[0])
    number = None if divide is None else _number(divide, graph)
    by = {"Div": number, "Mul": 1 / number if number else None}.get(divide.op_type) if divide is not None else None
    if (
        by is None
        or abs(by / limits[1] - 1) > 1e-6
        or (divide.op_type == "Div" and divide.input[1] not in graph.constants)
    ):
        return None
    return clip, times, divide, x, shift, limits[1]


def _number(node: onnx.NodeProto, graph: Graph) -> float | None:
    """The one stored number that an operator of two operands takes besides a value."""
    stored = [graph.constants[n] for n in node.input if n in graph.constants]
    return float(stored[0].item()) if len(stored) == 1 and len(node.input) == 2 and stored[0].size == 1 else None
