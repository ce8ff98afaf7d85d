"""The range that keeps most of the values' distribution in 2^bits levels."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge


def entropy(
    histogram: Any, *, bits: Annotated[int, Ge(2)] = 8, tries: Annotated[int, Ge(2)] = 100
) -> tuple[float, float]:
    """Of `tries` ranges [low t, high t], the one with the least KL(p || q): p the histogram with what lies outside
    moved to the range's ends, q the histogram inside after rounding to 2^bits equal levels, spread over the bins that
    were not empty (Migacz 2017, "8-bit inference with TensorRT"; there on magnitudes, here on both ends in proportion,
    since activations are quantized asymmetrically).

    Two departures: exact zeros are in neither, since every quantization represents them exactly and zeros of a ReLU
    would outweigh all other values; and the bias of the divergence of n samples, (bins - levels) / 2n (Miller 1955,
    "Note on the bias of information estimates"), is subtracted, since otherwise few samples would favour narrow ranges,
    which have fewer bins.

    >>> import numpy as np
    >>> from edgekd.quantization.histogram import Histogram
    >>> histogram = Histogram()
    >>> histogram.add(np.random.default_rng(0).standard_t(3, 10000).astype(np.float32))
    >>> low, high = entropy(histogram, bits=4)
    >>> bool(histogram.low < low < high < histogram.high)  # clips the tails
    True
    """
    if histogram.width == 0:
        return histogram.low, histogram.high
    edges, levels = histogram.edges, 2**bits
    counts = histogram.counts.astype(np.float64)
    best, chosen = np.inf, (histogram.low, histogram.high)
    for t in np.linspace(1, 2 / tries, tries):
        low, high = min(histogram.low, 0) * t, max(histogram.high, 0) * t
        first, last = int(np.searchsorted(edges, low, "right")) - 1, int(np.searchsorted(edges, high, "left"))
        inside = counts[max(first, 0) : last]
        if len(inside) < levels:
            break  # finer than the bins
        p = inside.copy()
        p[0] += counts[: max(first, 0)].sum()
        p[-1] += counts[last:].sum()
        level = np.arange(len(inside)) * levels // len(inside)
        filled = inside > 0
        sums, sizes = np.bincount(level, inside, levels), np.bincount(level, filled, levels)
        q = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0)
        p, q = p / p.sum(), q / max(q.sum(), 1e-300)
        known = p > 0
        chance = (filled.sum() - (sizes > 0).sum()) / (2 * counts.sum())
        divergence = float((p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))).sum()) - chance
        if divergence < best * (1 - 1e-9):
            best, chosen = divergence, (low, high)
    return chosen
