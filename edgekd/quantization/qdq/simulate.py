"""What an int8 file in QDQ form computes, in whole numbers and numpy: a reference to be read, beside the torch
evaluation (`exact`) and onnxruntime. It knows the file only, nothing of the model that it was made from. The arithmetic
is in `kernels`; float operators (LayerNorm, GELU) are those of the ONNX reference implementation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import RunFailed
from edgekd.quantization.qdq.kernels import KERNELS, F, Lattice, Target, onto, products, wrapped

if TYPE_CHECKING:
    import onnx

# operators that move stored integers; onnxruntime drops the lattices around them
MOVES = {
    "Reshape",
    "Flatten",
    "Transpose",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Gather",
    "Tile",
    "Split",
    "Identity",
}


@dataclass(frozen=True)
class File:
    """A file with its groups: `kernels` {stored value: the operator that an integer kernel computes it from}, `inside`
    the values that such a kernel has no array of; `constants` {initializer: array}, `makers` {value: node}."""

    model: onnx.ModelProto
    constants: dict[str, np.ndarray]
    makers: dict[str, onnx.NodeProto]
    kernels: dict[str, onnx.NodeProto]
    inside: set[str]


def read(model: onnx.ModelProto) -> File:
    """Finds the groups as onnxruntime does (qdq_selectors.cc): an operator that has a kernel, all operands behind
    DequantizeLinear, read by one QuantizeLinear alone; a Relu or Clip may stand between if the lattice ends where it
    cuts."""
    from onnx import numpy_helper

    nodes, outputs = model.graph.node, {value.name for value in model.graph.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in nodes for name in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    alone = {name for name in makers if readers[name] == 1 and name not in outputs}
    kernels, inside = {}, set()
    for node in nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] not in makers:
            continue
        between, maker = [node.input[0]], makers[node.input[0]]
        if _absorbed(maker, node, constants) and maker.input[0] in makers:
            between, maker = [*between, maker.input[0]], makers[maker.input[0]]
        if maker.op_type not in KERNELS and (maker.op_type not in MOVES or len(between) > 1):
            continue
        operands = maker.input[: 1 if maker.op_type in MOVES else None]
        if alone.issuperset(between) and all(n in makers and makers[n].op_type == "DequantizeLinear" for n in operands):
            kernels[node.output[0]] = maker
            inside.update(between)
    return File(model, constants, makers, kernels, inside)


def _absorbed(node: onnx.NodeProto, quantize: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether the lattice behind a Relu or Clip ends where that cuts (onnxruntime: IsClipMadeRedundantByQ)."""
    if node.op_type not in ("Relu", "Clip"):
        return False
    scale, zero = (constants[name] for name in quantize.input[1:3])
    limits = np.iinfo(zero.dtype)
    low, high = ((F(q) - F(zero)) * F(scale) for q in (limits.min, limits.max))
    bounds = [constants.get(name) for name in node.input[1:]] if node.op_type == "Clip" else [F(0)]
    floor, ceiling = (*bounds, None, None)[:2]
    return (floor is None or low >= floor) and (ceiling is None or high <= ceiling)


