"""Small numbers that a file computes from constants and shapes, by onnx's reference implementation. Nothing large is
ever computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.onnx_files.known import PLAIN, Known

if TYPE_CHECKING:
    import onnx

SMALL = 1024  # elements of a value that is computed: shapes, axes, sizes
# operators that are not computed: they draw numbers, or give other shapes than values
_LEFT = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
) | {"QuantizeLinear", "DequantizeLinear"}


def compute(node: onnx.NodeProto, known: Known, opsets: Any, ir: int) -> None:
    """Adds what a node makes of small numbers, or of shapes."""
    outputs = [n for n in node.output if n]
    shape = known.shape(node.input[0]) if node.input else None
    if node.op_type == "Shape" and shape is not None:
        ends = {a.name: a.i for a in node.attribute}
        known.numbers[outputs[0]] = np.array(shape, np.int64)[ends.get("start", 0) : ends.get("end")]
    elif node.op_type == "Size" and shape is not None:
        known.numbers[outputs[0]] = np.array(math.prod(shape), np.int64)
    elif _computable(node, outputs, known):
        known.numbers.update(_computed(node, known, opsets, ir))


def _computable(node: onnx.NodeProto, outputs: list[str], known: Known) -> bool:
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


def constant(node: onnx.NodeProto, known: Known) -> dict[str, onnx.TypeProto]:
    from onnx import helper

    for a in node.attribute:
        if a.name == "value":
            store(known, node.output[0], a.t)
        elif a.name in ("value_int", "value_ints", "value_float", "value_floats"):
            kind = np.int64 if "int" in a.name else np.float32
            store(known, node.output[0], tensor(np.array(helper.get_attribute_value(a), kind), node.output[0]))
    return {}


def store(known: Known, name: str, tensor: onnx.TensorProto) -> None:
    """Adds a stored tensor: its type, and its numbers where they are few."""
    from onnx import helper, numpy_helper

    known.types[name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    if 0 <= math.prod(tensor.dims) <= SMALL and tensor.data_type != tensor.STRING:
        try:
            known.numbers[name] = numpy_helper.to_array(tensor)
        except Exception:  # fewer bytes than the shape says; a runtime tells
            return


def tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
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
