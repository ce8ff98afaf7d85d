"""report.html, a self-contained file. Every text of the run is escaped, since names come from recipes and files may
come from anywhere."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import results
from edgekd.errors import plain
from edgekd.files import write_atomic
from edgekd.probes.quality import AGREEMENT
from edgekd.records import Candidate, Check, Measurement, Result, TargetResult
from edgekd.report import charts, notes, numbers, rows
from edgekd.report.machine import figure
from edgekd.report.rows import Row

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # unescaped text could load and run nothing
STYLE = Path(__file__).with_name("page.css")
RECIPE_LIMIT = 2**20  # characters


def write(run_folder: Path | str) -> Path:
    """Writes RUN/report.html from RUN/result.json and RUN/recipe.toml. Raises UsageError where the run can't be
    read."""
    folder = Path(run_folder)
    recipe = folder / "recipe.toml"
    text = recipe.read_text(encoding="utf-8", errors="replace")[:RECIPE_LIMIT] if recipe.is_file() else ""
    path = folder / "report.html"
    write_atomic(path, render(results.read(folder / "result.json"), text).encode())
    return path


def render(result: Result, recipe: str = "") -> str:
    """The page. The same result gives the same page."""
    title, style = f"edgekd: {result.task}", STYLE.read_text(encoding="utf-8")
    body = [f"<header><h1>{text(result.task)}</h1>{_summary(result)}</header>"]
    body += [_target(result, name, found) for name, found in result.targets.items()]
    body += [_environment(result.environment), _steps(result), _recipe(result, recipe), _everything(result.candidates)]
    return (
        "<!doctype html>\n"
        '<html lang="en">\n'
        "<head>\n"
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n"
        "<style>\n"
        f"{style}</style>\n"
        "</head>\n"
        "<body>\n"
        "<main>\n" + "\n".join(filter(None, body)) + "\n</main>\n</body>\n</html>\n"
    )


def brief(result: Result) -> str:
    """The result of a run and its candidates' figures, for a notebook cell."""
    return "\n".join(
        [_summary(result), *(f"<h4>{text(name)}</h4>\n{_figures(rows.rows(result, name))}" for name in result.targets)]
    )


def text(value: Any) -> str:
    return html.escape(plain(str(value)))