def run(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """{name: array} of the values in a file: stored integers as uint8 or int8, all others float32; values inside a
    group have no array. `given`: values that later nodes read instead of the computed ones, so that differences don't
    add up."""
    file, values, lattices, found = read(model), dict(feed), {}, {}
    values |= file.constants
    for node in model.graph.node:
        if file.inside.issuperset(node.output):
            continue
        if node.op_type == "QuantizeLinear":
            made = [_stored(node, file, values, lattices)]
        elif node.op_type == "DequantizeLinear":
            zero = values[node.input[2]] if len(node.input) > 2 else np.zeros((), values[node.input[0]].dtype)
            lattices[node.output[0]] = Lattice(
                values[node.input[0]], values[node.input[1]], zero, _attributes(node).get("axis", 1)
            )
            made = [lattices[node.output[0]].real()]
        elif node.op_type in ("MatMul", "Gemm") and lattices.keys() >= set(
            node.input
        ):  # MatMulIntegerToFloat, QGemm without a lattice
            sums, scale = products(_attributes(node), [lattices[name] for name in node.input])
            made = [wrapped(sums).astype(F) * scale]
        else:
            made = _float(node, model, values)
        for name, array in zip(node.output, made, strict=True):
            found[name] = array
            values[name] = (given or {}).get(name, array)
    return found


def _stored(
    node: onnx.NodeProto, file: File, values: Mapping[str, np.ndarray], lattices: Mapping[str, Lattice]
) -> np.ndarray:
    """What a QuantizeLinear stores."""
    scale, zero = (values[name] for name in node.input[1:3])
    target, maker = Target(F(scale.item()), int(zero.item()), zero.dtype), file.kernels.get(node.output[0])
    if maker is None:
        return target.quantize(values[node.input[0]])
    if maker.op_type in MOVES:
        x = lattices[maker.input[0]]
        moved = _float(maker, file.model, {**values, maker.input[0]: x.q})
        return onto(Lattice(moved[list(maker.output).index(node.input[0])], x.scale, x.zero), target)
    return KERNELS[maker.op_type](_attributes(maker), [lattices[name] for name in maker.input], target)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _float(node: onnx.NodeProto, model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A node by the ONNX reference implementation."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    kinds = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape)
        for n in dict.fromkeys(node.input)
        if n
    ]
    outputs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
    one = helper.make_model(
        helper.make_graph([node], "one", kinds, outputs), opset_imports=model.opset_import, ir_version=model.ir_version
    )
    with np.errstate(over="ignore", invalid="ignore"):  # its sigmoid computes both branches everywhere
        return ReferenceEvaluator(one).run(None, {k.name: values[k.name] for k in kinds})


# ---------------------------------------------------------------- beside onnxruntime


@dataclass(frozen=True)
class Row:
    """A stored value, simulated from onnxruntime's own operands: `differ` of `values` are others there, by at most
    `steps` of the lattice. `integer`: an integer kernel made it, so that none should differ; else a float operator did,
    whose last bits are free."""

    name: str
    operator: str
    integer: bool
    values: int
    differ: int
    steps: float


def compare(path: Path, feed: Mapping[str, np.ndarray]) -> list[Row]:
    """Each stored value of a file operator by operator against onnxruntime, from onnxruntime's own operands; the file's
    outputs last."""
    import onnx

    from edgekd.quantization.torch_graph.check import file_values
    from edgekd.runtimes.onnxruntime import load

    file = read(onnx.load(path))
    stored = [n.output[0] for n in file.model.graph.node if n.op_type == "QuantizeLinear"]
    theirs, plain = file_values(path, stored, feed), load(str(path), 1)(dict(feed))
    changed = [name for name in plain if not np.array_equal(plain[name], theirs[name], equal_nan=True)]
    if changed:
        raise RunFailed(f"onnxruntime computes `{changed[0]}` otherwise when the values inside are shown")
    ours = run(file.model, feed, {name: theirs[name] for name in stored})
    return [_row(file, name, ours[name], theirs[name]) for name in (*stored, *plain)]


def _row(file: File, name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    node = file.makers[name]
    lattice = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    step = float(file.constants[node.input[1]]) if node.op_type == "DequantizeLinear" else 1.0
    apart = np.abs(ours.astype(np.float64) - theirs) / step
    maker = file.kernels.get(name) or (
        file.makers.get(node.input[0], node) if node.op_type == "QuantizeLinear" else node
    )
    integer = name in file.kernels or lattice and maker.op_type in ("QuantizeLinear", "DequantizeLinear")
    return Row(name, maker.op_type, integer, apart.size, int((apart > 0).sum()), float(apart.max(initial=0)))
