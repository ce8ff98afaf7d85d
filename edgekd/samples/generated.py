"""Seeded random samples that fit a model's inputs: good for times, no answers mean anything."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.samples import axes
from edgekd.samples.rows import Axis, Samples
from edgekd.samples.signature import Signature

COUNT = 16  # samples
MOST = 2**28  # values of an input


def random(signature: Signature, asked: Mapping[str, int | None] | None = None) -> Samples:
    """Samples by type and shape: normal numbers, all values of a byte, 0 and 1 for wider integers (which often are
    indices). Raises UsageError where a shape leaves more open than the number of samples."""
    asked = asked or {}
    problems, found = axes.unknown(signature, asked), {}
    if not signature.inputs:
        problems.append(Problem("the model", "takes no input: it computes the same every time"))
    if problems:
        raise UsageError(*problems)
    generator, where = np.random.default_rng(0), axes.expected(signature, asked)
    for name, tensor in signature.inputs.items():
        axis, place, hint = where[name], f"input {name}", "give samples with --data FILE.npz"
        dims = tensor.dims
        if tensor.dtype is None or tensor.dtype.kind not in "fiub":
            problems.append(Problem(place, "is not a tensor of numbers"))
            continue
        if dims is None:
            problems.append(Problem(place, "has no shape", hint))
            continue
        rest = [d for i, d in enumerate(dims) if i != axis]
        known = [d for d in rest if isinstance(d, int)]
        shape = ((1 if axis is None else COUNT), *known)
        if len(known) < len(rest):
            left = ", ".join(str(d or "?") for d in rest if not isinstance(d, int))
            problems.append(Problem(place, f"leaves {left} open", hint))
        elif axis is not None and isinstance(dims[axis], int) and dims[axis] * math.prod(known) > MOST:
            problems.append(Problem(place, f"has the shape {list(dims)}", "export it with an open number of samples"))
        elif min(shape) < 1 or math.prod(shape) > MOST:
            problems.append(Problem(place, f"has samples of shape {list(shape[1:])}", hint))
        else:
            values = _drawn(generator, tensor.dtype, shape)
            found[name] = values if axis is not None else np.broadcast_to(values, (COUNT, *known))
    if problems:
        raise UsageError(*problems)
    taken: dict[str, Axis] = {name: where[name] for name in found}
    return Samples(found, taken, signature.answer_axes(), axes.size(signature, taken))


def _drawn(generator: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind in "iu":
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if dtype.itemsize == 1 else (0, 2)
        return generator.integers(low, high, shape).astype(dtype)
    values = generator.integers(0, 2, shape) if dtype.kind == "b" else generator.normal(size=shape)
    return values.astype(dtype)
