"""The range with the least mean squared error of rounding and clipping."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge


def mse(histogram: Any, *, bits: Annotated[int, Ge(2)] = 8, tries: Annotated[int, Ge(2)] = 100) -> tuple[float, float]:
    """Of `tries` ranges [low t, high t], t in (0, 1], the one with the least sum of squared errors over the histogram's
    bins.

    >>> import numpy as np
    >>> from edgekd.quantization.histogram import Histogram
    >>> histogram = Histogram()
    >>> histogram.add(np.random.default_rng(0).standard_t(3, 10000).astype(np.float32))
    >>> low, high = mse(histogram)
    >>> bool(histogram.low < low < high < histogram.high)  # clips the tails
    True
    """
    if histogram.width == 0:
        return histogram.low, histogram.high
    centers, counts = histogram.centers, histogram.counts
    best, chosen = np.inf, (histogram.low, histogram.high)
    for t in np.linspace(1, 1 / tries, tries):
        low, high = min(histogram.low, 0) * t, max(histogram.high, 0) * t
        step = (high - low) / (2**bits - 1)
        rounded = np.clip(np.round((centers - low) / step), 0, 2**bits - 1) * step + low
        error = float((counts * (rounded - centers) ** 2).sum())
        if error < best * (1 - 1e-9):
            best, chosen = error, (low, high)
    return chosen
