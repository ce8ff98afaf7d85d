"""Draws docs/report.svg, the picture in the README, from the report of a run.

edgekd compress                       # the built-in recipe: runs/digits
python docs/make_picture.py runs/digits
"""

from __future__ import annotations

import html
import re
import sys
import textwrap
from pathlib import Path

from edgekd import results
from edgekd.report import page

PICTURE = Path(__file__).resolve().parent / "report.svg"
WIDTH, CHART, TALL, ROW = 1180, 574, 369, 27
COLUMNS = 6  # of the report's table


def drawn(run: Path) -> str:
    """The summary, the two charts and the first columns of the table, as one SVG in the report's light colours."""
    report = page.render(results.read(run))
    summary = plain(re.search(r"<li>(.*?)</li>", report, re.S)[1])
    charts = re.findall(r"<svg.*?</svg>", report, re.S)[:2]
    lines, rows = textwrap.wrap(summary.partition(". ")[0], 130), table(report)
    body = [text(24, 38, "title", plain(re.search(r"<h1>(.*?)</h1>", report)[1]))]
    body += [text(24, 66 + 21 * i, "says", line) for i, line in enumerate(lines)]
    top = 66 + 21 * len(lines)
    for i, chart in enumerate(charts):
        place = f'x="{12 + i * (CHART + 8)}" y="{top}" width="{CHART}" height="{TALL}"'
        body += [f'<rect class="card" {place} rx="8"/>', chart.replace("<svg", f"<svg {place}", 1)]
    top += TALL + 34
    for number, (kind, cells) in enumerate(rows):
        body += line(top + ROW * number, kind, cells)
    height = top + ROW * len(rows)
    box = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(summary)}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', f"<style>{style()}</style>"]
    return "\n".join([*head, f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *body, "</svg>", ""])


def line(y: float, kind: str, cells: list[str]) -> list[str]:
    """A line of the table; the chosen file's has a ground."""
    ground = f'<rect class="card" x="12" y="{y - 18}" width="{WIDTH - 24}" height="{ROW}"/>'
    words = [text(x, y, f"cell {kind}", cell, end=x > 24) for x, cell in zip(places(len(cells)), cells, strict=True)]
    rule = f'<line class="grid" x1="12" x2="{WIDTH - 12}" y1="{y + 9}" y2="{y + 9}"/>'
    return [*([ground] if kind == "chosen" else []), *words, rule]


def table(report: str) -> list[tuple[str, list[str]]]:
    """(class, cells) of the first table's lines, its head first."""
    found = re.search(r"<table>(.*?)</table>", report, re.S)[1]
    rows = re.findall(r"<tr(?: class=\"(\w+)\")?>(.*?)</tr>", found, re.S)
    cells = [(kind or "head", re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)) for kind, row in rows]
    return [(kind, [plain(cell) for cell in row[:COLUMNS]]) for kind, row in cells]


def places(count: int) -> list[float]:
    """Where columns stand: the first begins at the left, the others end at equal distances."""
    return [24, *(240 + (WIDTH - 264) * i / (count - 1) for i in range(1, count))]


def text(x: float, y: float, kind: str, words: str, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:.0f}" y="{y}"{anchor}>{html.escape(words)}</text>'


def plain(markup: str) -> str:
    """Its words; an interval in small print is set off, marks of origin are left out."""
    markup = re.sub(r"<sup>.*?</sup>", "", markup.replace("<small>", " ").replace("<br>", " "))
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())


OWN = """
.chart { font-family: system-ui, sans-serif; }
.title { font: 600 24px system-ui, sans-serif; }
.says { font: 15px system-ui, sans-serif; }
.card { fill: var(--card); }
.grid { stroke: var(--line); }
.cell { font: 14px system-ui, sans-serif; }
.head { fill: var(--soft); font-weight: 600; }
.cell.chosen { fill: var(--chosen); font-weight: 600; }
.cell.dominated { fill: var(--soft); }
"""


def style() -> str:
    """The report's rules for what is in charts, and those for the rest, with the light colours put in: many programs
    know no variables."""
    css = page.STYLE.read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#\w+)", css.partition("@media")[0]))
    rules = [*re.findall(r"\.chart [^{}]+\{[^{}]*\}", css), OWN]
    return re.sub(r"var\(--(\w+)\)", lambda m: colours[m[1]], "\n".join(rules))


if __name__ == "__main__":
    PICTURE.write_text(drawn(Path(sys.argv[1])), encoding="utf-8")
