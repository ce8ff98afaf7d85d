"""Operators of onnxruntime's own (domain com.microsoft and others), which onnx does not know: the shapes of what they
make.

After onnxruntime's docs/ContribOperators.md. What is not listed has no known shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from edgekd.onnx_files.known import Known

Shape = tuple[int, ...]
# what computes the shape of its first input, element by element or along an axis
SAME = frozenset(
    {
        "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasSplitGelu", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "QLinearLeakyRelu", "QLinearSigmoid",
        "QLinearSoftmax", "DequantizeLinear", "QuantizeLinear", "RotaryEmbedding", "GroupNorm", "BiasSoftmax",
        "BiasDropout", "SkipGroupNorm", "Inverse",
    }
)  # fmt: skip
# {operator: (the standard operator that it extends, the inputs that are that one's)}
STANDARD: dict[str, tuple[str, tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "FusedMatMulActivation": ("MatMul", (0, 1)),
    "GemmFastGelu": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearConcat": ("Concat", ()),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QGemm": ("Gemm", (0, 3, 6)),
}
# {operator: the places of its two operands}, of convolutions and products, onnx's own among them
PRODUCTS = dict.fromkeys(
    (
        *("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits"),
        *("FusedConv", "FusedGemm", "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "GemmFastGelu"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    ),
    (0, 1),
) | dict.fromkeys(("QGemm", "QLinearMatMul", "QLinearConv"), (0, 3))
# {operator: the input of whose type its output is}, where that is not the first; of one that is left out float32
_TYPES = {
    "DequantizeLinear": 1, "EmbedLayerNormalization": 2, "MatMulIntegerToFloat": 2, "QAttention": 2, "QGemm": 8,
    "QEmbedLayerNormalization": 5, "QLinearConcat": 1, "QuantizeLinear": 2,
}  # fmt: skip


def types(node: onnx.NodeProto, known: Known) -> dict[str, onnx.TypeProto]:
    """{output: type} of the first output of an operator of another domain than onnx's, as far as its shape is known."""
    import onnx

    shape = made(node, known)
    if shape is None or not node.output:
        return {}
    return {node.output[0]: onnx.helper.make_tensor_type_proto(_kind(node, known), shape)}


def made(node: onnx.NodeProto, known: Known) -> Shape | None:
    """The shape of an operator's first output; None if it is not known."""
    kind, shapes = node.op_type, [known.shape(n) if n else None for n in node.input]
    first = shapes[0] if shapes else None
    if first is None:
        return None
    if kind in SAME:
        return first
    if kind in STANDARD:
        return _standard(node, known)
    rule = RULES.get(kind)
    try:
        return None if rule is None else rule(node, shapes)
    except (IndexError, TypeError):  # fewer inputs or axes than it takes, or one that is not known
        return None


def attribute(node: onnx.NodeProto, name: str, default: Any = 0) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _kind(node: onnx.NodeProto, known: Known) -> int:
    """The element type of what an operator makes."""
    import onnx

    place = _TYPES.get(node.op_type, 0)
    kind = known.types.get(node.input[place]) if place < len(node.input) else None
    if kind is not None:
        return kind.tensor_type.elem_type
    return onnx.TensorProto.UINT8 if node.op_type == "QuantizeLinear" else onnx.TensorProto.FLOAT


def _standard(node: onnx.NodeProto, known: Known) -> Shape | None:
    """By onnx's rule of the operator that this one extends."""
    import onnx
    from onnx import helper

    plain, places = STANDARD[node.op_type]
    names = [node.input[i] for i in places if i < len(node.input) and node.input[i]]
    names = list(node.input[2::3]) if plain == "Concat" else names
    shapes = [known.shape(n) for n in names]
    if any(s is None for s in shapes):
        return None
    schema = onnx.defs.get_schema(plain, 13)
    kept = [a for a in node.attribute if a.name in schema.attributes]
    one = helper.make_node(plain, [f"i{i}" for i in range(len(names))], ["o"])
    one.attribute.extend(kept)
    kinds = {f"i{i}": helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, s) for i, s in enumerate(shapes)}
    try:
        (found,) = onnx.shape_inference.infer_node_outputs(
            schema, one, kinds, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
        ).values()
    except Exception:  # onnx's own class
        return None
    dims = found.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _product(node: onnx.NodeProto, shapes: list[Any]) -> Shape:
    """FusedMatMul: [..., m, k] by [..., k, n], each transposed or not."""
    a, b = shapes[0], shapes[1]
    rows, columns = a[-1 if attribute(node, "transA") else -2], b[-2 if attribute(node, "transB") else -1]
    many = max(a[:-2], b[:-2], key=lambda s: (len(s), math.prod(s)))
    return (*many, rows, columns)


def _attention(node: onnx.NodeProto, shapes: list[Any]) -> Shape:
    """Attention and QAttention: [batch, tokens, features] and weights of queries, keys and values side by side."""
    sizes = attribute(node, "qkv_hidden_sizes", None)
    return (*shapes[0][:-1], sizes[2] if sizes else shapes[1][-1] // 3)


def _many_heads(node: onnx.NodeProto, shapes: list[Any]) -> Shape:
    """MultiHeadAttention of [batch, tokens, features]."""
    value = shapes[2] if len(shapes) > 2 and shapes[2] is not None else shapes[0]
    if len(shapes[0]) != 3:
        raise IndexError
    return (*shapes[0][:-1], value[-1] if len(value) == 3 else value[1] * value[3])


RULES: dict[str, Callable[[Any, list[Any]], Shape]] = {
    "FusedMatMul": _product,
    "TransposeMatMul": _product,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _many_heads,
    "GroupQueryAttention": lambda node, shapes: shapes[0],
    "MatMulNBits": lambda node, shapes: (*shapes[0][:-1], attribute(node, "N")),
    "EmbedLayerNormalization": lambda node, shapes: (*shapes[0], shapes[2][-1]),
    "QEmbedLayerNormalization": lambda node, shapes: (*shapes[0], shapes[2][-1]),
}
