"""The shapes of the values of an ONNX model at given input shapes, operator by operator. What a file computes from
shapes alone (`x.view(b, 2, c // 2, h, w)`) is computed here, so that the shapes behind it are known too.

Shapes are those of onnx's own inference, small numbers those of its reference implementation. Nothing large is ever
computed, and no runtime is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.onnx_files import fused

if TYPE_CHECKING:
    import onnx

SMALL = 1024  # elements of a value that is computed: shapes, axes, sizes
MOST = 2**62  # elements of a value: more is a mistake or an attack
DEEP = 8  # graphs within graphs: a Loop is gone through twice on every level
PLAIN = ("", "ai.onnx")
# operators that are not computed: they draw numbers, or give other shapes than values
_LEFT = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
) | {"QuantizeLinear", "DequantizeLinear"}
Shape = tuple[int, ...]


@dataclass
class Known:
    """What is known of the values of a graph before it runs.

    types     {value: its TypeProto}
    numbers   {value: array} of small values that do not depend on what the inputs hold
    inside    {(position of a node, attribute): what is known inside its subgraph}
    problem   what contradicts itself, or "" """

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    inside: dict[tuple[int, str], Known] = field(default_factory=dict)
    problem: str = ""

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor; None if a dimension is not known."""
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        dims = kind.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: shape for name in self.types if (shape := self.shape(name)) is not None}


