"""The choice for one target, from the validation split alone.

Of the points within the budgets, the best by the first key of `minimize` is chosen. Points whose intervals overlap the
best are tied; the next key decides, then `maximize`, bytes and MACs. Then a distilled point is preferred to the control
unless the control's value of `maximize` is better, and last the id decides. Int8 that is slower than its float parent
is not chosen if the parent is within the budgets, unless `slower_int8` allows it. Candidates that differ only in the
seed are one point, which counts by their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekd.decisions.budget import SLACK, excess, limit
from edgekd.decisions.front import front
from edgekd.decisions.int8_speed import slower, told
from edgekd.records import Candidate, Check, Measurement, TargetResult

REFERENCES = ("teacher",)  # points that are shown but never chosen; the control may be chosen
LAST = ("file_bytes", "macs")
Figure = tuple[float, float, float]  # value, low, high; NaN where there is none
Within = Callable[[Candidate], tuple[Check, ...]]
NOTHING: Figure = (math.nan, math.nan, math.nan)


class Select(Protocol):
    """A recipe's `[select]`: names of measurements, and whether int8 that is slower than its float parent may be
    chosen."""

    maximize: Sequence[str]
    minimize: Sequence[str]
    slower_int8: bool


@dataclass(frozen=True)
class Over:
    """A rule that a point breaks: the excess in the measurement's unit and as a share of the limit."""

    check: Check
    by: float
    share: float

    def __str__(self) -> str:
        unit = f" {self.check.unit}".rstrip()
        return f"{self.check.name} is {self.by:.3g}{unit} beyond `{self.check.rule}`"


def choose(
    candidates: Iterable[Candidate], *, target: str, select: Select, within: Within, references: Collection[str] = ()
) -> TargetResult:
    """Front, choice and its reason. `within`: a candidate's checks by point estimate on validation; `references`: ids
    that are never chosen."""
    points = competing(candidates, target, references)
    if not points:
        return TargetResult((), None, None, (), f"no candidate was made for {target}")
    on_front = pareto(points, target, select)
    checks = {c.id: within(c) for seeds in points.values() for c in seeds}
    broken = {point: over([checks[c.id] for c in seeds]) for point, seeds in points.items()}
    missing = {point: unknown([checks[c.id] for c in points[point]]) for point, found in broken.items() if not found}
    fewest = min(map(len, missing.values()), default=0)
    # a point with an unknown figure does not fit where another is known to fit
    fit = [point for point, names in missing.items() if len(names) == fewest]
    ids = tuple(c.id for point in on_front for c in points[point])
    if not fit:
        nearest = min(points, key=lambda p: (sum(o.share for o in broken[p]), p))
        beyond = "; ".join(str(o) for o in broken[nearest])
        count = "the only candidate is not" if len(points) == 1 else f"none of {len(points)} candidates is"
        return TargetResult(
            ids, None, None, (), f"{count} within the budgets; on validation the nearest is {nearest}: {beyond}"
        )
    late = {p: by for p, by in slower(points, target, figure).items() if p in fit}
    refused = {} if select.slower_int8 else {p: by for p, by in late.items() if by[0] in fit}
    point, how = best([p for p in fit if p not in refused], points, target, select)
    how = "the others are slower as int8" if refused and len(fit) - len(refused) == 1 else how
    chosen = _seed(points[point], checks, target, select)
    open_ = f" (not known: {', '.join(missing[point])})" if missing[point] else ""
    return TargetResult(
        ids,
        chosen.id,
        None,
        (),
        f"{len(fit)} of {len(points)} within the budgets{open_}; {how}{_late(point, late, refused)}",
    )


def _late(point: str, late: Mapping[str, tuple[str, Figure]], refused: Mapping[str, tuple[str, Figure]]) -> str:
    """A note on int8 that is not faster than float: on the choice, else on points that were not chosen for it."""
    if point in late:
        return f"; as int8 it takes {told(late[point][1])} of its float parent {late[point][0]}"
    every = ", ".join(f"{p} takes {told(ratio)} of {parent}" for p, (parent, ratio) in refused.items())
    return f"; int8 is not faster here: {every}" if every else ""


def competing(
    candidates: Iterable[Candidate], target: str, references: Collection[str] = ()
) -> dict[str, list[Candidate]]:
    """{point: its candidates, one per seed}, without references, in order. If some were measured for the target, those
    that weren't don't compete."""
    students = [c for c in candidates if c.id not in references and c.point not in REFERENCES]
    measured = [c for c in students if any(m.target == target for m in c.measurements)]
    points: dict[str, list[Candidate]] = {}
    for candidate in measured or students:
        points.setdefault(candidate.point, []).append(candidate)
    return points


