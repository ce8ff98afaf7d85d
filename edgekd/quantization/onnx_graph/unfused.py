"""Convolutions and products that onnxruntime's optimizer fused with what follows them, as separate operators again, so
that they are quantized like others (docs/ContribOperators.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files.fused import attribute
from edgekd.quantization.onnx_graph.draft import Draft, copied

if TYPE_CHECKING:
    import onnx

FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
ACTIVATIONS = {  # {name: what `activation_params` are}
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}


def unfuse(model: onnx.ModelProto) -> None:
    """Replaces them in place; leaves what it doesn't know."""
    draft = Draft(model.graph)
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in FUSED and node.domain == "com.microsoft":
            made = _apart(node, draft, stored)
            if made:
                draft.replace([node], made)
    if draft.made:
        draft.write()


def sums(model: onnx.ModelProto) -> None:
    """A Gemm by a stored matrix whose third operand is no stored vector becomes a product and a sum, in place:
    onnxruntime's optimizer makes such a Gemm of a product and the residual that is added to it, and no integer kernel
    takes it."""
    from onnx import helper

    draft, stored = Draft(model.graph), {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        weight = stored.get(node.input[1]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        if weight is None or not _residual(node, stored):
            continue
        turned = _transposed(weight, draft) if attribute(node, "transB", 0) else node.input[1]
        made = draft.fresh(f"{node.output[0]}.MatMul")
        draft.replace(
            [node],
            [
                helper.make_node("MatMul", [node.input[0], turned], [made], name=node.name),
                helper.make_node("Add", [made, node.input[2]], list(node.output)),
            ],
        )
    if draft.made:
        draft.write()


def _residual(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Gemm adds all of its third operand to its plain product, and that is no number per output."""
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
    if not plain or node.input[0] in stored or not node.input[2]:
        return False
    added, weight = stored.get(node.input[2]), stored[node.input[1]]
    width = weight.dims[0 if attribute(node, "transB", 0) else 1]
    return added is None or math.prod(added.dims) not in (1, width) or [*added.dims[-1:]] not in ([], [1], [width])


def _apart(node: onnx.NodeProto, draft: Draft, stored: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The operators of a fused one; [] where they are not known."""
    import onnx
    from onnx import helper

    kind, operands, steps = FUSED[node.op_type], list(node.input), []
    if kind == "MatMul":
        if any(attribute(node, name) for name in ("transA", "transBatchA", "transBatchB")):
            return []
        if attribute(node, "transB"):
            turned = _transposed(stored.get(operands[1]), draft)
            if not turned:
                return []
            operands[1] = turned
        if attribute(node, "alpha", 1.0) != 1.0:
            factor = draft.store(f"{node.output[0]}.alpha", np.float32(attribute(node, "alpha", 1.0)))
            steps.append(("Mul", [factor], {}))
    if kind == "Conv" and len(operands) > 3:
        steps.append(("Add", [operands[3]], {}))
        operands = operands[:3]
    activation = attribute(node, "activation", b"").decode()
    if activation:
        given = attribute(node, "activation_params", None) or _gemm_parameters(node)
        if activation not in ACTIVATIONS or len(given or ()) < len(ACTIVATIONS[activation]):
            return []
        named = dict(zip(ACTIVATIONS[activation], given or (), strict=False))
        ends = [draft.store(f"{node.output[0]}.{n}", np.float32(v)) for n, v in named.items() if activation == "Clip"]
        steps.append((activation, ends, {} if activation == "Clip" else named))
    names = [draft.fresh(f"{node.output[0]}.{kind}") for _ in steps] + [node.output[0]]
    plain = helper.make_node(kind, operands, [names[0]], name=node.name)
    schema = onnx.defs.get_schema(kind, 13)
    plain.attribute.extend(copied(a) for a in node.attribute if a.name in schema.attributes)
    more = [
        helper.make_node(op, [before, *others], [after], **settings)
        for (op, others, settings), before, after in zip(steps, names[:-1], names[1:], strict=True)
    ]
    return [plain, *more]


def _gemm_parameters(node: onnx.NodeProto) -> tuple[float, ...] | None:
    given = (attribute(node, f"activation_{name}", None) for name in ("alpha", "beta"))
    return tuple(v for v in given if v is not None) or None


def _transposed(tensor: onnx.TensorProto | None, draft: Draft) -> str:
    """The name of a stored matrix with its last two axes exchanged; "" where it is not stored."""
    from onnx import numpy_helper

    if tensor is None or len(tensor.dims) < 2:
        return ""
    return draft.store(f"{tensor.name}.T", np.swapaxes(numpy_helper.to_array(tensor), -1, -2))
