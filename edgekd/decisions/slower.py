"""Int8 is there to be faster: where it is not, the float model that it was made of is the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from edgekd.records import Candidate

Figure = Callable[[Sequence[Candidate], str, str], tuple[float, float, float]]
LATENCY = "latency_p50_ms"
CLEAR = 1.1  # of two predicted times: there they tell the faster one in 9 of 10 published pairs (benchmarks/latency)


def slower(points: Mapping[str, Sequence[Candidate]], target: str, figure: Figure) -> dict[str, tuple[str, float]]:
    """{int8 point: (its float parent, ratio of their times)} of the points whose time on `target` lies above their float parent's: intervals apart,
    or CLEAR apart where both are predicted. `figure`: (seeds, name, target) -> (value, low, high). A point without a time, or without a float
    parent, is none of them."""
    point_of = {c.id: name for name, seeds in points.items() for c in seeds}
    found = {}
    for name, seeds in points.items():
        if seeds[0].stages[-1:] != ("int8",):
            continue
        parent = next((point_of[p] for p in seeds[0].parents if p in point_of), None)
        if parent is None or points[parent][0].stages[-1:] == ("int8",):
            continue
        ours, theirs = figure(seeds, LATENCY, target), figure(points[parent], LATENCY, target)
        if math.isnan(ours[0]) or math.isnan(theirs[0]):
            continue
        guessed = all(_origin(of, target) == "predicted" for of in (seeds, points[parent]))  # their intervals share what both are off by
        if ours[1] > theirs[2] or (guessed and ours[0] > CLEAR * theirs[0]):
            found[name] = (parent, ours[0] / theirs[0])
    return found


def _origin(seeds: Sequence[Candidate], target: str) -> str | None:
    return next((m.origin for m in seeds[0].measurements if m.name == LATENCY and m.target in (None, target)), None)
