"""Numbers in reports: significant digits by their interval, units, ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekd.probes import quantity
from edgekd.records import Measurement

WIDE = 2.0  # a prediction with a wider interval, to either side, is shown as a range


def number(value: float, digits: int | None = None) -> str:
    """Integers with thousands separators; other numbers with four significant digits, or `digits` decimals."""
    if not math.isfinite(value):
        return str(value)
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def short(value: float, digits: int = 3) -> str:
    """A number in short form: 1.23M, 96.2k, 0.05."""
    value = float(f"{value:.{digits}g}")
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def digits(m: Measurement) -> int | None:
    """The number of decimals for an interval: two significant digits of its width; for a predicted one, which is a
    factor to each side, two of its lower end."""
    width = min(m.low or math.inf, m.high - m.low) if m.origin == "predicted" else m.high - m.low
    return None if m.origin == "counted" or width <= 0 else min(6, max(0, 1 - math.floor(math.log10(width))))


def scaled(m: Measurement) -> Measurement:
    """The measurement in the unit of reports, such as MB for peak memory."""
    known = quantity(m.name)
    if known is None or known.shown is None:
        return m
    unit, size = known.shown
    return replace(m, unit=unit, value=m.value / size, low=m.low / size, high=m.high / size)


def ranged(m: Measurement) -> bool:
    """Whether a predicted figure is so uncertain that only its range is shown."""
    return (
        m.origin == "predicted"
        and m.low < m.high
        and m.value > 0
        and (m.high > WIDE * m.value or m.low * WIDE < m.value)
    )


def value(m: Measurement) -> str:
    """The figure as text; a range as `low to high`."""
    m = scaled(m)
    if ranged(m):
        low, high = (number(float(f"{v:.2g}")) for v in (m.low, m.high))
        return f"{low} to {high}"
    return number(m.value, digits(m))


def interval(m: Measurement) -> str:
    """`[low, high]`; "" if the figure is exact, or a range itself."""
    m = scaled(m)
    return (
        ""
        if m.origin == "counted" or m.low == m.high or ranged(m)
        else f"[{number(m.low, digits(m))}, {number(m.high, digits(m))}]"
    )


def cost(step: Mapping[str, Any]) -> tuple[str, str]:
    """(seconds, peak memory in MB) of a step of `result.json`; empty where it isn't known."""
    seconds, peak = step.get("seconds"), step.get("peak_rss_bytes")
    number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
    return (f"{seconds:.1f}" if number(seconds) else "", f"{peak / 1e6:.0f}" if number(peak) else "")
