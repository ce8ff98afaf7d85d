"""The range without a share of the values at either end."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le


def percentile(histogram: Any, *, share: Annotated[float, Gt(50), Le(100)] = 99.99) -> tuple[float, float]:
    """Cuts (100 - share) / 2 per cent of the values off each end, to the bin.

    >>> import numpy as np
    >>> from edgekd.quantization.histogram import Histogram
    >>> histogram = Histogram()
    >>> histogram.add(np.linspace(-1, 1, 1001, dtype=np.float32))
    >>> low, high = percentile(histogram, share=90.0)
    >>> round(low, 2), round(high, 2)
    (-0.9, 0.9)
    """
    counts = histogram.counts.copy()
    counts[len(counts) // 2] += histogram.zeros
    cut = counts.sum() * (100 - share) / 200
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    edges = histogram.edges
    low = edges[int(np.argmax(below > cut))]
    high = edges[len(edges) - 1 - int(np.argmax(above[::-1] > cut))]
    return max(float(low), histogram.low), min(float(high), histogram.high)
