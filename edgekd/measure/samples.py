"""Samples for files of anybody's making: from an .npz, or seeded random ones that fit a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.probes import static
from edgekd.results import load_arrays

if TYPE_CHECKING:
    import onnx

LIMIT = 2**34  # bytes of data, unpacked: a small archive may claim more than the memory there is
COUNT = 16  # of random samples


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(inputs by name, labels) of an .npz; the name "" stands for a file's only input. Raises UsageError with every
    problem."""
    arrays = load_arrays(path, LIMIT, "write it with np.savez(path, inputs=..., labels=...)")
    labels = arrays.pop("labels", None)
    inputs = {"" if name == "inputs" else name: array for name, array in arrays.items()}
    problems = []
    if not inputs:
        problems.append(Problem(str(path), "has no `inputs`", "write it with np.savez(path, inputs=..., labels=...)"))
    elif "" in inputs and len(inputs) > 1:
        others = ", ".join(name for name in inputs if name)
        problems.append(
            Problem(str(path), f"has `inputs` and also {others}", "either `inputs`, or one array per input name")
        )
    counts = {name or "inputs": array.shape[:1] for name, array in inputs.items()} | (
        {} if labels is None else {"labels": labels.shape[:1]}
    )
    if len(set(counts.values())) > 1 or any(not n or not n[0] for n in counts.values()):
        shown = ", ".join(f"{name}: {n[0] if n else 'none'}" for name, n in counts.items())
        problems.append(Problem(str(path), f"the arrays must have the same number of rows, at least one ({shown})"))
    if problems:
        raise UsageError(*problems)
    return inputs, labels


def random(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Seeded inputs by type and shape, for an ONNX file."""
    inner, signature = {tensor.name for tensor in model.graph.initializer}, {}
    for value in model.graph.input:
        if value.name not in inner:
            kind, dims = value.type.tensor_type, value.type.tensor_type.shape.dim
            dtype = static.dtype(kind.elem_type) if value.type.HasField("tensor_type") else None
            shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]
            signature[value.name] = None if dtype is None else dtype.name, shape
    return drawn(signature)


def drawn(signature: Mapping[str, tuple[str | None, Sequence[int | str | None]]]) -> dict[str, np.ndarray]:
    """Seeded inputs {name: (type, shape)}: normal numbers, all values of a byte, 0 and 1 for wider integers (which
    often are indices). What of a shape is no number is open."""
    generator, found, problems = np.random.default_rng(0), {}, []
    for name, (kind, dims) in signature.items():
        dtype, where, hint = np.dtype(kind or "O"), f"input {name}", "give samples with --data FILE.npz"
        open_dims = [str(d or "?") for d in dims[1:] if not isinstance(d, int)]
        shape = (COUNT, *(d for d in dims[1:] if isinstance(d, int)))
        if dtype.kind not in "fiub":
            problems.append(Problem(where, "is not a tensor of numbers"))
        elif not dims or open_dims:
            what = "has no axis of samples" if not dims else f"leaves {', '.join(open_dims)} open"
            problems.append(Problem(where, what, hint))
        elif min(shape) < 1 or math.prod(shape) > 2**28:
            problems.append(Problem(where, f"has samples of shape {list(shape[1:])}", hint))
        elif dtype.kind in "iu":
            low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if dtype.itemsize == 1 else (0, 2)
            found[name] = generator.integers(low, high, shape).astype(dtype)
        else:
            values = generator.integers(0, 2, shape) if dtype.kind == "b" else generator.normal(size=shape)
            found[name] = values.astype(dtype)
    if problems:
        raise UsageError(*problems)
    return found