def inputs(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """{input: type} of what a caller gives; old files list their initializers as inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value.type for value in model.graph.input if value.name not in stored}


def at(model: onnx.ModelProto, sample: Mapping[str, Shape] | None = None) -> dict[str, onnx.TypeProto]:
    """{input: type} of one inference. What the file fixes stays, but for a dimension of 0, which says nothing. What is
    open is as in `sample` {input: the shape that is fed}, the name "" for a file's only input; else as a dimension of
    that name in another input's. Of what is left the first dimension is the batch, 1, and so is any of its name, unless
    that lies behind another first one (`x [N, T], y [T]`: T is a length, and no batch); others stay open."""
    import onnx

    given, found = inputs(model), {}
    seen = {name: _told(kind, sample or {}, name) for name, kind in given.items()}
    dims = {name: [d.dim_param for d in kind.tensor_type.shape.dim] for name, kind in given.items()}
    behind = {dim for each in dims.values() for dim in each[1:] if each[0] and dim != each[0]}
    sizes = {each[0]: 0 if each[0] in behind else 1 for each in dims.values() if each}
    sizes[""] = 1  # a first dimension without a name
    for name, each in dims.items():
        sizes |= {dim: size for dim, size in zip(each, seen[name], strict=False) if dim}
    for name, kind in given.items():
        found[name] = onnx.TypeProto()
        found[name].CopyFrom(kind)
        for i, dim in enumerate(found[name].tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                if dim.dim_value == 0:
                    dim.Clear()  # a count at it would be 0, and fit every device
                continue
            size = seen[name][i] if seen[name] else sizes.get(dim.dim_param, 0) if dim.dim_param or i == 0 else 0
            if size:
                dim.dim_value = size
    return found


def _told(kind: onnx.TypeProto, sample: Mapping[str, Shape], name: str) -> Shape:
    """The shape that a sample has of an input; () where none is told, or one of another rank."""
    shape = sample.get(name, sample.get("", ()))
    return tuple(map(int, shape)) if len(shape) == len(kind.tensor_type.shape.dim) else ()


def infer(model: onnx.ModelProto, given: Mapping[str, onnx.TypeProto]) -> Known:
    """What is known of a model's values at the types of its inputs."""
    known = Known(types=dict(given))
    _Pass(model).graph(model.graph, known, 0)
    return known


class _Pass:
    """One walk through a model's operators in order."""

    def __init__(self, model: onnx.ModelProto):
        self.opsets, self.ir = list(model.opset_import), model.ir_version
        self.versions = {("" if o.domain in PLAIN else o.domain): o.version for o in model.opset_import}

    def graph(self, graph: onnx.GraphProto, known: Known, depth: int) -> None:
        for tensor in graph.initializer:
            _store(known, tensor.name, tensor)
        for position, node in enumerate(graph.node):
            made = self.node(position, node, known, depth)
            for name, kind in made.items():
                if name:
                    known.types[name] = kind
            self.compute(node, known)

    def node(self, position: int, node: onnx.NodeProto, known: Known, depth: int) -> dict[str, onnx.TypeProto]:
        """{output: type}"""
        import onnx

        if node.op_type == "Constant":
            return _constant(node, known)
        graphs = {a.name: a.g for a in node.attribute if a.HasField("g")}
        if graphs:
            return self.subgraphs(position, node, graphs, known, depth) if depth < DEEP else {}
        domain = "" if node.domain in PLAIN else node.domain
        if domain:
            return fused.types(node, known)
        if not onnx.defs.has(node.op_type) or any(n and n not in known.types for n in node.input):
            return {}
        numbers = {n: _tensor(known.numbers[n], n) for n in node.input if n in known.numbers}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.versions.get("", 1))
            kinds = {n: known.types[n] for n in node.input if n}
            return onnx.shape_inference.infer_node_outputs(
                schema, node, kinds, input_data=numbers, opset_imports=self.opsets, ir_version=self.ir
            )
        except Exception as error:  # onnx's own class, protobuf's, and those of its bindings
            title = f"{node.op_type} {node.name or next(filter(None, node.output), '')}"
            known.problem = known.problem or f"{title}: {(str(error).strip() or 'error').splitlines()[0][:300]}"
            return {}

    def compute(self, node: onnx.NodeProto, known: Known) -> None:
        """Adds what a node makes of small numbers, or of shapes."""
        outputs = [n for n in node.output if n]
        shape = known.shape(node.input[0]) if node.input else None
        if node.op_type == "Shape" and shape is not None:
            ends = {a.name: a.i for a in node.attribute}
            known.numbers[outputs[0]] = np.array(shape, np.int64)[ends.get("start", 0) : ends.get("end")]
        elif node.op_type == "Size" and shape is not None:
            known.numbers[outputs[0]] = np.array(math.prod(shape), np.int64)
        elif self.computable(node, outputs, known):
            known.numbers.update(_computed(node, known, self.opsets, self.ir))

    def computable(self, node: onnx.NodeProto, outputs: list[str], known: Known) -> bool:
        if node.domain not in PLAIN or node.op_type in _LEFT or node.op_type == "Constant":
            return False
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            return False
        small = (known.shape(n) for n in outputs)
        return (
            bool(node.input)
            and all(n in known.numbers for n in node.input if n)
            and all(s is not None and math.prod(s) <= SMALL for s in small)
        )

    def subgraphs(
        self, position: int, node: onnx.NodeProto, graphs: Mapping[str, onnx.GraphProto], known: Known, depth: int
    ) -> dict[str, onnx.TypeProto]:
        """{output: type} of an If, Loop or Scan, and what is known inside: of the branch that is taken, where that is
        known."""
        found: dict[str, onnx.TypeProto] = {}
        one, ends = taken(node, known) if node.op_type == "If" else "", []
        for attribute, graph in graphs.items():
            if one in ("", attribute):
                inner = self.inside(node, graph, known, depth)
                known.inside[position, attribute] = inner
                known.problem = known.problem or inner.problem
                ends.append([inner.types.get(o.name) for o in graph.output])
        if node.op_type == "If":
            for name, kinds in zip(node.output, zip(*ends, strict=False), strict=False):
                if name and kinds[0] is not None and all(k == kinds[0] for k in kinds):
                    found[name] = kinds[0]
        elif len(ends) == 1 and node.op_type in ("Loop", "Scan"):
            carried = ends[0][1:] if node.op_type == "Loop" else ends[0]
            states = len(node.input) - (2 if node.op_type == "Loop" else _sequences(node))
            steps = times(position, node, known)
            for i, (name, kind) in enumerate(zip(node.output, carried, strict=False)):
                if name and kind is not None:
                    found[name] = kind if i < states else _stacked(kind, steps, _axis(node, i - states))
        return found

    def inside(self, node: onnx.NodeProto, graph: onnx.GraphProto, known: Known, depth: int) -> Known:
        """What is known inside a subgraph. What a Loop or Scan carries may change its shape from step to step: then
        its shape is not known."""
        types, changing = _entering(node, graph, known), False
        for _ in range(2):
            inner = Known({**known.types, **types}, {n: a for n, a in known.numbers.items() if n not in types})
            self.graph(graph, inner, depth + 1)
            first = 2 if node.op_type == "Loop" else 0
            for i, value in enumerate(graph.input[first : len(graph.input) - _sequences(node)], first):
                at = i - 1 if node.op_type == "Loop" else i
                end = inner.types.get(graph.output[at].name) if at < len(graph.output) else None
                if end != types[value.name]:
                    types[value.name].tensor_type.ClearField("shape")
                    changing = True
            if not changing:
                return inner
        return inner


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
        count = _sequences(node)
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


