"""What the predictor is held against: a network's share of the time times a board's level, three ways to say the share.

A baseline is a function (listings, which rows are known) -> {(network, precision): logarithm}; a table's level is the
median of what its known rows leave, and that of a board without rows is carried over from the others by ridge
regression on the predictor's own traits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from published import Listing

from edgekd.predicting import costs, population
from edgekd.predicting.population import Device, Row

Known = Callable[[Listing, int], bool]
Share = Mapping[tuple[str, str], float]
ROUNDS = 5


def multiplied(listings: Sequence[Listing], known: Known) -> Share:
    """The logarithm of the multiply-accumulates."""
    return {
        (n, r.precision): math.log(x.macs[i])
        for x in listings
        for i, (n, r) in enumerate(zip(x.networks, x.table.rows, strict=True))
    }


def additive(listings: Sequence[Listing], known: Known) -> Share:
    """A number per network and precision: log t = board + network, by medians in turn. A network that no table has is
    not in it."""
    share: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        left: dict[tuple[str, str], list[float]] = {}
        for x in listings:
            level = levels(x, share, known)
            for i, (n, r) in enumerate(zip(x.networks, x.table.rows, strict=True)):
                if known(x, i) and r.precision in level:
                    left.setdefault((n, r.precision), []).append(math.log(r.milliseconds) - level[r.precision])
        share = {k: float(np.median(v)) for k, v in left.items()}
    return share


def pooled(listings: Sequence[Listing], known: Known) -> Share:
    """The predictor's eleven costs, the same for all boards but for a level."""
    start = np.tile(np.log([costs.START[n] for n in costs.NAMES]), 2)
    theta = start
    every = {(n, r.precision): r for x in listings for n, r in zip(x.networks, x.table.rows, strict=True)}
    say = lambda: {k: population.logarithm(theta, r.costs, r.precision)[0] for k, r in every.items()}
    for _ in range(ROUNDS):
        share, rows = say(), []
        for x in listings:
            level = levels(x, share, known)
            kept = (r for i, r in enumerate(x.table.rows) if known(x, i))
            rows += [Row(r.costs, r.milliseconds * math.exp(-level[r.precision]), r.precision) for r in kept]
        theta = population.posterior(rows, start, np.eye(len(start)), 0.03).mean
    return say()


WAYS: Mapping[str, Callable[[Sequence[Listing], Known], Share]] = {
    "macs": multiplied,
    "additive": additive,
    "pooled": pooled,
}


def levels(listing: Listing, share: Share, known: Known) -> dict[str, float]:
    """{precision: the median of what a table's known rows leave}."""
    by: dict[str, list[float]] = {}
    for i, (n, r) in enumerate(zip(listing.networks, listing.table.rows, strict=True)):
        if known(listing, i) and (not share or (n, r.precision) in share):
            by.setdefault(r.precision, []).append(math.log(r.milliseconds) - share.get((n, r.precision), 0.0))
    return {p: float(np.median(v)) for p, v in by.items()}


def carried(listings: Sequence[Listing], found: Sequence[Mapping[str, float]], device: Device) -> dict[str, float]:
    """The level of a board without rows: ridge regression on traits over the tables' levels, and 0.75 of what boards of
    its core leave."""
    made = {}
    for precision in costs.PRECISIONS:
        chosen = [(x.table.device, v[precision]) for x, v in zip(listings, found, strict=True) if precision in v]
        traits, y = np.array([d.traits() for d, _ in chosen]), np.array([v for _, v in chosen])
        ridge = np.diag([1e-3] + [1.0] * (traits.shape[1] - 1))
        weights = np.linalg.solve(traits.T @ traits + ridge, traits.T @ y)
        left = [v - d.traits() @ weights for d, v in chosen if d.core == device.core]
        made[precision] = float(device.traits() @ weights + (np.mean(left) * 0.75 if left else 0.0))
    return made
