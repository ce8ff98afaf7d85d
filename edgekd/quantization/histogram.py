"""A histogram of a stream whose range is not known before: fixed memory, however many values it has seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 4096
TINY = 2.0**-100  # what no lattice tells from zero


@dataclass
class Histogram:
    """Counts in equal bins over [-width, width], width a power of two times the first batch's largest magnitude: when a value falls
    outside, the width doubles and pairs of bins merge. `low` and `high` are the exact extremes seen."""

    low: float = np.inf
    high: float = -np.inf
    width: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Counts `values` of any shape; they must be finite."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(abs(low), abs(high))
        if reach < TINY and self.width == 0:
            self.counts[BINS // 2] += values.size
            return
        if self.width == 0:
            zeros, self.width = int(self.counts.sum()), reach
            self.counts[:] = 0
            self.counts[BINS // 2] = zeros
        while reach > self.width:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.width *= 2
        index = ((values.ravel() / self.width + 1) * (BINS / 2)).astype(np.int64)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    @property
    def edges(self) -> np.ndarray:
        """[BINS + 1]"""
        return np.linspace(-self.width, self.width, BINS + 1)

    @property
    def centers(self) -> np.ndarray:
        """[BINS], moved inside the extremes that were seen"""
        edges = self.edges
        return np.clip((edges[1:] + edges[:-1]) / 2, self.low, self.high)
