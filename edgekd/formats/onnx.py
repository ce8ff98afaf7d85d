"""ONNX: float files, and int8 files in QDQ form. The captured graph is exported once with a marker at every site; the
markers are then rendered as QuantizeLinear and DequantizeLinear with the grid's numbers, weights as int8 and biases as
int32 initializers.

Nothing of the machine or the source is left in a file: names are canonical, stack traces, doc strings and inferred
shapes are dropped.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import RunFailed
from edgekd.files import write_atomic
from edgekd.inputs import positional
from edgekd.quantization.parameters import exactly
from edgekd.records import Grid, Site

if TYPE_CHECKING:
    import onnx
    from torch import fx

DOMAIN, MARK = "edgekd", "Site"


def export(
    graph: fx.GraphModule,
    grid: Grid | None,
    example: Any,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int = 20,
    inputs: Sequence[str] = ("input",),
    outputs: Sequence[str] = ("output",),
) -> dict[str, str]:
    """Writes a captured graph with a dynamic batch; returns {site: name of its dequantized value} ({} for a float
    file)."""
    import onnx

    model = _translate(graph, grid, example, opset)
    _pool(model.graph)
    sites = _render(model.graph, grid) if grid is not None else {}
    names = _clean(model, inputs, outputs, {"edgekd.schema": "edgekd.onnx/1", **(metadata or {})})
    onnx.checker.check_model(model, full_check=True)
    write_atomic(path, model.SerializeToString(deterministic=True))
    return {site: names[value] for site, value in sites.items()}


def _translate(graph: fx.GraphModule, grid: Grid | None, example: Any, opset: int) -> onnx.ModelProto:
    """The graph in ONNX, with a node `edgekd.Site` at each site if there is a grid."""
    import torch

    module = _marked(graph, grid) if grid is not None else copy.deepcopy(graph)
    tensors = positional(example)
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module.eval(), tensors, dynamic_shapes=tuple({0: batch} for _ in tensors), strict=False
            )
            return torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, external_data=False, verbose=False, optimize=True
            ).model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise RunFailed(f"the model can't be written as ONNX: {reason}") from error


@contextlib.contextmanager
def _quiet():
    """The exporter prints and logs as it goes; what is wrong arrives as an exception."""
    logger = logging.getLogger("torch.onnx")
    level, scripts = logger.level, logging.getLogger("onnxscript")
    before = scripts.level
    logger.setLevel(logging.CRITICAL)
    scripts.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        scripts.setLevel(before)


def _marked(graph: fx.GraphModule, grid: Grid) -> fx.GraphModule:
    """A copy of the graph with a marker after each value and weight that has a site, and after what only moves such
    values. Activations that the lattice makes superfluous are left out: onnxruntime recognizes few of them, and keeps
    the layer before the others in float."""
    import torch
    from torch import nn

    from edgekd.quantization.torch_graph.capture import readable
    from edgekd.quantization.torch_graph.fake import absorbs
    from edgekd.quantization.torch_graph.sites import clip, place

    class Mark(nn.Module):
        def __init__(self, site: str):
            super().__init__()
            self.site = site

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{MARK}", (x,), attrs={"site": self.site}, dtype=x.dtype, shape=x.shape, version=1
            )

    module, placement = copy.deepcopy(graph), place(graph, grid.scheme.float_layers)
    wanted = {name: name for name in placement.values} | placement.tied
    # onnxruntime makes one lattice of two with nothing between
    plain = {n for n in module.graph.nodes if n.name not in wanted}
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and node.target in placement.weights:
            site = readable(node.target)
        elif node.name in wanted:
            site = wanted[node.name]
        else:
            continue
        if site not in grid.sites:
            raise RunFailed(f"the grid has no site `{site}`")
        if (
            clip(node)
            and node.args[0] in plain
            and absorbs(placement.values[site], grid.sites[site].scale[0], *_ends(grid.sites[site]))
        ):
            node.target, node.args, node.kwargs = torch.ops.aten.alias.default, node.args[:1], {}
        module.add_submodule(f"mark_{node.name}", Mark(site))
        users = list(node.users)
        with module.graph.inserting_after(node):
            called = module.graph.call_module(f"mark_{node.name}", (node,))
        for user in users:
            user.replace_input_with(node, called)
    module.recompile()
    return module


def _ends(site: Site) -> tuple[int, int]:
    return site.zero_point, site.high


def _pool(graph: onnx.GraphProto) -> None:
    """ReduceMean over height and width becomes GlobalAveragePool, which has an integer kernel and knows onnxruntime's
    layouts."""
    from onnx import helper, numpy_helper

    constants = {i.name: i for i in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
    for node in graph.node:
        if (
            node.op_type != "ReduceMean"
            or len(node.input) < 2
            or node.input[1] not in constants
            or ranks.get(node.input[0]) != 4
        ):
            continue
        axes = sorted(int(a) % 4 for a in numpy_helper.to_array(constants[node.input[1]]).ravel())
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == [2, 3] and keep:
            node.CopyFrom(helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output)))


def _render(graph: onnx.GraphProto, grid: Grid) -> dict[str, str]:
    """Markers become QuantizeLinear and DequantizeLinear; returns {site of a value: its dequantized value}."""
    from onnx import helper, numpy_helper

    weights = {i.name: i for i in graph.initializer}
    transposed = {n.input[0]: n for n in graph.node if n.op_type == "Transpose"}
    nodes, values, scales, done, skip = [], {}, {}, {}, set()

    def constant(name: str, array: np.ndarray) -> str:
        if name not in done:
            graph.initializer.append(numpy_helper.from_array(array, name))
            done[name] = name
        return name

    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        name = next(a.s.decode() for a in node.attribute if a.name == "site")
        site, output = grid.sites[name], node.output[0]
        scale = np.array(site.scale, np.float32)
        if node.input[0] in weights:
            array, axis = numpy_helper.to_array(weights[node.input[0]]), site.axis
            q = _integers(array, scale, axis, site.low, site.high)
            turned = transposed.get(output)
            if turned is not None:  # a weight is stored as it is read
                order = next(
                    (list(a.ints) for a in turned.attribute if a.name == "perm"), list(range(array.ndim))[::-1]
                )
                q, axis, output = q.transpose(order), None if axis is None else order.index(axis), turned.output[0]
                skip.add(turned.output[0])
            scales[output] = scale
            scale_array = scale if axis is not None else scale[0]
            # onnxruntime keeps Gemm in float without it
            zero = constant(f"zeros {scale_array.shape}", np.zeros(scale_array.shape, np.int8))
            operands = [
                constant(f"{name}.q{'' if turned is None else '.t'}", np.ascontiguousarray(q)),
                constant(f"{name}.s", scale_array),
                zero,
            ]
            nodes.append(
                helper.make_node("DequantizeLinear", operands, [output], **({"axis": axis} if axis is not None else {}))
            )
        else:
            zero = constant(f"{name}.z", np.array(site.zero_point, np.uint8 if site.high <= 255 else np.uint16))
            step = constant(f"{name}.s", scale[0])
            nodes.append(helper.make_node("QuantizeLinear", [node.input[0], step, zero], [f"{output}.q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{output}.q", step, zero], [output]))
            values.setdefault(name, output)
            scales[output] = scale
    kept = _looked_up([n for n in nodes if not (n.op_type == "Transpose" and n.output[0] in skip)], helper)
    result = [part for node in kept for part in _bias(node, weights, scales, constant, helper)]
    del graph.node[:]
    graph.node.extend(result)
    return values


def _looked_up(nodes: list[onnx.NodeProto], helper: Any) -> list[onnx.NodeProto]:
    """Rows are looked up in integers and then told in float; the other way round the whole table would be, at each
    inference."""
    made = {n.output[0] for n in nodes}  # a value's integers are made by a node, a table's are stored
    told = {n.output[0]: n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] not in made}
    found = []
    for node in nodes:
        table = told.get(node.input[0]) if node.op_type == "Gather" else None
        along = next((a.i for a in table.attribute if a.name == "axis"), None) if table is not None else None
        if table is None or along == 0 or any(a.name == "axis" and a.i for a in node.attribute):
            found.append(node)
            continue
        rows = f"{node.output[0]}.q"
        found.append(helper.make_node("Gather", [table.input[0], node.input[1]], [rows]))
        found.append(
            helper.make_node(
                "DequantizeLinear",
                [rows, *table.input[1:]],
                list(node.output),
                **({} if along is None else {"axis": -1}),
            )
        )
    return found


def _bias(
    node: onnx.NodeProto, weights: Mapping[str, Any], scales: Mapping[str, np.ndarray], constant: Any, helper: Any
) -> list[onnx.NodeProto]:
    """The node, its float bias replaced by int32 at the product of its operands' scales."""
    from onnx import numpy_helper

    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.input[0] in scales and node.input[1] in weights:
        return _kept_float(node, weights, constant, helper)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3 or node.input[2] not in weights:
        return [node]
    if node.input[0] not in scales or node.input[1] not in scales:
        return [node]
    bias = numpy_helper.to_array(weights[node.input[2]])
    scale = np.broadcast_to(scales[node.input[0]] * scales[node.input[1]], bias.shape).astype(np.float32)
    rounded = np.clip(np.round(bias / scale), -(2.0**31), 2.0**31 - 128).astype(np.int32)
    name = f"{node.output[0]}.bias"
    made = helper.make_node(
        "DequantizeLinear", [constant(f"{name}.q", rounded), constant(f"{name}.s", scale)], [name], axis=0
    )
    node.input[2] = name
    return [made, node]


