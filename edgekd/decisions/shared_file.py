"""Chooses one file for all targets, if no target loses more than a small tolerance: fewer files to manage, and the same
outputs on every CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edgekd.probes.times import P50
from edgekd.records import Candidate, Measurement, TargetResult

POINTS, SHARE = 0.1, 0.02  # what a target may lose: points of the first metric on validation, share of its time


def one_file(
    candidates: Sequence[Candidate],
    found: Mapping[str, TargetResult],
    metric: str,
    within: Callable[[Candidate, str], bool],
    pair: Callable[[Candidate, Candidate, str], float],
) -> dict[str, TargetResult]:
    """The targets' results, with one choice for all if possible, else unchanged. The file must be the choice of a
    target, compete for all targets and be `within` their budgets, and cost no target more than POINTS of accuracy or
    SHARE of latency compared with its own choice. `metric`: the name of a metric in percent, higher is better; `pair`:
    the ratio of the first file's time to the second's on a target, NaN if it is inconclusive."""
    by_id = {c.id: c for c in candidates}
    chosen = list(dict.fromkeys(r.chosen for r in found.values()))
    if len(chosen) < 2 or None in chosen:
        return dict(found)
    for id in chosen:
        if not all(within(by_id[id], target) for target in found):
            continue
        costs = {target: _cost(by_id[id], by_id[r.chosen], target, metric, pair) for target, r in found.items()}
        if all(c is not None for c in costs.values()):
            return {
                t: r if r.chosen == id else replace(r, chosen=id, reason=f"one file for all targets{costs[t]}")
                for t, r in found.items()
            }
    return dict(found)


def _cost(
    file: Candidate, own: Candidate, target: str, metric: str, pair: Callable[[Candidate, Candidate, str], float]
) -> str | None:
    """The cost of `file` for `target` compared with its own choice, as text; None if it is too high or not known."""
    if file is own:
        return ""
    ours, theirs = (_value(c, metric, target, "validation") for c in (file, own))
    if ours is None or theirs is None or theirs.value - ours.value > POINTS:
        return None
    told = f": {ours.value - theirs.value:+.2f} points of {metric} on validation against {own.id}"
    times = [_value(c, P50.name, target, None) for c in (file, own)]
    if None in times:
        return told
    measured = {t.origin for t in times} == {"measured"}
    # two predictions for one device share their error
    ratio = pair(file, own, target) if measured else times[0].value / times[1].value
    if not ratio <= 1 + SHARE:  # also true for NaN
        return None
    return f"{told}, {ratio:.2f} of its time" if measured else told


def _value(candidate: Candidate, name: str, target: str, split: str | None) -> Measurement | None:
    """The measurement for the target, else that of the file for no target."""
    found = [m for m in candidate.measurements if (m.name, m.split) == (name, split) and m.target in (target, None)]
    return max(found, key=lambda m: m.target is not None, default=None)