def table(head: Sequence[str], lines: Iterable[Sequence[str]], classes: Iterable[str] = (), left: int = 1) -> str:
    """A table of cells in HTML; all but the first `left` columns are figures. `classes`: one per line."""
    lines, classes = list(lines), list(classes)
    kinds = ["" if i < left else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th{k}>{h}</th>" for h, k in zip(head, kinds, strict=True))
    rows = []
    for i, line in enumerate(lines):
        kind = f' class="{classes[i]}"' if classes and classes[i] else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td{k}>{c}</td>" for c, k in zip(line, kinds, strict=True)) + "</tr>")
    return (
        f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _summary(result: Result) -> str:
    lines = []
    for name, found in result.targets.items():
        badge = f'<span class="badge {found.verdict}">{notes.VERDICTS[found.verdict]}</span> ' if found.verdict else ""
        lines.append(f"<li>{badge}<b>{text(name)}</b>: {_sentence(result, name, found)}{_caution(result, name)}</li>")
    return f'<ul class="summary">{"".join(lines)}</ul>'


def _caution(result: Result, target: str) -> str:
    return "".join(f". {text(told)}" for _, told in notes.notes(result, target))


def _sentence(result: Result, target: str, found: TargetResult) -> str:
    """The result for a target in one line."""
    if not found.chosen:
        return f"nothing chosen{': ' + text(found.reason) if found.reason else ''}"
    listed = rows.rows(result, target)
    row = next(r for r in listed if r.chosen)
    ratios = [times for q in rows.compared(row.figures) if (times := rows.beside(row, listed, q.name))]
    facts = [f"{' and '.join(ratios)} than the teacher"] if ratios else []
    teacher = next((r for r in listed if r.role == "teacher"), None)
    for name in rows.metrics(listed)[:1]:
        if name in row.figures:
            theirs = f" (teacher {numbers.value(teacher.figures[name])})" if teacher and name in teacher.figures else ""
            facts.append(f"{text(name)} {numbers.value(row.figures[name])} {text(row.figures[name].unit)}{theirs}")
    return (
        f"<code>{text(found.chosen)}</code>"
        + (f", {', '.join(facts)}" if facts else "")
        + (f". {text(found.reason)}" if found.reason else "")
    )


def _target(result: Result, target: str, found: TargetResult) -> str:
    listed = rows.rows(result, target)
    parts = [f"<h2>{text(target)}</h2>", _charts(listed), _figures(listed)]
    parts += [
        f'<p class="key">{text(label.capitalize())}: {text(told)}.</p>'
        for label, told in notes.came_about(result, target)
    ]
    if found.checks:
        parts += ["<h3>Budgets</h3>", _checks(found.checks, found.chosen)]
    return "<section>\n" + "\n".join(filter(None, parts)) + "\n</section>"


def _charts(listed: Sequence[Row]) -> str:
    up, costs = (
        next(iter((*rows.metrics(listed), AGREEMENT.name))),
        rows.compared(n for r in listed for n in r.figures),
    )
    drawn = []
    for quantity in sorted(costs, key=lambda q: q.origin == "counted"):
        cost = quantity.name
        points = [_point(r, cost, up) for r in listed if cost in r.figures and up in r.figures]
        if len(points) > 1:
            unit = next(r.figures[up].unit for r in listed if up in r.figures)
            across = f"{quantity.title}, {quantity.unit}" if quantity.unit else quantity.title
            upward = f"{plain(up)}, {plain(unit)}" if unit else plain(up)
            drawn.append(f"<figure>{charts.tradeoff(points, across, upward)}</figure>")
    if not drawn:
        return (
            '<p class="note">No chart: fewer than two files have both quality and cost for this target, since no '
            "machine with its features was connected.</p>"
        )
    key = (
        '<p class="key"><span class="chosen">&#9673; chosen</span> <span class="front">&#9679; on the front</span> '
        '<span class="reference">&#9632; reference</span> <span class="dominated">&#8226; not on the front</span>; '
        "whiskers are 95 % intervals. "
        "The charts show the test split; front and choice were decided on validation.</p>"
    )
    return f'<div class="charts">{"".join(drawn)}</div>\n{key}'


def _point(row: Row, cost: str, up: str) -> charts.Point:
    x, y = row.figures[cost], row.figures[up]
    kind: charts.Kind = "chosen" if row.chosen else "front" if row.front else "reference" if row.role else "dominated"
    hint = (
        f"{row.candidate.id}: {up} {numbers.value(y)} {numbers.interval(y)} {y.unit}, {cost} {numbers.value(x)} "
        f"{numbers.interval(x)} {x.unit}"
    )
    return charts.Point(plain(row.candidate.id), kind, (x.value, x.low, x.high), (y.value, y.low, y.high), plain(hint))


def _figures(listed: Sequence[Row]) -> str:
    names = rows.columns(listed, page=True)
    units = {n: next(r.figures[n].unit for r in listed if n in r.figures) for n in names}
    head = ["candidate", *(text(rows.title(n, units[n])) for n in names)]
    lines, classes = [], []
    for row in listed:
        note = "chosen" if row.chosen else "front" if row.front else row.role
        times = {q.name: rows.beside(row, listed, q.name) for q in rows.compared(row.figures)}
        cells = [
            f"<code>{text(row.candidate.id)}</code>"
            + (f" <small>{text(note)}</small>" if note and note != row.candidate.id else "")
        ]
        for n in names:
            extra = f"<small>{times[n]}</small>" if times.get(n) else ""
            cells.append(_cell(row.figures.get(n), extra))
        lines.append(cells)
        classes.append("chosen" if row.chosen else "front" if row.front else "reference" if row.role else "dominated")
    marks = ", ".join(f"<sup>{rows.MARKS[o]}</sup> {text(rows.ORIGINS[o])}" for o in rows.origins(listed, names))
    return table(head, lines, classes) + (f'\n<p class="key">{marks}.</p>' if marks else "")


def _cell(m: Measurement | None, extra: str = "") -> str:
    if m is None:
        return ""
    limits = numbers.interval(m)
    exact = (f"{m.low:g} to {m.high:g} {m.unit}" if numbers.ranged(m) else f"{m.value:g} {m.unit}, n = {m.n}") + (
        f", {m.note}" if m.note else ""
    )
    below = "".join(filter(None, [f"<small>{limits}</small>" if limits else "", extra]))
    return f'<span title="{text(exact)}">{numbers.value(m)}<sup>{rows.MARKS[m.origin]}</sup></span>{below}'


def _checks(checks: Sequence[Check], chosen: str | None) -> str:
    head = ["verdict", "candidate", "measurement", "rule", "value", "why", "where"]
    lines = []
    for c in checks:
        badge = f'<span class="badge {c.verdict}">{notes.VERDICTS[c.verdict]}</span>' + (
            " <small>warning only</small>" if c.level == "warn" else ""
        )
        lines.append(
            [
                badge,
                f"<code>{text(c.candidate)}</code>",
                *(text(v) for v in (c.name, c.rule, figure(c), c.reason, c.place)),
            ]
        )
    return table(head, lines, left=len(head))


def _environment(environment: Mapping[str, Mapping[str, Any]]) -> str:
    if not environment:
        return ""
    names = list(dict.fromkeys(name for facts in environment.values() for name in facts))
    lines = [[text(name), *(_fact(facts.get(name)) for facts in environment.values())] for name in names]
    return (
        "<section><h2>Machines</h2>\n"
        f"{table(['', *(f'<code>{text(id)}</code>' for id in environment)], lines, left=99)}</section>"
    )


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{text(k)} {text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text(v) for v in value)
    return "" if value is None else text({True: "yes", False: "no"}[value] if isinstance(value, bool) else value)


def _steps(result: Result) -> str:
    if not result.steps:
        return ""
    done = lambda s: "reused" if s.get("reused") else "made"
    lines = [[text(s.get("step", "")), text(s.get("stage", "")), done(s), *numbers.cost(s)] for s in result.steps]
    listed = table(["step", "stage", "", "seconds", "peak MB"], lines, left=3)
    return f"<section><h2>Steps</h2>\n<details><summary>{len(lines)} steps</summary>{listed}</details></section>"


def _recipe(result: Result, recipe: str) -> str:
    again = shlex.join(["edgekd", "compress", "recipe.toml", "--out", "."])
    parts = ["<section><h2>Recipe, and how to repeat the run</h2>"]
    parts.append(
        f"<p>In the folder of this run: <code>{text(again)}</code>. The recipe's SHA-256 is "
        f"<code>{text(result.recipe_sha256)}</code>.</p>"
    )
    if recipe:
        parts.append(f"<details><summary>recipe.toml</summary><pre>{html.escape(_lines(recipe))}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _lines(recipe: str) -> str:
    return "\n".join(plain(line.replace("\t", "    ")) for line in recipe.splitlines())


def _everything(candidates: Sequence[Candidate]) -> str:
    """All measurements with all their fields, of both splits."""
    head = [
        "candidate",
        "measurement",
        "split",
        "target",
        "origin",
        "machine",
        "note",
        "n",
        "threads",
        "value",
        "low",
        "high",
        "unit",
    ]
    lines = [
        [
            *(text(v or "") for v in (c.id, m.name, m.split, m.target, m.origin, m.environment, m.note)),
            *(text("" if v is None else v) for v in (m.n, m.threads)),
            *(
                f"{v:.6g}" if isinstance(v, float) and not v.is_integer() else f"{v:,.0f}"
                for v in (m.value, m.low, m.high)
            ),
            text(m.unit),
        ]
        for c in candidates
        for m in c.measurements
    ]
    files = [
        [f"<code>{text(v or '')}</code>" for v in (c.id, " > ".join(c.stages), c.form, c.file, c.sha256)]
        for c in candidates
    ]
    listed = table(["candidate", "stages", "form", "file", "sha256"], files, left=5)
    return (
        f"<section><h2>All figures</h2>\n<details><summary>{len(candidates)} files</summary>{listed}</details>\n"
        f"<details><summary>{len(lines)} measurements</summary>{table(head, lines, left=7)}</details></section>"
    )
