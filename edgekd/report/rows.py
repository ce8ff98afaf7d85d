"""What the reports show: a run's candidates as rows of figures, verdicts as lines, and numbers as text. Quality is that
of the test split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekd import intervals
from edgekd.errors import plain as clean
from edgekd.probes import declared
from edgekd.probes.instructions import INSTRUCTIONS
from edgekd.probes.other_cpus import HOST_AGREEMENT, SPREAD
from edgekd.probes.saturation import SATURABLE
from edgekd.probes.static import FILE_BYTES
from edgekd.probes.times import AT_LEAST, P50
from edgekd.records import Candidate, Check, Measurement, Quantity, Result, TargetResult
from edgekd.targets import REFERENCE

MARKS = {"counted": "c", "measured": "m", "emulated": "e", "predicted": "p"}
ORIGINS = {
    "counted": "counted, exact",
    "measured": "measured on a machine with the target's features",
    "emulated": "emulated, never a time",
    "predicted": "predicted, with its interval",
}
LATENCY = (P50.name, AT_LEAST.name)
WIDE = 2.0  # to either side: beyond it, a prediction is told as a range
VERDICTS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


@dataclass(frozen=True)
class Row:
    """A candidate for one target. `figures`: {measurement's name: the one to show}; `role`: teacher, alone, ... of a
    reference, or empty."""

    candidate: Candidate
    role: str
    chosen: bool
    front: bool
    figures: Mapping[str, Measurement]


def rows(result: Result, target: str) -> tuple[Row, ...]:
    """The references first, then the candidates that compete for a target, in the order of the run.

    Where some were measured for the target, those that weren't don't compete; where none was, what was counted is shown
    of all."""
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
    """{name: measurement}: of the test split where one is of a split; the target's own before one that holds for all;
    finite ones only."""
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
    """Names of the task's metrics, in the order in which they were taken."""
    known = declared()
    names = [m.name for row in found for m in row.figures.values() if m.split == "test" and m.name not in known]
    return tuple(dict.fromkeys(names))


def columns(found: Iterable[Row], page: bool = False) -> tuple[str, ...]:
    """Names of the measurements to show, those that any row has: the task's metrics, then what probes declare a column
    for. `page`: also those that tables have no room for."""
    found = tuple(found)
    wanted = [q.name for q in declared().values() if q.column is not None and (page or q.keep)]
    return (*metrics(found), *(n for n in wanted if any(n in row.figures for row in found)))


def compared(figures: Iterable[str]) -> tuple[Quantity, ...]:
    """Those of the names that are set beside the teacher's, and drawn against quality."""
    names = set(figures)
    return tuple(q for q in declared().values() if q.words and q.name in names)


def title(name: str, unit: str = "") -> str:
    """The heading of a measurement's column."""
    known = declared().get(name)
    if known is not None and known.heading:
        return known.heading
    shown = known.shown[0] if known is not None and known.shown else unit
    return f"{clean(name)} {shown}".strip()


def number(value: float, digits: int | None = None) -> str:
    """Whole numbers in groups of three; others with four digits that count, or `digits` after the point."""
    if not math.isfinite(value):
        return str(value)
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def short(value: float, digits: int = 3) -> str:
    """A number in little room: 1.23M, 96.2k, 0.05."""
    value = float(f"{value:.{digits}g}")
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def digits(m: Measurement) -> int | None:
    """How many digits after the point an interval deserves: two that count of its width; of a predicted one, which is a
    factor to each side, two of its lower end."""
    width = min(m.low or math.inf, m.high - m.low) if m.origin == "predicted" else m.high - m.low
    return None if m.origin == "counted" or width <= 0 else min(6, max(0, 1 - math.floor(math.log10(width))))


def scaled(m: Measurement) -> Measurement:
    """In the unit that reports show it in: single bytes of a peak of memory mean nothing."""
    known = declared().get(m.name)
    if known is None or known.shown is None:
        return m
    unit, size = known.shown
    return replace(m, unit=unit, value=m.value / size, low=m.low / size, high=m.high / size)


def ranged(m: Measurement) -> bool:
    """Whether a figure is predicted so loosely that only its range says something."""
    return (
        m.origin == "predicted"
        and m.low < m.high
        and m.value > 0
        and (m.high > WIDE * m.value or m.low * WIDE < m.value)
    )


def value(m: Measurement) -> str:
    """The figure; of one that is a range, `low to high`."""
    m = scaled(m)
    if ranged(m):
        low, high = (number(float(f"{v:.2g}")) for v in (m.low, m.high))
        return f"{low} to {high}"
    return number(m.value, digits(m))


def interval(m: Measurement) -> str:
    """`[low, high]`, empty where the figure is exact, or a range itself."""
    m = scaled(m)
    return (
        ""
        if m.origin == "counted" or m.low == m.high or ranged(m)
        else f"[{number(m.low, digits(m))}, {number(m.high, digits(m))}]"
    )


def smaller(row: Row, found: Iterable[Row]) -> str:
    """How many times smaller than the teacher's a file is: `8.2x`; empty where there is nothing to compare."""
    both = _both(row, found, FILE_BYTES.name)
    return f"{float(f'{both[1].value / both[0].value:.2g}'):g}x" if both else ""


def beside(row: Row, found: Iterable[Row], name: str) -> str:
    """How a cost compares with the teacher's: `26x smaller`, `1.08x slower (1.05 to 1.11)`; empty where there is
    nothing to compare, or but a range."""
    both = _both(row, found, name)
    if both is None:
        return ""
    better, worse = declared()[name].words
    ours, theirs = both
    # what two predictions are off by, they share: no interval
    if {ours.origin, theirs.origin} in ({"counted"}, {"predicted"}):
        ratio, guessed = ours.value / theirs.value, " by prediction" if ours.origin == "predicted" else ""
        if guessed and (ranged(ours) or ranged(theirs)):
            return ""
        if guessed and max(ratio, 1 / ratio) <= intervals.clear(ours, theirs):
            return f"not shown to be {worse} or {better}{guessed}"
        return f"{_times(max(ratio, 1 / ratio))}x {worse if ratio > 1 else better}{guessed}"
    ratio, low, high = intervals.ratio_of(ours, theirs)
    if low <= 1 <= high:
        return f"not shown to be {worse} or {better} ({_times(low)} to {_times(high)} of its time)"
    ratio, low, high, word = (ratio, low, high, worse) if low > 1 else (1 / ratio, 1 / high, 1 / low, better)
    return f"{_times(ratio)}x {word} ({_times(low)} to {_times(high)})"


def _both(row: Row, found: Iterable[Row], name: str) -> tuple[Measurement, Measurement] | None:
    """The figure and the teacher's."""
    theirs = next((r.figures.get(name) for r in found if r.role == "teacher"), None)
    ours = row.figures.get(name)
    if theirs is None or ours is None or row.role == "teacher" or min(ours.low, theirs.low) <= 0:
        return None
    return ours, theirs


def _times(ratio: float) -> str:
    """A ratio, to the per cent below ten."""
    return f"{float(f'{ratio:.2f}' if ratio < 10 else f'{ratio:.2g}'):g}"


def origins(found: Iterable[Row], shown: Iterable[str]) -> tuple[str, ...]:
    """The origins of what is shown, for a legend."""
    shown = tuple(shown)
    known = {row.figures[name].origin for row in found for name in shown if name in row.figures}
    return tuple(o for o in MARKS if o in known)


def verdict(target: str, found: TargetResult) -> str:
    """`host: PASS, chosen prune-0.5.int8 (reason)`."""
    chosen = f"chosen {clean(found.chosen)}" if found.chosen else "nothing chosen"
    gate = VERDICTS[found.verdict] + ", " if found.verdict else ""
    return f"{clean(target)}: {gate}{chosen}" + (f" ({clean(found.reason)})" if found.reason else "")


def caution(result: Result, target: str) -> str:
    """What a reader of the table would misread: an int8 choice that is slower than the float model it was made from. ''
    where it is not."""
    listed = {row.candidate.id: row for row in rows(result, target)}
    ours = next((row for row in listed.values() if row.chosen), None)
    if ours is None or "int8" not in ours.candidate.stages:
        return ""
    parent = next((listed[p] for p in ours.candidate.parents if p in listed), None)
    a, b = ours.figures.get(P50.name), parent.figures.get(P50.name) if parent is not None else None
    if a is None or b is None or min(a.low, b.low) <= 0:
        return ""
    ratio, low, high = intervals.ratio_of(a, b)
    if ratio <= 1 or low <= 1:  # a clear prediction has no limits
        return ""
    limits = " by prediction" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    of = f"the time of the float {clean(parent.candidate.id)}{limits}"
    return (
        f"int8 is slower here: {clean(ours.candidate.id)} takes {ratio:.2f} x {of}; at this size conversions cost "
        "more than integers save"
    )


def proof(result: Result, target: str) -> str:
    """What emulation showed of the chosen file for this target: `as Haswell: all outputs equal to this machine's (899
    samples); ...`, or ''."""
    chosen = next((c for c in result.candidates if c.id == result.targets[target].chosen), None)
    found = {
        m.name: m
        for m in (chosen.measurements if chosen is not None else ())
        if m.target == target and m.origin == "emulated"
    }
    same, spread = found.get(HOST_AGREEMENT.name), found.get(SPREAD.name)
    told = [] if same is None else [f"{same.note}, {number(same.value)} % of {same.n} answers"]
    told += (
        []
        if spread is None
        else [f"spread over CPUs {number(spread.value)} {spread.unit} ({spread.n} samples: {spread.note})"]
    )
    return clean("; ".join(told))


def elsewhere(result: Result, target: str) -> str:
    """What an int8 choice would do on x86 CPUs that add products in 16 bits, unless it runs on one of them exactly. ''
    where it is the same."""
    chosen = next((c for c in result.candidates if c.id == result.targets[target].chosen), None)
    found = next(
        (m for m in (chosen.measurements if chosen is not None else ()) if m.name == SATURABLE.name and m.value > 0),
        None,
    )
    if found is None:
        return ""
    text = f"on x86 with AVX2 and without VNNI {number(found.value)} layers can saturate ({found.note} in samples)"
    return clean(f"{text}; without pairs16 = false, of its stage or a target, the file is the same there")


def came_about(result: Result, target: str) -> list[tuple[str, str]]:
    """[(label, text)] of how a target's figures came about where the marks don't say it: what a predicted latency rests
    on, instructions, which files were run."""
    listed = rows(result, target)
    ours = next((r for r in listed if r.chosen), listed[0] if listed else None)
    if ours is None:
        return []
    told, quality = [], metrics(listed)
    guessed = next(
        (m for name in LATENCY if (m := ours.figures.get(name)) is not None and m.origin == "predicted"), None
    )
    if guessed is not None:
        bound = f" {value(guessed)} ms" if guessed.name != LATENCY[0] else ""
        told.append(("predicted", f"{guessed.name}{bound}, {guessed.note}"))
        told += [("range", advice(guessed))] if ranged(guessed) else []
    elif not any(name in r.figures for r in listed for name in LATENCY):
        told.append(("latency", f"none: no machine of the kind of {target} took part, and none is predicted for it"))
    work = ours.figures.get(INSTRUCTIONS.name)
    if work is not None:
        told.append(
            (
                INSTRUCTIONS.name,
                f"{value(work)} of an inference of {ours.candidate.id}, counted under emulation ({work.note})",
            )
        )
    other = {
        text
        for m in ours.figures.values()
        for text in m.note.split("; ")
        if text.startswith("with ") and ", the target has " in text
    }
    told += [("note", f"figures of {target} were made {text}") for text in sorted(other)]
    by_reference = next(
        (m.note for name in quality if (m := ours.figures.get(name)) is not None and m.note.startswith(REFERENCE)), ""
    )
    if by_reference:
        told.append(("quality", f"by the {by_reference}, since nothing runs as {target}; budgets of quality take it"))
    emulated = [name for name in quality if name in ours.figures and ours.figures[name].origin == "emulated"]
    if emulated and any(emulated[0] not in r.figures for r in listed):
        told.append(
            (
                "note",
                f"as {target} the chosen file alone was run: the choice went by what the files answer on the machine "
                "of this run",
            )
        )
    return [(label, clean(text)) for label, text in told]


def advice(m: Measurement) -> str:
    """What a range means, and what makes a figure of it."""
    return (
        f"how long the file takes on {m.target} is not known more narrowly than this; `edgekd targets calibrate "
        f"{m.target} --on ssh://user@host` times small networks on such a board in some minutes, and predictions are "
        "figures from then on"
    )


def notes(result: Result, target: str) -> list[tuple[str, str]]:
    """[(label, text)] of what stands beside a target's verdict."""
    told = (("emulated", proof(result, target)), ("note", caution(result, target)), ("note", elsewhere(result, target)))
    return [(label, text) for label, text in told if text]


def check(c: Check) -> str:
    """`top1 drop max 1 pt vs teacher: PASS at -0.3 [-1.1, 0.4] pt measured`."""
    figure = ""
    if c.value is not None:
        figure = f" at {number(c.value)}"
        if c.low is not None and c.high is not None and not c.low == c.value == c.high:
            figure += f" [{number(c.low)}, {number(c.high)}]"
        figure += f" {c.unit} {c.origin or ''}".rstrip()
    warn = " (warning only)" if c.level == "warn" else ""
    return clean(f"{c.name} {c.rule}: {VERDICTS[c.verdict]}{figure}{warn}" + (f": {c.reason}" if c.reason else ""))


def _order(role: str) -> int:
    return {"teacher": 0, "": 2}.get(role, 1)


def cost(step: Mapping[str, Any]) -> tuple[str, str]:
    """(seconds, peak memory in MB) of a step of `result.json`; empty where it isn't known."""
    seconds, peak = step.get("seconds"), step.get("peak_rss_bytes")
    number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
    return (f"{seconds:.1f}" if number(seconds) else "", f"{peak / 1e6:.0f}" if number(peak) else "")