def pareto(points: dict[str, list[Candidate]], target: str, select: Select) -> tuple[str, ...]:
    """The points on the Pareto front of all keys of `select`."""
    rows = {
        p: [figure(s, n, target)[0] for n in select.minimize] + [-figure(s, n, target)[0] for n in select.maximize]
        for p, s in points.items()
    }
    names = list(rows)
    return tuple(names[i] for i in front(list(rows.values())))


def figure(seeds: Sequence[Candidate], name: str, target: str) -> Figure:
    """The mean over seeds of a measurement: on validation where it is of a split."""
    found = [m for m in (_of(c, name, target) for c in seeds) if m is not None]
    if not found:
        return NOTHING
    value, low, high = (sum(getattr(m, field) for m in found) / len(found) for field in ("value", "low", "high"))
    return value, low, high


def _of(candidate: Candidate, name: str, target: str) -> Measurement | None:
    named = [
        m
        for m in candidate.measurements
        if m.name == name and m.target in (None, target) and m.split in (None, "validation")
    ]
    finite = [m for m in named if all(map(math.isfinite, (m.value, m.low, m.high)))]
    order = ("counted", "measured", "emulated", "predicted")
    return min(finite, key=lambda m: (order.index(m.origin), m.target is None), default=None)


def over(seeds: Sequence[tuple[Check, ...]]) -> list[Over]:
    """The rules that a point breaks, given the checks of each of its seeds in the same order. A rule without a figure
    is not broken: see `unknown`."""
    found = []
    for checks in zip(*seeds, strict=True):
        judged = [(c, by) for c in checks if c.verdict != "inconclusive" and (by := excess(c)) is not None]
        if not judged or checks[0].level == "warn" or all(c.verdict == "pass" for c, _ in judged):
            continue
        check, by = judged[0][0], sum(by for _, by in judged) / len(judged)
        if by > SLACK or all(c.verdict == "fail" for c, _ in judged):
            found.append(Over(check, by, by / (abs(limit(check) or 0.0) or 1.0)))
    return found


def unknown(seeds: Sequence[tuple[Check, ...]]) -> list[str]:
    """The names of measurements with a rule of level `error` that no seed of a point could be judged by."""
    blind = [rule[0] for rule in zip(*seeds, strict=True) if all(c.verdict == "inconclusive" for c in rule)]
    return list(dict.fromkeys(c.name for c in blind if c.level == "error"))


def best(fit: Sequence[str], points: dict[str, list[Candidate]], target: str, select: Select) -> tuple[str, str]:
    """(the best point, what decided it)."""
    left, tied, decided = list(fit), [], "it is the only one"
    for name, sign in [
        *((n, 1.0) for n in select.minimize),
        *((n, -1.0) for n in select.maximize),
        *((n, 1.0) for n in LAST),
    ]:
        if len(left) == 1:
            break
        figures = {p: _turned(figure(points[p], name, target), sign) for p in left}
        known = {p: f for p, f in figures.items() if not math.isnan(f[0])}
        if not known:
            continue
        top = min(known.values(), key=lambda f: (f[0], f[2]))
        close = [p for p, f in known.items() if f[1] <= top[2]]
        decided = f"{'lowest' if sign > 0 else 'highest'} {name}" + (f" (tied in {', '.join(tied)})" if tied else "")
        left, tied = close, list(dict.fromkeys([*tied, name]))
    taught, alone = [p for p in left if not control(p)], [p for p in left if control(p)]
    if taught and alone:
        name = next((n for n in select.maximize if n in tied), "")
        highest = lambda of: max((figure(points[p], name, target)[0] for p in of), default=-math.inf)
        better = bool(name) and highest(alone) > highest(taught)
        left = alone if better else taught
        decided = (
            f"highest {name} by its value (tied in {', '.join(tied)})"
            if better
            else f"distilled points are preferred to the control (tied in {', '.join(tied)})"
        )
    if len(left) > 1:
        decided = f"first by name (tied in {', '.join(tied)})"
    return min(left), decided


def control(point: str) -> bool:
    """Whether a point is the control, the student trained on labels alone, whose names are reserved: it is chosen only
    where it is better."""
    return point == "alone" or point.startswith("alone-")


def _turned(f: Figure, sign: float) -> Figure:
    return f if sign > 0 else (-f[0], -f[2], -f[1])


def _seed(seeds: Sequence[Candidate], checks: dict[str, tuple[Check, ...]], target: str, select: Select) -> Candidate:
    """The candidate of a point that is delivered: one that breaks no rule by itself, then the best on validation, then
    the first seed."""

    def rank(candidate: Candidate) -> tuple:
        broken = over([checks[candidate.id]])
        quality = [-figure([candidate], name, target)[0] for name in select.maximize]
        return sum(o.share for o in broken), [math.inf if math.isnan(q) else q for q in quality], candidate.seed

    return min(seeds, key=rank)
