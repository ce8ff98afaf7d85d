"""An ONNX file of anybody's making, read without trust in its content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError
from edgekd.files import content, reading
from edgekd.onnx_files import external, foreign
from edgekd.onnx_files.fused import PRODUCTS, attribute

if TYPE_CHECKING:
    import onnx

HEAD = 4096  # bytes by which another format is recognized


def read(path: Path | str) -> onnx.ModelProto:
    """Parses an ONNX file and the files with its weights; local functions become the operators that they stand for.

    Raises UsageError if it is not valid, or keeps weights where it may not; of another format it says which."""
    import onnx

    path = Path(path)
    what, hint = foreign.folder(path) if path.is_dir() else ("", "")
    if what:
        raise UsageError(Problem(str(path), f"{what}, not an ONNX file", hint))
    with reading(path):
        data = content(path, external.LIMIT)
    if not data:
        raise UsageError(Problem(str(path), "is empty, not an ONNX file", "give a .onnx file that a runtime can load"))
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's own error classes differ between its builds
        raise UsageError(foreign.problem(path, data[:HEAD])) from None
    if not model.graph.node or not model.graph.output or not model.ir_version:
        what, hint = foreign.kind(path, data[:HEAD])
        text = f"{what}, not an ONNX file" if what else "is not an ONNX file, or has no operators"
        raise UsageError(Problem(str(path), text, hint or "give a .onnx file that a runtime can load"))
    if external.outside(model):
        with reading(path):
            external.load(model, path)
    try:
        onnx.checker.check_model(str(path) if external.large(model) else _shaped(model))
    except Exception as error:  # the checker's own class, and protobuf's
        message = (str(error).strip() or "the checker refuses it").splitlines()[0][:300]
        raise UsageError(Problem(str(path), f"is not a valid ONNX file: {message}")) from None
    if wrong := next(filter(None, map(_unlike, model.graph.node)), ""):
        raise UsageError(Problem(str(path), f"is not a valid ONNX file: {wrong}"))
    return _inlined(model)


def _shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose outputs all have a shape, as onnx's checker wants it; onnxruntime finds it itself."""
    if all(
        o.type.WhichOneof("value") != "tensor_type" or o.type.tensor_type.HasField("shape") for o in model.graph.output
    ):
        return model
    copy = external.copied(model)
    for output in copy.graph.output:
        if output.type.WhichOneof("value") == "tensor_type":
            output.type.tensor_type.shape.SetInParent()
    return copy


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose local functions are replaced by their operators."""
    from onnx import inliner

    if not model.functions or external.large(model):
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception:  # onnx's own class; a runtime that takes the file inlines it itself
        return model


def _unlike(node: onnx.NodeProto) -> str:
    """Missing inputs or attributes of an operator of another domain, which onnx's checker doesn't check; "" if none are
    missing."""
    import onnx

    kind = node.op_type
    if kind == "MatMulNBits" and not all(attribute(node, name, 0) > 0 for name in ("K", "N")):
        return f"{kind} {node.name[:60]} lacks K or N"
    if node.domain in ("", "ai.onnx"):
        return ""
    named = onnx.defs.has(kind) and onnx.defs.get_schema(kind).min_input > 0
    least = 8 if kind in ("QLinearConv", "QLinearMatMul") else 3 if kind == "MatMulNBits" else int(named)
    least = max(least, 1 + max(PRODUCTS.get(kind, (-1,))))
    lacks = len(node.input) < least or not node.output
    return f"{kind} of domain {node.domain[:60]!r} lacks inputs or outputs" if lacks else ""
