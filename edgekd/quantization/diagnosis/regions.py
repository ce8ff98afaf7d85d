"""Which stretches of layers are to be tried in float for the sake of time: where int8 takes longer than float by more
than the conversions cost that then stand at both ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# how many times as long as in float a layer may take in int8
TOLERATED = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.1, 1.0, 0.9, 0.8, 0.6)
PARTS = (1.0, 0.3, 0.0)  # of a conversion's time: what else stands between two layers may hide it
MOST = 7  # sets that are tried
ALONE = 2  # of these, layers by themselves


@dataclass(frozen=True)
class Cost:
    """What a layer takes, with the operators behind it that are no layers, in milliseconds."""

    float_ms: float
    int8_ms: float


def proposals(costs: Sequence[Cost], conversion_ms: float) -> list[frozenset[int]]:
    """At most MOST sets of layers to try in float, from the fewest to the most; `costs` in the order in which the
    layers run. Neither none of them nor all; the layers that lose most time in int8 by themselves too."""
    lost = sorted(range(len(costs)), key=lambda i: costs[i].float_ms - costs[i].int8_ms)
    alone = [frozenset({i}) for i in lost[:ALONE] if costs[i].int8_ms > costs[i].float_ms and len(costs) > 1]
    ways = ((part, times) for part in PARTS for times in TOLERATED)
    found = {in_float(costs, part * conversion_ms, times) for part, times in ways}
    order = lambda sets: sorted(sets, key=lambda s: (len(s), sorted(s)))
    sets = order(s for s in found.difference(alone) if 0 < len(s) < len(costs))
    count = min(MOST - len(alone), len(sets))
    return order([*alone, *(sets[round(i * (len(sets) - 1) / max(1, count - 1))] for i in range(count))])


def in_float(costs: Sequence[Cost], conversion_ms: float, times: float) -> frozenset[int]:
    """The layers whose int8 time exceeds `times` the float time by most in all, less `conversion_ms` wherever an
    integer layer and one in float are neighbours: the best path through two states per layer."""
    best, ways = [0.0, 0.0], [frozenset[int](), frozenset[int]()]  # after a layer in int8, after one in float
    for i, cost in enumerate(costs):
        gain = cost.int8_ms - times * cost.float_ms
        change = conversion_ms if i else 0.0
        stay = best[0] >= best[1] - change
        turn = best[0] - change > best[1]
        best, ways = (
            [max(best[0], best[1] - change), max(best[1], best[0] - change) + gain],
            [ways[0] if stay else ways[1], (ways[0] if turn else ways[1]) | {i}],
        )
    return ways[1] if best[1] > best[0] else ways[0]
