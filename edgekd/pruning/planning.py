"""A pruning plan: the widths, which depend only on the architecture and are chosen before any training; then the
channels, which depend on the trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError
from edgekd.pruning import cost, points
from edgekd.pruning.check import Trials, proved
from edgekd.pruning.coupling import Forward, Group, Refusal, coupled, removals
from edgekd.pruning.history import apply
from edgekd.pruning.weights import Channels, weights
from edgekd.records import plainly

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 0.02  # relative to the requested MACs


@dataclass(frozen=True)
class PruningPlan:
    """`removed`: the number of units removed from each group; `requested` and `reached`: shares of the `before` MACs;
    `refused`: layers that are not pruned."""

    requested: float
    before: int
    after: int
    groups: tuple[Group, ...]
    removed: tuple[int, ...]
    refused: tuple[Refusal, ...]

    @property
    def reached(self) -> float:
        return self.after / self.before

    @property
    def error(self) -> float:
        """The distance to the requested MACs, as a share of these."""
        return abs(self.reached - self.requested) / self.requested

    @property
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """{layer that makes the channels: (width before, width after)}."""
        return {g.name: (g.width, g.width - n * g.unit) for g, n in zip(self.groups, self.removed, strict=True)}


def macs_and_parameters(model: nn.Module, example: Any, forward: Forward | None = None) -> tuple[int, int]:
    """MACs of one row (convolutions and matrix products) and the number of parameters. `example`: inputs of one row or
    more."""
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        _, macs = cost.run(model, cost.first_row(example), forward or plainly)
        return macs, sum(p.numel() for p in model.parameters())
    finally:
        for module, was in training.items():
            module.training = was


def groups(
    model: nn.Module, example: Any, *, forward: Forward | None = None, protect: Iterable[str] = ()
) -> tuple[list[Group], list[Refusal]]:
    """(groups of channels that can be pruned, layers that can't, each with the reason). The model is not changed.
    Raises UsageError where it can't be traced."""
    forward = forward or plainly
    found, refused, *_ = coupled(model, example, forward, protect)
    kept, more = proved(model, example, found, forward)
    return kept, [*refused, *more]


def plan(
    model: nn.Module,
    example: Any,
    macs: float,
    multiple_of: int = 8,
    *,
    at_most: bool = False,
    forward: Forward | None = None,
    protect: Iterable[str] = (),
) -> PruningPlan:
    """The widths that keep the share `macs` of the model's MACs: as near as possible, then as even as possible. With
    `at_most`, the nearest share below `macs`.

    Raises UsageError where the nearest point is more than 2 % from the requested MACs (with `at_most`: where there is
    none), with the points that can be reached and every layer that can't be pruned."""
    forward = forward or plainly
    if macs == 1.0:
        whole, _ = macs_and_parameters(model, example, forward)
        return PruningPlan(1.0, whole, whole, (), (), ())
    found, refused = groups(model, example, forward=forward, protect=protect)
    if not found:
        raise UsageError(
            Problem("macs", "no layer of the model can be pruned", "macs = 1 does not prune it"), *map(_told, refused)
        )
    trials = Trials(model, example, found, forward)
    whole = int(trials.cost(_none(found)))
    near = points.search(
        trials.cost, [g.width for g in found], [g.unit for g in found], macs * whole, multiple_of, at_most
    )
    best = near[0]
    made = PruningPlan(macs, whole, best.macs, tuple(found), best.removed, tuple(refused))
    if made.error > TOLERANCE if not at_most else best.macs > macs * whole:
        raise UsageError(_too_far(made, near, multiple_of, at_most), *(_told(r) for r in refused if not r.is_output))
    objection = trials.objection([range(n) for n in best.removed])
    if objection is not None:
        raise UsageError(
            Problem("macs", f"the model can't be pruned to {made.reached:.4g} of its MACs: {objection}"),
            *map(_told, refused),
        )
    return made


def problems(
    model: nn.Module,
    example: Any,
    macs: float,
    multiple_of: int = 8,
    *,
    at_most: bool = False,
    forward: Forward | None = None,
    protect: Iterable[str] = (),
) -> list[Problem]:
    """The problems of a plan; doesn't raise UsageError."""
    try:
        plan(model, example, macs, multiple_of, at_most=at_most, forward=forward, protect=protect)
    except UsageError as error:
        return list(error.problems)
    return []


def prune(model: nn.Module, plan: PruningPlan, criterion: Callable[[Channels], torch.Tensor]) -> list[dict[str, Any]]:
    """Removes the channels with the lowest scores of `criterion` from `model` in place (of equal scores, the last).
    Returns the history, which is JSON. Raises UsageError for scores of another shape, or not finite."""
    gone = [
        _lowest(criterion, weights(model, group), count) if count else ()
        for group, count in zip(plan.groups, plan.removed, strict=True)
    ]
    history = removals(plan.groups, gone)
    apply(model, history)
    return history


def _lowest(criterion: Callable[[Channels], torch.Tensor], channels: Channels, count: int) -> list[int]:
    import torch

    scores = torch.as_tensor(criterion(channels))
    if tuple(scores.shape) != (channels.channels,) or not bool(scores.isfinite().all()):
        name = getattr(criterion, "__name__", "criterion")
        message = (
            f"must return {channels.channels} finite scores for the channels of `{channels.name}`, returned shape "
            f"{list(scores.shape)}"
        )
        raise UsageError(Problem(f"criterion `{name}`", message))
    keep = torch.argsort(scores, descending=True, stable=True)[: channels.channels - count]
    return sorted(set(range(channels.channels)) - set(keep.tolist()))


def _none(found: list[Group]):
    import numpy as np

    return np.zeros(len(found), np.int64)


def _told(refusal: Refusal) -> Problem:
    return Problem(f"layer `{refusal.layer}`", f"is not pruned: {refusal.reason}")


def _too_far(made: PruningPlan, near: list[points.Point], multiple_of: int, at_most: bool) -> Problem:
    """The problem of a share that can't be reached, with the nearest points below and above it."""
    shares = sorted({round(p.macs / made.before, 4) for p in near})
    below, above = [s for s in shares if s <= made.requested][-4:], [s for s in shares if s > made.requested][:4]
    most = "at most " if at_most else ""
    message = (
        f"{most}{made.requested:g} of the MACs can't be reached with widths that are multiples of {multiple_of}: the "
        f"nearest point is {made.reached:.4g}"
    )
    ways = [f"can be reached: {', '.join(f'{s:g}' for s in (*below, *above))}"]
    ways += [f'`macs = "max {made.requested:g}"` takes {below[-1]:g}'] if below else []
    ways += (
        [f"a smaller `multiple_of` than {multiple_of} allows more widths, but kernels may run slower at these"]
        if multiple_of > 1
        else []
    )
    return Problem("macs", message, "; ".join(ways))
