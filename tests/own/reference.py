"""ONNX files in the reference implementation that comes with onnx: numpy, one operator at a time."""

import onnx
from onnx.reference import ReferenceEvaluator

FORMAT = "onnx"
NEEDS = ("onnx", "numpy")
VERSION = onnx.__version__


def load(path, threads=1):
    session = ReferenceEvaluator(str(path))
    types = dict(zip(session.input_names, session.input_types))  # noqa: B905 - Python 3.8 has no `strict`

    def infer(arrays):
        return dict(zip(session.output_names, session.run(None, arrays)))  # noqa: B905

    infer.inputs = {name: _told(kind.tensor_type) for name, kind in types.items()}
    infer.outputs = tuple(session.output_names)
    return infer


def _told(kind):
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    return onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, tuple(dims)
