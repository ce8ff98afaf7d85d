"""The trade-off as inline SVG: a cost across, quality up, whiskers for 95 % intervals, a line along the front. Colours
come from the page's CSS."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekd.report.numbers import short

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 50
GLYPH = 6.3  # width of a letter of a label, roughly
LINE = 13  # height of a label
FAR = 24  # pixels from a point to its label, from which a line joins them
CROWD = 12  # points, beyond which those that are not on the front have no label
TICKS = 6  # at most, of an axis
DECADE = 8.0  # costs that span more than this factor are drawn on a logarithmic scale

Kind = Literal["chosen", "front", "reference", "dominated"]


@dataclass(frozen=True)
class Point:
    """A candidate: value, low, high across and up, both in their axis' unit."""

    label: str
    kind: Kind
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    hint: str = ""


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to pixels [first, last]."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (math.log10(max(t, 1e-300)) if self.log else t for t in (self.low, self.high, value))
        return self.first + (self.last - self.first) * min(1.0, max(0.0, (v - a) / (b - a)))


def tradeoff(points: Sequence[Point], across: str, up: str) -> str:
    """An SVG element of points; `across` and `up` are the axes' titles. Empty without points."""
    if not points:
        return ""
    x = _scale([v for p in points for v in p.x], LEFT, WIDTH - RIGHT, positive=True)
    y = _scale([v for p in points for v in p.y], HEIGHT - BOTTOM, TOP)
    title = html.escape(f"{up} against {across}, {len(points)} candidates")
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        *_axes(x, y, across, up),
    ]
    front = sorted((x(p.x[0]), y(p.y[0])) for p in points if p.kind in ("front", "chosen"))
    if len(front) > 1:
        parts.append(f'<polyline class="line" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in front)}"/>')
    order: dict[Kind, int] = {"dominated": 0, "reference": 1, "front": 2, "chosen": 3}
    drawn = sorted(points, key=lambda p: order[p.kind])
    parts += [_mark(p, x, y) for p in drawn]
    parts += _labels(drawn[::-1], x, y)
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round values in [low, high]: 1, 2, 5 times a power of ten; of each decade where the scale is logarithmic."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
        return found if len(found) <= TICKS + 2 else [v for v in found if f"{v:e}"[0] == "1"] or found[::3]
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= TICKS)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _scale(values: Sequence[float], first: float, last: float, positive: bool = False) -> Scale:
    low, high = min(values), max(values)
    if positive and low > 0 and high / low > DECADE:
        room = (high / low) ** 0.06
        return Scale(low / room, high * room, first, last, log=True)
    room = 0.08 * (high - low) or abs(high) * 0.05 or 1.0
    return Scale(max(0.0, low - room) if low >= 0 else low - room, high + room, first, last)


def _axes(x: Scale, y: Scale, across: str, up: str) -> Iterator[str]:
    for v in ticks(x.low, x.high, x.log):
        yield f'<line class="grid" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text class="tick" x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(v, 4)}</text>'
    for v in ticks(y.low, y.high):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 7}" y="{y(v) + 4:.1f}" text-anchor="end">{short(v, 4)}</text>'
    log = ", logarithmic" if x.log else ""
    yield (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" '
        f'text-anchor="middle">{html.escape(across)}{log}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text class="axis" x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">{html.escape(up)}</text>'
    )


def _mark(p: Point, x: Scale, y: Scale) -> str:
    """Whiskers and a marker whose shape tells the kind, so that colour is not needed."""
    a, b = x(p.x[0]), y(p.y[0])
    whiskers = [((x(p.x[1]), b), (x(p.x[2]), b)), ((a, y(p.y[1])), (a, y(p.y[2])))]
    lines = "".join(
        f'<line class="whisker" x1="{s[0]:.1f}" y1="{s[1]:.1f}" x2="{e[0]:.1f}" y2="{e[1]:.1f}"/>'
        for s, e in whiskers
        if s != e
    )
    shape = {
        "dominated": f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>',
        "front": f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="5"/>',
        "reference": f'<rect class="mark" x="{a - 4.5:.1f}" y="{b - 4.5:.1f}" width="9" height="9"/>',
        "chosen": f'<circle class="ring" cx="{a:.1f}" cy="{b:.1f}" r="10"/>'
        f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="6"/>',
    }[p.kind]
    return f'<g class="{p.kind}"><title>{html.escape(p.hint or p.label)}</title>{lines}{shape}</g>'


def _labels(points: Sequence[Point], x: Scale, y: Scale) -> Iterator[str]:
    """Each label where it covers no marker and no other label; one that fits nowhere is left to the pointer (and the
    table)."""
    reach = [(11 if p.kind == "chosen" else 6, x(p.x[0]), y(p.y[0])) for p in points]
    marks = [(a - r, b - r, a + r, b + r) for r, a, b in reach]
    taken: list[tuple[float, float, float, float]] = []
    for p in points:
        if p.kind == "dominated" and len(points) > CROWD:
            continue
        wide, a, b = GLYPH * len(p.label), x(p.x[0]), y(p.y[0])
        clear = 5 if p.kind == "chosen" else 0
        for gap, side, rise in itertools.product(
            (11 + clear, 16 + clear, FAR, 34, 48), ("start", "end", "middle"), (0, -1, 1)
        ):
            if side == "middle" and not rise:
                continue
            left = {"start": a + gap, "end": a - gap - wide, "middle": a - wide / 2}[side]
            base = b + 4 + rise * (gap if side == "middle" else gap * 0.7)
            box = (left, base - LINE + 3, left + wide, base + 3)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in (*taken, *marks)):
                taken.append(box)
                if gap >= FAR:
                    end = min(max(a, left), left + wide)
                    yield (
                        f'<line class="leader" x1="{a:.1f}" y1="{b:.1f}" x2="{end:.1f}" '
                        f'y2="{base - 4 if end != a else base + 2:.1f}"/>'
                    )
                yield f'<text class="label {p.kind}" x="{left:.1f}" y="{base:.1f}">{html.escape(p.label)}</text>'
                break


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
