"""Finds int8 points that are not faster than the float model that they were made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekd import intervals
from edgekd.probes.times import P50
from edgekd.records import Candidate, Measurement

Ratio = tuple[float, float, float]  # value, low, high
Figure = Callable[[Sequence[Candidate], str, str], Ratio]
LATENCY = P50.name


def slower(points: Mapping[str, Sequence[Candidate]], target: str, figure: Figure) -> dict[str, tuple[str, Ratio]]:
    """{int8 point: (its float parent, ratio of their times)} of the points that are slower on `target` than their float
    parent: by the pairs of one timing session, else by intervals that don't overlap, or by a clear difference where
    both are predicted. `figure`: (seeds, name, target) -> (value, low, high). Points without a time or a float parent
    are left out."""
    point_of = {c.id: name for name, seeds in points.items() for c in seeds}
    found = {}
    for name, seeds in points.items():
        if seeds[0].stages[-1:] != ("int8",):
            continue
        parent = next((point_of[p] for p in seeds[0].parents if p in point_of), None)
        if parent is None or points[parent][0].stages[-1:] == ("int8",):
            continue
        ratio = _ratio(seeds, points[parent], target, figure)
        if ratio[0] > 1 and not ratio[1] <= 1:  # a ratio of clear predictions has no limits
            found[name] = (parent, ratio)
    return found


def told(ratio: Ratio) -> str:
    """`1.08 of the time (1.05 to 1.11)`; predictions have no limits, since they share their error."""
    return f"{ratio[0]:.2f} of the time" + ("" if math.isnan(ratio[1]) else f" ({ratio[1]:.2f} to {ratio[2]:.2f})")


def _ratio(seeds: Sequence[Candidate], parents: Sequence[Candidate], target: str, figure: Figure) -> Ratio:
    """The ratio of two points' times, means over their seeds; without limits (NaN) where both are predicted and differ
    clearly, all NaN where a time is not known."""
    ours, theirs = figure(seeds, LATENCY, target), figure(parents, LATENCY, target)
    if math.isnan(ours[0]) or math.isnan(theirs[0]):
        return math.nan, math.nan, math.nan
    times = [[_time(c, target) for c in of] for of in (seeds, parents)]
    known = [m for of in times for m in of if m is not None]
    if len(known) == len(seeds) + len(parents) and intervals.side_by_side(*known):
        return intervals.ratio(*(np.mean([m.each for m in of], axis=0) for of in times))
    first = [of[0] for of in times if of[0] is not None and of[0].origin == "predicted"]
    if len(first) == 2 and ours[0] > intervals.clear(*first) * theirs[0]:
        return ours[0] / theirs[0], math.nan, math.nan
    return ours[0] / theirs[0], ours[1] / theirs[2], ours[2] / theirs[1] if theirs[1] > 0 else math.inf


def _time(candidate: Candidate, target: str) -> Measurement | None:
    return next((m for m in candidate.measurements if m.name == LATENCY and m.target in (None, target)), None)
