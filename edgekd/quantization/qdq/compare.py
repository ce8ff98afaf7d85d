"""An int8 file's simulation beside onnxruntime, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import RunFailed
from edgekd.onnx_files.shapes import PLAIN
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


def compare(path: Path, feed: Mapping[str, np.ndarray]) -> list[Row]:
    """Each stored value of a file operator by operator against onnxruntime, from onnxruntime's own operands; the file's
    outputs last."""
    import onnx

    from edgekd.runtimes.onnxruntime import load

    file = simulate.read(onnx.load(path))
    stored = [n.output[0] for n in file.graph.nodes if n.op_type == "QuantizeLinear"]
    own = [o for n in file.graph.nodes if n.domain not in PLAIN for o in n.output if o]  # not in the reference
    theirs, plain = file_values(path, [*stored, *own], feed), load(str(path), 1)(dict(feed))
    changed = [name for name in plain if not np.array_equal(plain[name], theirs[name], equal_nan=True)]
    if changed:
        raise RunFailed(f"onnxruntime computes `{changed[0]}` otherwise when the values inside are shown")
    ours = simulate.compute(file, feed, {name: theirs[name] for name in (*stored, *own)})
    return [_row(file, name, ours[name], theirs[name]) for name in (*stored, *plain)]


def _row(file: simulate.File, name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    node = file.graph.makers[name]
    step = float(file.graph.constants[node.input[1]]) if node.op_type == "DequantizeLinear" else 1.0
    apart = np.abs(ours.astype(np.float64) - theirs) / step
    maker = file.kernels.get(name) or _maker(file, node)
    integer = name in file.kernels or node.op_type in QUANTIZERS and maker.op_type in QUANTIZERS
    return Row(name, maker.op_type, integer, apart.size, int((apart > 0).sum()), float(apart.max(initial=0)))


def _maker(file: simulate.File, node: onnx.NodeProto) -> onnx.NodeProto:
    """What computes a value: of stored integers the operator before QuantizeLinear."""
    return file.graph.makers.get(node.input[0], node) if node.op_type == "QuantizeLinear" else node
