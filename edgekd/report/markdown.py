"""report.md: the trade-off table, verdicts and checks, for a pull request."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import results
from edgekd.files import write_atomic
from edgekd.records import Result
from edgekd.report import notes, numbers, rows
from edgekd.report.machine import markdown, summary
from edgekd.report.rows import Row


def write(run_folder: Path | str) -> Path:
    """Writes RUN/report.md from RUN/result.json. Raises UsageError where the run can't be read."""
    folder = Path(run_folder)
    path = folder / "report.md"
    write_atomic(path, render(results.read(folder / "result.json")).encode())
    return path


def render(result: Result) -> str:
    parts = [f"# edgekd: {markdown(result.task)}"]
    parts.append("\n".join(f"- {markdown(notes.verdict(name, found))}" for name, found in result.targets.items()))
    for target, found in result.targets.items():
        listed = rows.rows(result, target)
        parts += [f"## {markdown(target)}", _table(listed), _caption(listed)]
        parts += [
            f"{label.capitalize()}: {markdown(told)}."
            for label, told in (*notes.notes(result, target), *notes.came_about(result, target))
        ]
        if found.checks:
            parts += ["### Budgets", summary(found.checks).rstrip()]
    if result.steps:
        parts += ["## Cost", _steps(result.steps)]
    parts.append(f"Recipe sha256 {_code(result.recipe_sha256)}. Machines: {_machines(result)}.")
    again = shlex.join(["edgekd", "compress", "recipe.toml", "--out", "."])
    parts.append(f"To repeat the run: `{again}` in the run's folder.")
    return "\n\n".join(parts) + "\n"


def _table(listed: Sequence[Row]) -> str:
    names = rows.columns(listed)
    units = {n: next(r.figures[n].unit for r in listed if n in r.figures) for n in names}
    head = ["candidate", *(rows.title(n, units[n]) for n in names), "size, teacher = 1"]
    lines = ["| " + " | ".join(markdown(h) for h in head) + " |", "|---|" + "---:|" * (len(names) + 1)]
    for row in listed:
        mark = (
            " **chosen**" if row.chosen else " (front)" if row.front else f" ({markdown(row.role)})" if row.role else ""
        )
        times = rows.smaller(row, listed)
        cells = [f"{_code(row.candidate.id)}{mark}", *(_cell(row, n) for n in names), _share(times)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(times: str) -> str:
    """`8.2x` smaller as 1/8.2 of the teacher's size; a larger file as a multiple of it."""
    ratio = float(times[:-1] or 0)
    return "" if not ratio else f"1/{ratio:g}" if ratio >= 1 else f"{1 / ratio:.2g}"


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    """Time and memory of every step when it was made, also of reused steps."""
    lines = ["| step | stage | seconds | peak MB |", "|---|---|---:|---:|"]
    for step in steps:
        cells = [markdown(str(step.get("step", ""))), markdown(str(step.get("stage", ""))), *numbers.cost(step)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _code(name: str) -> str:
    """A plain name as code; any other name as text, where all characters can be escaped."""
    return f"`{name}`" if re.fullmatch(r"[A-Za-z0-9_.+=-]+", name) else markdown(name)


def _cell(row: Row, name: str) -> str:
    m = row.figures.get(name)
    return (
        ""
        if m is None
        else markdown(" ".join(filter(None, [numbers.value(m), numbers.interval(m), rows.MARKS[m.origin]])))
    )


def _caption(listed: Sequence[Row]) -> str:
    marks = ", ".join(f"{rows.MARKS[o]} {rows.ORIGINS[o]}" for o in rows.origins(listed, rows.columns(listed)))
    return (
        "Quality is measured on the test split; front and choice were decided on validation. "
        f"\\[low, high\\] is the 95 % interval. {marks}."
    )


def _machines(result: Result) -> str:
    return (
        ", ".join(markdown(f"{facts.get('cpu', 'unknown')} ({id})") for id, facts in result.environment.items())
        or "none"
    )
