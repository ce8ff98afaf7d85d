"""Which shares of the multiply-accumulates a model can be pruned to. They depend on the architecture alone, never on trained weights, so that
a plan can be checked before any training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import Problem
from edgekd.pruning.groups import Costs, Group, costs, groups

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 0.02  # of the share that was asked for
EXHAUSTIVE = 200_000  # combinations of widths that are tried one by one
UNIFORM = 0.1  # what a unit of spread between the kept shares weighs against a unit of distance


@dataclass(frozen=True)
class PruningPlan:
    """Widths by the root of their group; `share` of the multiply-accumulates that they keep, of the `asked`; `fixed`: {root: why not}."""

    widths: Mapping[str, int]
    share: float
    asked: float
    fixed: Mapping[str, str]
    reachable: tuple[float, ...] = ()

    @property
    def off(self) -> float:
        """How far, relative to what was asked."""
        return abs(self.share - self.asked) / self.asked


def options(group: Group, multiple: int) -> list[int]:
    """The widths a group may take: multiples of `multiple` below its own, and its own. One narrower than two multiples stays as it is."""
    return [*range(multiple, group.width, multiple), group.width]


def plan(model: nn.Module, example: Any, macs: float, multiple: int, forward: Any = None, keep: Sequence[str] = ()) -> PruningPlan:
    """The widths whose cost is nearest to the share `macs`, kept shares as uniform as that allows; layers in `keep` stay. Deterministic."""
    found = groups(model, example, forward, keep)
    fixed = {g.root: g.fixed for g in found if g.fixed}
    free, model_costs = [g for g in found if not g.fixed], costs(model, example, found, forward)
    if macs >= 1 or not free:
        return PruningPlan({g.root: g.width for g in free}, 1.0, macs, fixed, (1.0,))
    choices = [options(g, multiple) for g in free]
    full = np.array([g.width for g in free], float)
    whole = float(model_costs.macs(np.ones(len(free))))
    if np.prod([float(len(c)) for c in choices]) <= EXHAUSTIVE:
        widths = np.array(list(itertools.product(*choices)), float)
        shares = model_costs.macs(widths / full) / whole
        best = int(np.argmin(_score(shares, widths / full, macs)))
        reachable = shares
    else:
        line = np.array([[min(c, key=lambda w: (abs(w - r * c[-1]), w)) for c in choices] for r in np.linspace(0.01, 1, 400)], float)
        reachable = model_costs.macs(line / full) / whole
        start = line[int(np.argmin(np.abs(reachable - macs)))]
        widths = _climb(start, choices, full, model_costs, whole, macs)[None]
        shares, best = model_costs.macs(widths / full) / whole, 0
        reachable = np.append(reachable, shares)
    near = sorted({round(float(s), 4) for s in reachable}, key=lambda s: abs(s - macs))[:6]
    return PruningPlan({g.root: int(w) for g, w in zip(free, widths[best], strict=True)}, float(shares[best]), macs, fixed, tuple(sorted(near)))


def _score(shares: np.ndarray, kept: np.ndarray, macs: float) -> np.ndarray:
    """Distance, beyond a quarter of the tolerance, before spread; smaller is better."""
    off = np.abs(shares - macs) / macs
    return np.maximum(off - TOLERANCE / 4, 0) * 100 + UNIFORM * kept.std(-1) + off * 1e-3


def _climb(start: np.ndarray, choices: list[list[int]], full: np.ndarray, model_costs: Costs, whole: float, macs: float) -> np.ndarray:
    """Moves one group or two by one option at a time, as long as the score falls."""
    index = np.array([c.index(int(w)) for c, w in zip(choices, start, strict=True)])
    table = [np.array(c, float) for c in choices]
    value = np.inf
    while True:
        moves = [index]
        for g, step in itertools.product(range(len(table)), (-1, 1)):
            if 0 <= index[g] + step < len(table[g]):
                one = index.copy()
                one[g] += step
                moves.append(one)
        singles = moves[1:]
        for (i, a), (_, b) in itertools.combinations(enumerate(singles), 2):
            both = a + b - index
            if all(0 <= both[g] < len(table[g]) for g in np.flatnonzero(both != index)) and i < 60:
                moves.append(both)
        tried = np.array(moves)
        kept = np.stack([table[g][tried[:, g]] for g in range(len(table))], 1) / full
        scores = _score(model_costs.macs(kept) / whole, kept, macs)
        best = int(np.argmin(scores))
        if scores[best] >= value - 1e-12:
            return np.array([t[i] for t, i in zip(table, index, strict=True)])
        value, index = scores[best], tried[best]


def problems(found: PruningPlan, multiple: int) -> list[Problem]:
    """Why the plan can't be kept: nothing can be pruned, or the nearest point is further than 2 % from what was asked."""
    reasons = "; ".join(f"`{root}`: {why}" for root, why in found.fixed.items())
    if found.asked < 1 and not found.widths:
        return [
            Problem(
                "macs", f"nothing in this model can be pruned ({reasons or 'it has no convolution or linear layer'})", "leave out the `prune` stage"
            )
        ]
    if found.off > TOLERANCE:
        points = ", ".join(f"{s:.3f}" for s in found.reachable)
        text = f"{found.asked:g} can't be reached within 2 % with widths in multiples of {multiple}: the nearest is {found.share:.3f}"
        return [
            Problem(
                "macs", text + (f" (kept as they are: {reasons})" if found.fixed else ""), f"points near it: {points}; or a smaller `multiple_of`"
            )
        ]
    return []
