"""Which layers of a file in QDQ form onnxruntime still computes in float, on dequantized integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.onnx_files import external
from edgekd.store.scratch import scratch

if TYPE_CHECKING:
    import onnx

    from edgekd.quantization.onnx_graph.placement import Placement
    from edgekd.quantization.qdq.graph import Graph


FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def in_float(model: onnx.ModelProto, placement: Placement, graph: Graph) -> set[str]:
    """Outputs of those layers of `placement` that have no reason to stay in float, and do. `graph`: the float file.

    A layer of `model` is found by its output, or by that of the activation that onnxruntime fused into it."""
    kernels = {n.output[0].removesuffix(".raw") for n in _optimized(model).node if n.op_type in FLOAT}
    layers = {known.name for known in placement.layers}
    found = set()
    for known in placement.layers:
        reader = graph.reader(known.name)
        fused = set(reader.output) - layers if reader is not None else set()
        if not known.reason and not kernels.isdisjoint({known.name, *fused}):
            found.add(known.name)
    return found


def _optimized(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph that onnxruntime runs."""
    import onnx

    from edgekd.runtimes.onnxruntime import ort as onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    with scratch() as folder:
        path = Path(folder) / "model.onnx"
        external.write(model, path)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath, load_external_data=False).graph
