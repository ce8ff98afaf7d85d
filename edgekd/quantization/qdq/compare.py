"""An int8 file's simulation beside onnxruntime, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import RunFailed
from edgekd.onnx_files.known import PLAIN
from edgekd.quantization.qdq import simulate
from edgekd.quantization.qdq.graph import QUANTIZERS
from edgekd.quantization.qdq.values import file_values

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Row:
    """A stored value, simulated from onnxruntime's own operands: `differ` of `values` are others there, by at most
    `steps` of the quantization scale. `integer`: an integer kernel made it, so that none should differ; else a float
    operator did, whose last bits are free."""

    name: str
    operator: str
    integer: bool
    values: int
    differ: int
    steps: float


def compare(path: Path, feed: Mapping[str, np.ndarray], *, integers: bool = False) -> list[Row]:
    """Each stored value of a file operator by operator against onnxruntime, from onnxruntime's own operands; the file's
    outputs last. `integers`: only those that integer kernels make, and no float operator is computed."""
    import onnx

    from edgekd.runtimes.onnxruntime import load

    file = simulate.read(onnx.load(path))
    stored = [n.output[0] for n in file.graph.nodes if n.op_type == "QuantizeLinear"]
    # operators that the reference doesn't have
    own = [] if integers else [o for n in file.graph.nodes if n.domain not in PLAIN for o in n.output if o]
    theirs, plain = file_values(path, [*stored, *own], feed), load(str(path), 1)(dict(feed))
    changed = [name for name in plain if not _same(plain[name], theirs[name])]
    if changed:
        raise RunFailed(f"onnxruntime computes `{changed[0]}` otherwise when the values inside are shown")
    # an output may be an input or a constant, which nothing computes, or hold no numbers
    numbers = [name for name in plain if name in file.graph.makers and _numbers(plain[name])]
    wanted = [name for name in (*stored, *numbers) if not integers or _integer(file, name)]
    ours = simulate.compute(file, feed, {name: theirs[name] for name in (*stored, *own)}, wanted)
    return [_row(file, name, ours[name], theirs[name]) for name in wanted]


def _numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal: arrays of numbers or text, or lists of them."""
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(*pair) for pair in zip(a, b, strict=True))
    return np.array_equal(a, b, equal_nan=_numbers(a) and a.dtype.kind == "f")


def _integer(file: simulate.File, name: str) -> bool:
    """Whether an integer kernel makes a stored value or an output."""
    node = file.graph.makers[name]
    made = node.op_type in QUANTIZERS and _maker(file, node).op_type in QUANTIZERS
    return name in file.kernels or made


def _row(file: simulate.File, name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    node = file.graph.makers[name]
    step = float(file.graph.constants[node.input[1]]) if node.op_type == "DequantizeLinear" else 1.0
    apart = np.abs(np.subtract(ours, theirs, dtype=np.int16 if ours.dtype.itemsize == 1 else np.float64))
    maker = file.kernels.get(name) or _maker(file, node)
    return Row(
        name,
        maker.op_type,
        _integer(file, name),
        apart.size,
        int((apart > 0).sum()),
        float(apart.max(initial=0)) / step,
    )


def _maker(file: simulate.File, node: onnx.NodeProto) -> onnx.NodeProto:
    """What computes a value: of stored integers the operator before QuantizeLinear."""
    return file.graph.makers.get(node.input[0], node) if node.op_type == "QuantizeLinear" else node