def _stacked(kind: onnx.TypeProto, steps: int | None, axis: int) -> onnx.TypeProto:
    """The type of what a Loop or Scan collects of a value, one per step."""
    from onnx import helper

    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return helper.make_tensor_type_proto(kind.tensor_type.elem_type, None)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, steps)
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, dims)


def _axis(node: onnx.NodeProto, number: int) -> int:
    axes = list(fused.attribute(node, "scan_output_axes", None) or [])
    return axes[number] if number < len(axes) else 0


def _sequences(node: onnx.NodeProto) -> int:
    """The number of sequences that a Scan goes through."""
    return int(fused.attribute(node, "num_scan_inputs"))


def _entering(node: onnx.NodeProto, graph: onnx.GraphProto, known: Known) -> dict[str, onnx.TypeProto]:
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
    count = _sequences(node)
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


def _constant(node: onnx.NodeProto, known: Known) -> dict[str, onnx.TypeProto]:
    from onnx import helper

    for a in node.attribute:
        if a.name == "value":
            _store(known, node.output[0], a.t)
        elif a.name in ("value_int", "value_ints", "value_float", "value_floats"):
            kind = np.int64 if "int" in a.name else np.float32
            _store(known, node.output[0], _tensor(np.array(helper.get_attribute_value(a), kind), node.output[0]))
    return {}


def _store(known: Known, name: str, tensor: onnx.TensorProto) -> None:
    """Adds a stored tensor: its type, and its numbers where they are few."""
    from onnx import helper, numpy_helper

    known.types[name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    if 0 <= math.prod(tensor.dims) <= SMALL and tensor.data_type != tensor.STRING:
        try:
            known.numbers[name] = numpy_helper.to_array(tensor)
        except Exception:  # fewer bytes than the shape says; a runtime tells
            return


def _tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def _computed(node: onnx.NodeProto, known: Known, opsets: Any, ir: int) -> dict[str, np.ndarray]:
    """{output: array} by onnx's reference implementation; {} where it can't."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = list(dict.fromkeys(n for n in node.input if n))
    kinds = [helper.make_value_info(n, known.types[n]) for n in names]
    outputs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
    graph = helper.make_graph([node], "one", kinds, outputs)
    try:
        with np.errstate(all="ignore"):
            one = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
            made = ReferenceEvaluator(one).run(None, {n: known.numbers[n] for n in names})
    except Exception:  # an operator that the reference lacks, numbers that it refuses
        return {}
    return {o.name: np.asarray(a) for o, a in zip(outputs, made, strict=True) if np.asarray(a).size <= SMALL}


def impossible(known: Known) -> Iterator[tuple[str, Shape]]:
    """Values whose shape fits in no memory."""
    for name, shape in known.shapes.items():
        if min(shape, default=0) < 0 or math.prod(shape) > MOST:
            yield name, shape
