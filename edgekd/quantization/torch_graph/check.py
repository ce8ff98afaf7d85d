"""The exported file equals the fake-quantized model, or it is not exported: the rule, and the search for the first
layer that differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem, RunFailed
from edgekd.quantization.qdq.values import file_values
from edgekd.records import Grid

if TYPE_CHECKING:
    from torch import fx

EQUAL = 0.95  # share of output values that must be equal
ANSWERS = 0.999  # share of answers that must be equal, where there are MANY samples
MANY = 2000
BEYOND, FARTHEST = 0.001, 3  # with layers in float: share of values that may be more than one step apart, and how far


@dataclass(frozen=True)
class Equality:
    """How a file's outputs compare with the model's, in steps of the output's scale. `reasons`: why the rule is
    broken; () if it holds."""

    samples: int
    equal: float
    most_steps: float
    answers: float
    reasons: tuple[str, ...]


def compare(model: np.ndarray, file: np.ndarray, step: float, *, floats: bool = False) -> Equality:
    """Outputs [n, ...] of the fake-quantized model and of the file: no value further than one step, at least 95 %
    equal, every differing answer between classes at most one step apart in the model, and 99.9 % of answers equal where
    there are 2,000 samples.

    `floats`: some layers stay in float between integer ones. The runtime sums there in another order, a value next to a
    tie then falls to the other side, and such single steps meet further on: one value in a thousand may be up to 3
    steps away, an answer with it."""
    if model.shape != file.shape:
        return Equality(
            len(model), 0.0, np.inf, 0.0, (f"the outputs' shapes differ: {list(model.shape)} and {list(file.shape)}",)
        )
    steps = np.abs(model.astype(np.float64) - file) / step
    steps[np.isnan(steps)] = np.inf
    equal, most, reasons = float((steps < 0.25).mean()), float(steps.max(initial=0)), []
    rare = floats and most <= FARTHEST + 0.25 and float((steps > 1.25).mean()) <= BEYOND
    if most > 1.25 and not rare:
        reasons.append(f"an output differs by {most:.1f} steps")
    if equal < EQUAL:
        reasons.append(f"only {100 * equal:.2f} % of the outputs are equal")
    same = 1.0
    if model.ndim == 2 and model.shape[1] > 1:
        ours, theirs, rows = model.argmax(1), file.argmax(1), np.arange(len(model))
        same = float((ours == theirs).mean())
        apart = (model[rows, ours] - model[rows, theirs]) / step
        if (apart > 1.25).any() and not (rare and float((apart > 1.25).mean()) <= BEYOND):
            reasons.append(
                f"{int((apart > 1.25).sum())} answers differ between classes that are more than one step apart"
            )
        if len(model) >= MANY and same < ANSWERS:
            reasons.append(f"only {100 * same:.3f} % of the answers are equal")
    return Equality(len(model), equal, most, same, tuple(reasons))


def first_difference(
    module: fx.GraphModule,
    grid: Grid,
    path: Path,
    names: Mapping[str, str],
    inputs: Any,
    feed: Mapping[str, np.ndarray],
) -> str:
    """Where file and model part: the first site in graph order that differs by more than a step, with the two values
    and a likely cause.

    `names`: {site: its value in the file}; `inputs` tensors and `feed` arrays are the same few samples."""
    from edgekd.quantization.torch_graph.exact import evaluate

    ours = {site: values.numpy() for site, values in evaluate(module, inputs, sites=True)[1].items()}
    theirs = file_values(path, [names[s] for s in grid.sites if s in names], feed)
    for site in (name for name in ours if name in names):
        step = grid.sites[site].scale[0]
        a, b = ours[site], theirs[names[site]]
        if a.shape != b.shape:
            return f"first at `{site}`: shape {list(a.shape)} in the model, {list(b.shape)} in the file"
        apart = np.abs(a - b) / step
        if apart.max(initial=0) > 1.5 or (apart > 0.25).mean() > 0.2:
            at = np.unravel_index(int(apart.argmax()), apart.shape)
            return (
                f"first at `{site}`: {a[at]:.6g} in the model, {b[at]:.6g} in the file at {tuple(int(i) for i in at)} "
                f"({apart.max():.1f} steps, {100 * (apart > 0.25).mean():.1f} % of its values); likely "
                f"{_cause(a, b, grid.sites[site])}"
            )
    return "no single layer differs by more than a step: roundings add up over the depth"


def _cause(a: np.ndarray, b: np.ndarray, site: Any) -> str:
    """A guess from the shape of the difference."""
    scale, zero = site.scale[0], site.zero_point
    low, high = (site.low - zero) * scale, (site.high - zero) * scale
    clipped = np.mean((np.abs(b - low) < scale / 4) | (np.abs(b - high) < scale / 4))
    if clipped > np.mean((np.abs(a - low) < scale / 4) | (np.abs(a - high) < scale / 4)) + 0.05:
        return "saturation: the file's values pile up at the ends of the range"
    difference = (b - a).reshape(len(a), -1)
    if a.ndim >= 2:
        channels = np.moveaxis(b - a, 1, 0).reshape(a.shape[1], -1)
        bad = np.abs(channels).max(1) > scale
        moved = channels[bad][np.abs(channels[bad]) > scale]  # a bias moves all one way, weights both ways
        if (
            bad.any()
            and all(len(np.unique(np.sign(c[np.abs(c) > scale]))) == 1 for c in channels[bad])
            and len(moved) > 8
        ):
            return f"the bias of {int(bad.sum())} of {len(bad)} channels"
        if 0 < bad.sum() < len(bad):
            return f"the weights of {int(bad.sum())} of {len(bad)} channels"
    return "its scale or weights" if difference.std() > 2 * scale else "the rounding of its kernel"


def refuse(equality: Equality, where: str) -> None:
    """Raises RunFailed for a broken rule."""
    message = f"the exported file is not the model that was trained: {'; '.join(equality.reasons)}; {where}"
    raise RunFailed(Problem("", message, "`quantize` with fewer exotic operators, or keep this model in float"))