def _kept_float(node: onnx.NodeProto, weights: Mapping[str, Any], constant: Any, helper: Any) -> list[onnx.NodeProto]:
    """A layer of a quantized value with float weights, its bias told as int32 times powers of two, which is the same
    numbers.

    onnxruntime (core/optimizer/qdq_transformer/weight_bias_quantization.cc) rounds the weight of such a layer to int8
    with one scale, unless the bias is no stored float."""
    from onnx import numpy_helper

    stored = weights.get(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) > 2 and node.input[2] and stored is None:
        return [node]  # computed, so it is no stored float
    bias = (
        np.zeros(_outputs(node, weights[node.input[1]].dims), np.float32)
        if stored is None
        else numpy_helper.to_array(stored).ravel()
    )
    name = f"{node.output[0]}.bias"
    q, scale = exactly(bias)
    made = helper.make_node(
        "DequantizeLinear", [constant(f"{name}.q", q), constant(f"{name}.s", scale)], [name], axis=0
    )
    node.input[:] = [*node.input[:2], name]
    return [made, node]


def _outputs(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    """Output channels of a layer by its weight's shape."""
    given = {a.name: a.i for a in node.attribute}
    if node.op_type == "ConvTranspose":
        return shape[1] * given.get("group", 1)
    return shape[1] if node.op_type == "Gemm" and not given.get("transB", 0) else shape[0]


def _integers(array: np.ndarray, scale: np.ndarray, axis: int | None, low: int, high: int) -> np.ndarray:
    """int8 of a weight: clamp(round_half_even(w / s)), as ONNX QuantizeLinear defines it."""
    shaped = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(array.ndim)])
    return np.clip(np.round(array / shaped), low, high).astype(np.int8)


def _clean(
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
    for value in (*graph.input, *graph.output):
        value.name, value.doc_string = names[value.name], ""
        del value.metadata_props[:]
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_param"):
            dims[0].dim_param = "batch"
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


def float_kernels(path: Path) -> list[str]:
    """Convolutions and matrix products that onnxruntime still computes in float after its optimizations, as
    `Conv(v12)`."""
    import tempfile

    import onnx

    from edgekd.runtimes.onnxruntime import ort as onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    names = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
    return [f"{n.op_type}({n.output[0]})" for n in graph.node if n.op_type in names]
