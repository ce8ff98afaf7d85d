"""The shapes of the values of an ONNX model at given input shapes, operator by operator. What a file computes from
shapes alone (`x.view(b, 2, c // 2, h, w)`) is computed (`folding`), so that the shapes behind it are known too. Shapes
are those of onnx's own inference, and no runtime is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from edgekd.onnx_files import folding, fused, loops
from edgekd.onnx_files.known import PLAIN, Known, Shape

if TYPE_CHECKING:
    import onnx

MOST = 2**62  # elements of a value: more is a mistake or an attack
DEEP = 8  # graphs within graphs: a Loop is gone through up to three times on every level


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
            folding.store(known, tensor.name, tensor)
        for position, node in enumerate(graph.node):
            made = self.node(position, node, known, depth)
            for name, kind in made.items():
                if name:
                    known.types[name] = kind
            folding.compute(node, known, self.opsets, self.ir)

    def node(self, position: int, node: onnx.NodeProto, known: Known, depth: int) -> dict[str, onnx.TypeProto]:
        """{output: type}"""
        import onnx

        if node.op_type == "Constant":
            return folding.constant(node, known)
        graphs = {a.name: a.g for a in node.attribute if a.HasField("g")}
        if graphs:
            return self.subgraphs(position, node, graphs, known, depth) if depth < DEEP else {}
        domain = "" if node.domain in PLAIN else node.domain
        if domain:
            return fused.types(node, known)
        if not onnx.defs.has(node.op_type) or any(n and n not in known.types for n in node.input):
            return {}
        numbers = {n: folding.tensor(known.numbers[n], n) for n in node.input if n in known.numbers}
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

    def subgraphs(
        self, position: int, node: onnx.NodeProto, graphs: Mapping[str, onnx.GraphProto], known: Known, depth: int
    ) -> dict[str, onnx.TypeProto]:
        """{output: type} of an If, Loop or Scan, and what is known inside: of the branch that is taken, where that is
        known."""
        found: dict[str, onnx.TypeProto] = {}
        one, ends = loops.taken(node, known) if node.op_type == "If" else "", []
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
            states = len(node.input) - (2 if node.op_type == "Loop" else loops.sequences(node))
            steps = loops.times(position, node, known)
            for i, (name, kind) in enumerate(zip(node.output, carried, strict=False)):
                if name and kind is not None:
                    found[name] = kind if i < states else loops.stacked(kind, steps, loops.axis(node, i - states))
        return found

    def inside(self, node: onnx.NodeProto, graph: onnx.GraphProto, known: Known, depth: int) -> Known:
        """What is known inside a subgraph. What a Loop or Scan carries may change its shape from step to step: then
        its shape is not known."""
        types, first = loops.entering(node, graph, known), 2 if node.op_type == "Loop" else 0
        carried = [v.name for v in graph.input[first : len(graph.input) - loops.sequences(node)]]
        ends = [o.name for o in graph.output[1 if node.op_type == "Loop" else 0 :]]
        ends += [""] * (len(carried) - len(ends))
        unknown: set[str] = set()
        while True:
            inner = Known({**known.types, **types}, {n: a for n, a in known.numbers.items() if n not in types})
            self.graph(graph, inner, depth + 1)
            left = [(n, end) for n, end in zip(carried, ends, strict=False) if n not in unknown]
            changing = {n for n, end in left if inner.types.get(end) != types[n]}
            if not changing:
                return inner
            # what changes may change others at the next step: after a second time nothing is sure, and three are all
            unknown |= set(carried) if unknown else changing
            for name in unknown:
                types[name].tensor_type.ClearField("shape")


def impossible(known: Known) -> Iterator[tuple[str, Shape]]:
    """Values whose shape fits in no memory."""
    for name, shape in known.shapes.items():
        if min(shape, default=0) < 0 or math.prod(shape) > MOST:
            yield name, shape
