"""ONNX: float files, and int8 files in QDQ form. The captured graph is exported once with a marker at every site; the
markers are then rendered as QuantizeLinear and DequantizeLinear with the grid's numbers, weights as int8 and biases as
int32 initializers.

Nothing of the machine or the source is left in a file: names are canonical, stack traces, doc strings and inferred
shapes are dropped.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import RunFailed, first_line
from edgekd.files import write_atomic
from edgekd.formats import _recurrent
from edgekd.formats._canonical import clean
from edgekd.formats._qdq import DOMAIN, MARK, pool, render
from edgekd.inputs import positional
from edgekd.quantization.parameters import clips_itself
from edgekd.records import Grid, Site

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import fx

    from edgekd.quantization.weight_blocks.blocks import Blocks

SUFFIX = ".onnx"
REFERENCE = "onnxruntime"  # the runtime that tells what a file computes


def export(
    graph: fx.GraphModule,
    grid: Grid | None,
    example: Any,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    blocks: Mapping[str, Blocks] | None = None,
    opset: int = 20,
    inputs: Sequence[str] = ("input",),
    outputs: Sequence[str] = ("output",),
) -> dict[str, str]:
    """Writes a captured graph with a dynamic batch; returns {site: name of its dequantized value} ({} for a float
    file)."""
    import onnx

    from edgekd.formats import _nbits

    graph = _nbits.render(graph, blocks) if blocks else graph
    model = _translate(graph, grid, example, opset)
    pool(model.graph)
    sites = render(model.graph, grid) if grid is not None else {}
    names = clean(model, inputs, outputs, {"edgekd.schema": "edgekd.onnx/1", **(metadata or {})})
    onnx.checker.check_model(model, full_check=True)
    write_atomic(path, model.SerializeToString(deterministic=True))
    return {site: names[value] for site, value in sites.items()}


def _translate(graph: fx.GraphModule, grid: Grid | None, example: Any, opset: int) -> onnx.ModelProto:
    """The graph in ONNX, with a node `edgekd.Site` at each site if there is a grid."""
    import torch

    from edgekd.quantization.torch_graph.capture import exported, opened

    module = _recurrent.written(_marked(graph, grid) if grid is not None else copy.deepcopy(graph), opset)
    tensors = positional(example)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet():
            warnings.simplefilter("ignore")
            program = exported(module.eval(), tensors, opened(graph))
            return torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, external_data=False, verbose=False, optimize=True
            ).model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
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
    values. Activations that the integer range makes superfluous are left out: onnxruntime recognizes few of them, and
    keeps the layer before the others in float."""
    import torch
    from torch import nn

    from edgekd.quantization.torch_graph.capture import readable
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
    # onnxruntime merges two pairs of quantization parameters with nothing between
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
            and clips_itself(placement.values[site], grid.sites[site].scale[0], *_ends(grid.sites[site]))
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


def difference(
    path: Path,
    module: fx.GraphModule,
    grid: Grid | None,
    blocks: Mapping[str, Blocks],
    names: Mapping[str, str],
    inputs: Any,
    feed: Mapping[str, np.ndarray],
) -> str:
    """Where a file and its model part, in words; "" where that isn't known. `names`: what `export` returned; `inputs`
    tensors and `feed` arrays are the same few samples."""
    from edgekd.quantization.torch_graph import check
    from edgekd.quantization.weight_blocks import check as check_blocks

    if grid is not None:
        return check.first_difference(module, grid, path, names, inputs, feed)
    return check_blocks.first_difference(module, blocks, path, inputs, feed) if blocks else ""


def audit(path: Path, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What else is to be known of an int8 file: layers whose sums can leave 16 bits, and those computed in float."""
    import onnx

    from edgekd.quantization.qdq import saturation

    layers = saturation.audit(onnx.load(path), feed)
    return {
        "saturation": [dataclasses.asdict(layer) for layer in layers if layer.can_saturate],
        "float_kernels": float_kernels(path),
    }


def float_kernels(path: Path) -> list[str]:
    """Convolutions, matrix products and recurrent layers that onnxruntime still computes in float after its
    optimizations, as `Conv(v12)`."""
    import tempfile

    import onnx

    from edgekd.runtimes.onnxruntime import ort as onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    names = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "GRU", "LSTM", "RNN")
    return [f"{n.op_type}({n.output[0]})" for n in graph.node if n.op_type in names]
