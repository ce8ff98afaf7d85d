"""Measurements of one file as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekd.errors import plain
from edgekd.records import Measurement
from edgekd.report import notes, numbers
from edgekd.report.tables import aligned


def table(measurements: Sequence[Measurement]) -> str:
    """Measurements as lines: name, figure with interval and unit, number of samples, origin, note. Below them, advice
    on figures that are only known as a range."""
    rows = [("", "value", "95 % interval", "n", "origin", "")]
    for m in measurements:
        bound = m.origin == "predicted" and m.low == m.high
        interval = "exact" if m.origin == "counted" else "a bound" if bound else f"[{figure(m.low)}, {figure(m.high)}]"
        taken = "" if m.origin in ("counted", "predicted") else str(m.n)
        value = numbers.value(m) if numbers.ranged(m) else figure(m.value)
        rows.append(
            (m.name, f"{value} {m.unit}".strip(), "a range" if numbers.ranged(m) else interval, taken, m.origin, m.note)
        )
    return "\n".join(
        [aligned(rows), *plain(tuple(f"{m.name}: {notes.advice(m)}" for m in measurements if numbers.ranged(m)))]
    )


def figure(value: float) -> str:
    """Integers with thousands separators; other numbers with four significant digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:.4g}"
