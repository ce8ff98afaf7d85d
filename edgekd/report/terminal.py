"""The trade-off table as text, printed at the end of a run: figures per target, a legend, verdicts, and the next
commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd import environment, targets
from edgekd.errors import plain
from edgekd.probes import quantity
from edgekd.probes.state import STATE_BYTES
from edgekd.probes.static import FILE_BYTES
from edgekd.probes.times import P50
from edgekd.records import Result
from edgekd.report import notes, numbers, rows
from edgekd.report.rows import Row
from edgekd.report.tables import styled

WIDE = 140  # columns, if the width is not known
COLUMNS, INTERVALS = 50, 90  # of `Quantity.keep`: from here on a column always stays, and its interval too
SMALLER = ("smaller", 30)  # the column next to the bytes, and its priority


def table(
    result: Result, folder: Path | str | None = None, *, width: int | None = None, colour: bool | None = None
) -> str:
    """The text that a run prints at its end. `folder`: the run's, for the commands; `width` in columns and `colour`: by
    default the terminal's."""
    tty = sys.stdout.isatty()
    width = width or (shutil.get_terminal_size((WIDE, 24)).columns if tty else WIDE)
    colour = tty if colour is None else colour
    parts = []
    for target in result.targets:
        found = rows.rows(result, target)
        parts.append("\n".join([_headline(result, target), _fit(found, width, colour), "", *_legend(found)]))
    parts.append("\n".join(_verdicts(result)))
    parts.append("\n".join(_next(result, folder)))
    return "\n\n".join(parts)


def _headline(result: Result, target: str) -> str:
    return f"{plain(result.task)} on {plain(target)}"


@dataclass(frozen=True)
class Left:
    """The parts that a table leaves out: columns, and intervals of other columns, by the names of measurements."""

    columns: frozenset[str] = frozenset()
    intervals: frozenset[str] = frozenset()


def _leaner(found: Sequence[Row]) -> Iterator[Left]:
    """Yields what to leave out: nothing, then more and more intervals, then columns, the lowest priority first."""
    keep = {n: q.keep for n in rows.columns(found) if (q := quantity(n)) is not None and q.keep < INTERVALS}
    keep |= dict([SMALLER])
    steps = sorted(set(keep.values()))
    for most in (0, *steps):
        yield Left(intervals=frozenset(n for n in keep if keep[n] <= most))
    for most in (k for k in steps if k < COLUMNS):
        yield Left(frozenset(n for n in keep if keep[n] <= most), frozenset(keep))


def _fit(found: Sequence[Row], width: int, colour: bool) -> str:
    """The fullest table that fits, or the smallest if none does, with a note on what was left out."""
    without = Left()
    for without in _leaner(found):
        if max(len(line) for line in _render(found, without, False).splitlines()) <= width:
            break
    names = rows.columns(found)
    gone = [rows.title(n) for n in names if n in without.columns]
    bare = [rows.title(n) for n in names if n in without.intervals - without.columns and _has_interval(found, n)]
    parts = [", ".join(gone), f"the intervals of {', '.join(bare)}" if bare else ""]
    note = f"\nonly in the report: {' and '.join(filter(None, parts))}" if gone or bare else ""
    return _render(found, without, colour) + note


def _has_interval(found: Sequence[Row], name: str) -> bool:
    return any(numbers.interval(row.figures[name]) for row in found if name in row.figures)


def _render(found: Sequence[Row], without: Left, colour: bool) -> str:
    names = [n for n in rows.columns(found) if n not in without.columns]
    ratio = SMALLER[0] not in without.columns and any(r.role == "teacher" for r in found)
    common, heads = {name: _common(found, name) for name in names}, ["", "candidate"]
    for name in names:
        m = next(row.figures[name] for row in found if name in row.figures)
        heads.append(f"{rows.title(name, m.unit)} {rows.MARKS.get(common[name], '')}".rstrip())
        heads += [SMALLER[0]] if name == FILE_BYTES.name and ratio else []
    lines: list[list[str]] = []
    for row in found:
        lines.append([">" if row.chosen else "*" if row.front else "", plain(row.candidate.id)])
        for name in names:
            lines[-1].append(_cell(row, name, without, marked=not common[name]))
            lines[-1] += [rows.smaller(row, found)] if name == FILE_BYTES.name and ratio else []
    styles = ["bold green" if r.chosen else "" if r.front else "cyan" if r.role else "dim" for r in found]
    return styled(heads, lines, styles, right=2, colour=colour)


def _common(found: Sequence[Row], name: str) -> str:
    """The origin that all figures of a column share, for its heading; "" if they differ."""
    known = {row.figures[name].origin for row in found if name in row.figures}
    return known.pop() if len(known) == 1 else ""


def _cell(row: Row, name: str, without: Left, marked: bool) -> str:
    m = row.figures.get(name)
    if m is None:
        return "-"
    value = numbers.short(m.value) if m.origin == "counted" and not m.unit else numbers.value(m)
    return " ".join(
        filter(
            None,
            [value, "" if name in without.intervals else numbers.interval(m), rows.MARKS[m.origin] if marked else ""],
        )
    )


def _legend(found: Sequence[Row]) -> list[str]:
    names = rows.columns(found)
    marks = "; ".join(f"{rows.MARKS[o]} {rows.ORIGINS[o]}" for o in rows.origins(found, names))
    what = "quality is measured on the test split; [low, high] is the 95 % interval; smaller: than the teacher"
    return ["> chosen, * on the front: both decided on validation", what, *([marks] if marks else [])]


def _verdicts(result: Result) -> list[str]:
    lines = []
    for target, found in result.targets.items():
        lines.append(notes.verdict(target, found))
        for c in found.checks:
            whose = "" if c.candidate == found.chosen else f"{plain(c.candidate)}: "
            lines.append(f"  {whose}{notes.check(c)}")
        lines += [
            f"  {label}: {text}" for label, text in (*notes.notes(result, target), *notes.came_about(result, target))
        ]
    return lines


def _here(target: str) -> bool:
    """Whether this machine can time a target by its name. A board's address and a user's target file are not known
    here."""
    if target not in targets.names():
        return False
    return targets.times(targets.load(target), environment.describe())


def _next(result: Result, folder: Path | str | None) -> list[str]:
    """The report's path and the commands to try next; an unknown folder is written as RUN."""
    home = "RUN" if folder is None else plain(str(folder))
    files = {c.id: c.file for c in result.candidates if c.file}
    verdicts = {t.verdict for t in result.targets.values()}
    commands = [["edgekd", "gate", home, *(["--why"] if verdicts & {"fail", "inconclusive"} else [])]]
    teacher = files.get(result.references.get("teacher", ""))
    timed = {
        (c.id, m.target)
        for c in result.candidates
        for m in c.measurements
        if (m.name, m.origin) == (P50.name, "measured")
    }
    states = {c.id: m.value for c in result.candidates for m in c.measurements if m.name == STATE_BYTES.name}
    for target, found in result.targets.items():
        ours = files.get(found.chosen or "")
        if states.get(found.chosen or "") != states.get(result.references.get("teacher", "")):
            continue  # one pair of inputs is no input of both
        if teacher and ours and (found.chosen, target) in timed and _here(target):
            commands.append(["edgekd", "compare", f"{home}/{teacher}", f"{home}/{ours}", "--target", target])
            break
    return [f"report: {home}/report.html", *(f"next: {plain(shlex.join(c))}" for c in commands)]
