"""A format: the layers of a network as JSON, each with its operator, what it reads and makes, and its attributes."""

import json
import tempfile
from pathlib import Path

from edgekd.files import write_atomic
from edgekd.formats import onnx as onnx_format

SUFFIX = ".layers"


def export(graph, grid, example, path, *, metadata, inputs, outputs):
    import onnx
    from onnx import helper, numpy_helper

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        sites = onnx_format.export(graph, grid, example, file, inputs=inputs, outputs=outputs)
        network = onnx.load(file).graph
    told = lambda a: [str(a.dtype), list(a.shape), a.tobytes().hex()]
    plain = lambda v: v.decode() if isinstance(v, bytes) else v
    content = {
        "metadata": dict(metadata),
        "inputs": {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in network.input},
        "outputs": [v.name for v in network.output],
        "tensors": {t.name: told(numpy_helper.to_array(t)) for t in network.initializer},
        "layers": [
            [n.op_type, list(n.input), n.output[0], {a.name: plain(helper.get_attribute_value(a)) for a in n.attribute}]
            for n in network.node
        ],
    }
    write_atomic(path, json.dumps(content, sort_keys=True).encode())
    return sites
