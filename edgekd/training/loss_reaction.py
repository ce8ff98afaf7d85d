"""Whether a loss depends on the student: its value and gradient, on a model's own outputs and on random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import THEIRS
from edgekd.inputs import positional
from edgekd.records import Signals
from edgekd.training.terms import Bound, Term

if TYPE_CHECKING:
    import torch

    from edgekd.records import Batch

# outputs of models that end in a softmax or sigmoid are shares
DRAWS = (("scores", 1.0), ("scores", 10.0), ("shares", 1.0)) * 2
ROUNDING = 1e-6  # a gradient that is this share of what the value changes by is float32's rounding


def shares(term: Term) -> list[float]:
    """The shares of a training at which a term is checked: the points of its schedule, and between them."""
    points = sorted({0.0, 1.0, *(float(share) for curve in term.schedule.values() for share, _ in curve)})
    return (
        sorted({*points, *((a + b) / 2 for a, b in zip(points, points[1:], strict=False))}) if term.schedule else [0.0]
    )


def inert(bound: Bound, seen: Signals, taught: Signals | None, batch: Batch) -> str:
    """Why a term does not depend on the student's output or taps, on random ones and on `seen`; "" if it does at any
    share with a weight above 0. Random outputs that raise are left out: a user's loss may take only outputs of its own
    model."""
    term, values, drawn, steepest = bound.term, [], [], 0.0
    weighed = [s for s in shares(term) if term.at(s, {term.teacher or "": s})[0]]
    for share in weighed:
        for number, kind in enumerate((None, *DRAWS)):
            ours = seen if kind is None else _drawn(seen, kind, 2 * number, True)
            theirs = taught if kind is None else _drawn(taught, kind, 2 * number + 1, False)
            found = _pull(bound, ours, theirs, batch, share, {term.teacher or "": share})
            if found is not None:
                values.append(found[0])
                drawn += [found[0]] if kind is not None else []
                steepest = max(steepest, found[1])
    if not weighed:
        return ""  # its weight is 0
    if not values:
        return "and on those of untrained models its value or gradient is never finite"
    told = drawn if len(drawn) > 1 else values  # a model's own outputs may be of any size, and the gradient is not
    spread = max(told) - min(told)
    if len(told) == 1 and steepest:
        return ""  # a single value can't be compared
    if not steepest > ROUNDING * spread:
        return "its gradient is always 0" + ("" if spread else f", its value always {values[0]:g}")
    return "" if spread else f"its value is always {values[0]:g}"


def _pull(
    bound: Bound, ours: Signals, theirs: Signals | None, batch: Batch, share: float, agreement: Mapping[str, float]
) -> tuple[float, float] | None:
    """(value, largest entry of the gradient with respect to the student's output and taps); None if the term raises, or
    one is not finite."""
    import torch

    leaves = [t for t in _tensors(ours) if t.requires_grad]
    try:
        value = bound.rows(ours, theirs, batch, share, agreement)[1].sum()
        gradients = (
            torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) if value.requires_grad else ()
        )
    except THEIRS:  # a user's loss; problems with a model's own outputs are reported elsewhere
        return None
    steepest = max((g.abs().max().item() for g in gradients if g is not None and g.numel()), default=0.0)
    return (value.item(), steepest) if np.isfinite([value.item(), steepest]).all() else None


def _drawn(like: Signals | None, kind: tuple[str, float], seed: int, learns: bool) -> Signals | None:
    """Random signals of the same shapes and types."""
    import torch

    if like is None:
        return None
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: draw(value) for name, value in x.items()}
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        made = kind[1] * torch.randn(x.shape, generator=generator)
        if kind[0] == "shares":
            made = made.softmax(-1) if made.ndim > 1 and made.shape[-1] > 1 else made.sigmoid()
        return made.to(x.dtype).requires_grad_(learns)

    label = None if like.label is None else like.label[torch.randperm(len(like.label), generator=generator)]
    return Signals(draw(like.output), {path: draw(tap) for path, tap in like.taps.items()}, label, like.kind)


def _tensors(signals: Signals) -> list[torch.Tensor]:
    import torch

    outputs = list(positional(signals.output))
    return [x for x in (*outputs, *signals.taps.values()) if isinstance(x, torch.Tensor)]
