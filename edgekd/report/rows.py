"""A run's candidates as rows of figures for one target, compared with the teacher's. Quality is measured on the test
split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgekd import intervals
from edgekd.errors import plain
from edgekd.probes import declared, quantity
from edgekd.probes.static import FILE_BYTES
from edgekd.records import Candidate, Measurement, Quantity, Result
from edgekd.report.numbers import ranged

MARKS = {"counted": "c", "measured": "m", "emulated": "e", "predicted": "p"}
ORIGINS = {
    "counted": "counted, exact",
    "measured": "measured on a machine with the target's features",
    "emulated": "emulated, never a time",
    "predicted": "predicted, with its interval",
}


@dataclass(frozen=True)
class Row:
    """A candidate for one target. `figures` {name: the measurement to show}; `role`: teacher, alone, ... for a
    reference, else ""."""

    candidate: Candidate
    role: str
    chosen: bool
    front: bool
    figures: Mapping[str, Measurement]


def rows(result: Result, target: str) -> tuple[Row, ...]:
    """The references first, then the candidates that compete for a target, in the order of the run.

    If some were measured for the target, those that weren't don't compete; if none was, counted figures of all are
    shown."""
    roles = {id: role for role, id in result.references.items()}
    for c in result.candidates:  # seeds of a reference beyond the one it is named by
        roles.setdefault(
            c.id, next((roles[o.id] for o in result.candidates if o.point == c.point and o.id in roles), "")
        )
    found = result.targets[target]
    measured = {c.id for c in result.candidates if not roles[c.id] and any(m.target == target for m in c.measurements)}
    named = {*found.front, found.chosen, *(c.candidate for c in found.checks)}
    shown = [c for c in result.candidates if roles[c.id] or not measured or c.id in measured | named]
    shown.sort(key=lambda c: _order(roles[c.id]))
    return tuple(Row(c, roles[c.id], c.id == found.chosen, c.id in found.front, figures(c, target)) for c in shown)


def figures(candidate: Candidate, target: str) -> dict[str, Measurement]:
    """{name: measurement}: those of the test split or of no split; the target's own before one for all targets; only
    finite ones."""
    found: dict[str, Measurement] = {}
    for m in candidate.measurements:
        if (
            m.split in (None, "test")
            and m.target in (None, target)
            and all(math.isfinite(x) for x in (m.value, m.low, m.high))
        ):
            kept = found.get(m.name)
            if kept is None or (kept.target is None and m.target is not None):
                found[m.name] = m
    return found


def metrics(found: Iterable[Row]) -> tuple[str, ...]:
    """Names of the task's metrics, in the order of their measurements."""
    names = [m.name for row in found for m in row.figures.values() if m.split == "test" and quantity(m.name) is None]
    return tuple(dict.fromkeys(names))


def columns(found: Iterable[Row], page: bool = False) -> tuple[str, ...]:
    """Names of the measurements to show that any row has: the task's metrics, then those with a column declared by a
    probe. `page`: also those for which text tables have no space."""
    found = tuple(found)
    wanted = [q.name for q in declared().values() if q.column is not None and (page or q.keep)]
    there = dict.fromkeys(n for row in found for n in row.figures)  # of several outputs `agreement-NAME` too
    return (*metrics(found), *(n for q in wanted for n in there if n == q or n.startswith(f"{q}-")))


def compared(figures: Iterable[str]) -> tuple[Quantity, ...]:
    """The quantities among the names that are compared with the teacher's and drawn against quality."""
    names = set(figures)
    return tuple(q for q in declared().values() if q.words and q.name in names)


def title(name: str, unit: str = "") -> str:
    """The heading of a measurement's column."""
    known = quantity(name)
    if known is not None and known.heading:
        return known.heading
    shown = known.shown[0] if known is not None and known.shown else unit
    return f"{plain(name)} {shown}".strip()


def smaller(row: Row, found: Iterable[Row]) -> str:
    """The ratio of the teacher's file size to a file's: `8.2x`; "" if one is not known."""
    both = _both(row, found, FILE_BYTES.name)
    return f"{float(f'{both[1].value / both[0].value:.2g}'):g}x" if both else ""


def beside(row: Row, found: Iterable[Row], name: str) -> str:
    """A cost compared with the teacher's: `26x smaller`, `1.08x slower (1.05 to 1.11)`; "" if one is not known, or only
    as a range."""
    both = _both(row, found, name)
    if both is None:
        return ""
    better, worse = declared()[name].words
    ours, theirs = both
    # two predictions share their error: no interval
    if {ours.origin, theirs.origin} in ({"counted"}, {"predicted"}):
        ratio, guessed = ours.value / theirs.value, " by prediction" if ours.origin == "predicted" else ""
        if guessed and (ranged(ours) or ranged(theirs)):
            return ""
        if guessed and max(ratio, 1 / ratio) <= intervals.clear(ours, theirs):
            return f"not clearly {worse} or {better}{guessed}"
        return f"{_times(max(ratio, 1 / ratio))}x {worse if ratio > 1 else better}{guessed}"
    ratio, low, high = intervals.ratio_of(ours, theirs)
    if low <= 1 <= high:
        return f"not clearly {worse} or {better} ({_times(low)} to {_times(high)} of its time)"
    ratio, low, high, word = (ratio, low, high, worse) if low > 1 else (1 / ratio, 1 / high, 1 / low, better)
    return f"{_times(ratio)}x {word} ({_times(low)} to {_times(high)})"


def _both(row: Row, found: Iterable[Row], name: str) -> tuple[Measurement, Measurement] | None:
    """(the figure, the teacher's); None if one is not known."""
    theirs = next((r.figures.get(name) for r in found if r.role == "teacher"), None)
    ours = row.figures.get(name)
    if theirs is None or ours is None or row.role == "teacher" or min(ours.low, theirs.low) <= 0:
        return None
    return ours, theirs


def _times(ratio: float) -> str:
    """A ratio with two decimals below ten, else two significant digits."""
    return f"{float(f'{ratio:.2f}' if ratio < 10 else f'{ratio:.2g}'):g}"


def origins(found: Iterable[Row], shown: Iterable[str]) -> tuple[str, ...]:
    """The origins of the shown figures, for a legend."""
    shown = tuple(shown)
    known = {row.figures[name].origin for row in found for name in shown if name in row.figures}
    return tuple(o for o in MARKS if o in known)


def _order(role: str) -> int:
    return {"teacher": 0, "": 2}.get(role, 1)
