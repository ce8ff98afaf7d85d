"""What a model takes and gives: types and shapes by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem

if TYPE_CHECKING:
    import onnx

Dim = int | str | None  # a number, the name of a symbolic dimension, or open
LENGTHS = ("seq", "time", "len", "step", "frame", "token", "height", "width", "t", "l", "h", "w")  # names of dimensions


@dataclass(frozen=True)
class Tensor:
    """`dtype` None: no tensor of numbers; `dims` None: a shape of which nothing is known."""

    dtype: np.dtype[Any] | None
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Signature:
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    first: bool = False  # samples lie along the first axis of an only input, whatever is open
    named: str | None = None  # the symbolic dimension that a person named as that of samples

    def sample_dim(self) -> str | None:
        """The symbolic dimension that inputs share: that of most of them, then one that is called batch, then that
        which is first in most. Of a file's only input its only open dimension, where that is not the first. None where
        there is none. The one that a person named before all."""
        if self.named is not None:
            return self.named
        where: dict[str, dict[str, int]] = {}
        for name, tensor in self.inputs.items():
            for axis, dim in enumerate(tensor.dims or ()):
                if isinstance(dim, str):
                    where.setdefault(dim, {}).setdefault(name, axis)
        several = {dim: axes for dim, axes in where.items() if len(axes) > 1}
        rank = lambda dim: (len(several[dim]), "batch" in dim.lower(), sum(a == 0 for a in several[dim].values()))
        return max(several, key=rank, default=None if self.first else self._behind())

    def _behind(self) -> str | None:
        """The only open dimension of the only input, behind one of more than 1: of `[steps, N, values]`. What outputs
        don't have, or what is called a length, are not samples: the first dimension is then a fixed number of them."""
        dims = next(iter(self.inputs.values())).dims if len(self.inputs) == 1 else None
        left = [d for d in dims or () if not isinstance(d, int)]
        if len(left) != 1 or left[0] is None or not isinstance(dims[0], int) or dims[0] < 2:
            return None
        words = re.findall("[a-z]+", left[0].lower())
        length = any(w in LENGTHS or any(w.startswith(n) for n in LENGTHS if len(n) > 1) for w in words)
        kept = all(t.dims is None or left[0] in t.dims for t in self.outputs.values())
        return left[0] if self.outputs and kept and not length else None

    def answer_axes(self) -> dict[str, int]:
        """{output: the axis of its samples}, of those where it is not the first."""
        dim = self.sample_dim()
        found = {n: t.dims.index(dim) for n, t in self.outputs.items() if t.dims and dim is not None and dim in t.dims}
        return {name: axis for name, axis in found.items() if axis}

    def classes(self) -> int | None:
        """How many classes the only output tells apart; None where it is no scores [n, classes]."""
        tensors = list(self.outputs.values())
        dims = tensors[0].dims if len(tensors) == 1 else None
        if dims is None or len(dims) != 2 or not isinstance(dims[1], int) or tensors[0].dtype is None:
            return None
        return max(2, dims[1]) if tensors[0].dtype.kind == "f" else None  # one logit says yes or no


def differing(first: Signature, second: Signature, names: Sequence[str]) -> list[Problem]:
    """Why two files, of these names, can't be run on the same samples."""
    if set(first.inputs) != set(second.inputs):
        text = f"takes the inputs {', '.join(second.inputs)}, and {names[0]} takes {', '.join(first.inputs)}"
        return [Problem(names[1], text, "give two files of the same network")]
    problems = []
    for name, tensor in first.inputs.items():
        other = second.inputs[name].dtype
        if tensor.dtype is not None and other is not None and tensor.dtype != other:
            text = f"takes {name} as {other}, and {names[0]} as {tensor.dtype}"
            hint = "give the file that `quantize` makes without --input, --layout and --fold-preprocess: it has the "
            hint += "same layers. `edgekd try` runs both files on the same images"
            camera = np.dtype(np.uint8) in (tensor.dtype, other)
            problems.append(Problem(names[1], text, hint if camera else "give two files of the same network"))
    return problems


def of_model(model: onnx.ModelProto) -> Signature:
    """Of an ONNX file; old files list their initializers as inputs too."""
    stored = {i.name for i in model.graph.initializer}
    inputs = {v.name: _tensor(v) for v in model.graph.input if v.name not in stored}
    return Signature(inputs, {v.name: _tensor(v) for v in model.graph.output})


def of_runtime(told: Mapping[str, tuple[str | None, Sequence[int | None]]]) -> Signature:
    """Of what a runtime says of a file's inputs: {input: (type, shape)}."""
    return Signature({n: Tensor(None if kind is None else np.dtype(kind), tuple(s)) for n, (kind, s) in told.items()})


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    from onnx import helper

    if not value.type.HasField("tensor_type"):
        return Tensor(None, None)
    kind = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        dtype = None
    if not kind.HasField("shape"):
        return Tensor(dtype, None)
    dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return Tensor(dtype, tuple(dims))
