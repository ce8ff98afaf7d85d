"""The range of all values."""

from __future__ import annotations

from typing import Any


def minmax(extremes: Any) -> tuple[float, float]:
    """The exact minimum and maximum.

    >>> import numpy as np
    >>> from edgekd.quantization.histogram import Extremes
    >>> extremes = Extremes()
    >>> extremes.add(np.array([-1.0, 0.5, 4.0], np.float32))
    >>> minmax(extremes)
    (-1.0, 4.0)
    """
    return extremes.low, extremes.high
