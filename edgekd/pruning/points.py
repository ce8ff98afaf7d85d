"""The widths for a share of the MACs. The points that can be reached depend only on the architecture and the
multiple."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.pruning.cost import Cost

EVERY = 100_000  # up to this many points, all are evaluated
EQUAL = 0.01  # points within one percent of the requested MACs count as equally near: the most even one is taken
KEEP, ROUNDS = 24, 60  # of the beam search, where there are more points


@dataclass(frozen=True)
class Point:
    """`removed`: units removed from each group; `macs`: the MACs that are left; `spread`: how uneven the kept shares
    are."""

    removed: tuple[int, ...]
    macs: int
    spread: float


def steps(width: int, unit: int, multiple: int) -> tuple[int, ...]:
    """The widths that a group can have, ascending: multiples of `multiple` below `width` (and of `unit`), and `width`
    itself. A group no wider than the multiple keeps its width."""
    step = math.lcm(multiple, unit)
    return (*range(step, width, step), width)


def search(
    cost: Cost, widths: Sequence[int], units: Sequence[int], target: float, multiple: int, at_most: bool = False
) -> list[Point]:
    """Points near `target` MACs, the best first: the most even of those within `EQUAL` of it, else the nearest. With
    `at_most`, the nearest point below counts as the target, and points above come last.

    Evenness: least squares between each group's kept share and the common share that would reach the target if widths
    were not multiples. Up to `EVERY` points are all evaluated, else a beam search starts from rounded even shares."""
    options = [steps(w, u, multiple) for w, u in zip(widths, units, strict=True)]
    whole, unit = np.array(widths, np.int64), np.array(units, np.int64)
    even = _even(cost, whole, unit, options, target)
    grid = [np.array(o, np.int64) for o in options]

    def judge(picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """picked [N, groups]: positions in `options` -> (MACs, spread) [N]."""
        kept = (
            np.stack([o[picked[:, g]] for g, o in enumerate(grid)], 1) if grid else np.zeros((len(picked), 0), np.int64)
        )
        return cost((whole - kept) // unit), ((kept / whole - even) ** 2).sum(1)

    if math.prod(map(len, options)) <= EVERY:
        picked = np.array(list(itertools.product(*(range(len(o)) for o in options))), np.int64).reshape(
            -1, len(options)
        )
        macs, spread = judge(picked)
    else:
        picked, macs, spread = _beam(judge, grid, whole, even, target)
    over = (macs > target) & at_most
    aim = macs[~over].max() if at_most and not over.all() else target
    far = np.abs(macs - aim) / target
    near = max(EQUAL, far.min())
    order = np.lexsort((*(-picked.T), far, spread, np.where(far <= near + 1e-12, 0.0, far), over))
    found = picked[order[:2000]]
    kept = [tuple(int((whole[g] - grid[g][p]) // unit[g]) for g, p in enumerate(row)) for row in found]
    return [Point(k, int(m), float(s)) for k, m, s in zip(kept, macs[order], spread[order], strict=False)]


def _even(cost: Cost, whole: np.ndarray, unit: np.ndarray, options: Sequence[Sequence[int]], target: float) -> float:
    """The common kept share of all groups with a choice that leaves `target` MACs, by bisection."""
    free = np.array([len(o) > 1 for o in options], bool)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        removed = np.where(free, (1 - middle) * whole / unit, 0.0)
        low, high = (middle, high) if cost(removed) < target else (low, middle)
    return high


def _beam(
    judge, grid: Sequence[np.ndarray], whole: np.ndarray, even: float, target: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points visited from the rounded even shares around `even` to the target, one step of one group at a time."""
    starts = [
        [int(np.abs(o - share * w).argmin()) for o, w in zip(grid, whole, strict=True)]
        for share in np.linspace(0.02, 1, 50)
    ]
    starts += [
        [int(np.abs(o - (even + d) * w).argmin()) for o, w in zip(grid, whole, strict=True)]
        for d in np.linspace(-0.1, 0.1, 21)
    ]
    last = np.array([len(o) - 1 for o in grid])
    moves = np.concatenate([np.eye(len(grid), dtype=np.int64), -np.eye(len(grid), dtype=np.int64)])
    seen: dict[tuple[int, ...], tuple[int, float]] = {}
    front, best, stale = np.unique(np.array(starts, np.int64), axis=0), (np.inf, np.inf), 0
    for _ in range(ROUNDS):
        macs, spread = judge(front)
        for row, m, s in zip(map(tuple, front.tolist()), macs.tolist(), spread.tolist(), strict=True):
            seen[row] = (m, s)
        miss = np.maximum(np.abs(macs - target) / target, EQUAL)
        order = np.lexsort((*(-front.T), spread, miss))[:KEEP]
        now = (float(miss[order[0]]), float(spread[order[0]])) if len(order) else best
        best, stale = (now, 0) if now < best else (best, stale + 1)
        if stale > 3 or not len(order):
            break
        around = (front[order][:, None, :] + moves).reshape(-1, len(grid))
        around = np.unique(around[((around >= 0) & (around <= last)).all(1)], axis=0)
        front = np.array([row for row in around.tolist() if tuple(row) not in seen], np.int64).reshape(-1, len(grid))
    return (
        np.array(list(seen), np.int64),
        np.array([m for m, _ in seen.values()]),
        np.array([s for _, s in seen.values()]),
    )
