"""All that was seen."""

from __future__ import annotations

from typing import Any


def minmax(histogram: Any) -> tuple[float, float]:
    """The exact extremes."""
    return histogram.low, histogram.high
