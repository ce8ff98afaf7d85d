"""Small ONNX files, written from what stands in a test."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper as h
from onnx import numpy_helper as nh


def file(path, nodes, inputs, outputs, **constants) -> Path:
    """`nodes`: NodeProtos, or (operator, inputs, outputs[, attributes]); `inputs`, `outputs`: (name, type, shape)."""
    made = [n if isinstance(n, onnx.NodeProto) else h.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes]
    values = [[h.make_tensor_value_info(*v) for v in side] for side in (inputs, outputs)]
    tensors = [nh.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = h.make_graph(made, "g", *values, tensors)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return Path(path)
