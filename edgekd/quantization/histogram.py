"""What calibration keeps of a stream of values: its extremes, or a histogram whose range is not known before. Fixed
memory, however many values were seen, and the same in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 8192
TINY = 2.0**-100  # what no scale tells from zero


@dataclass
class Extremes:
    """The exact minimum and maximum: all that a `ranges` part asks for whose parameter is called `extremes`."""

    low: float = np.inf
    high: float = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Takes `values` of any shape; they must be finite."""
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))


@dataclass
class Histogram:
    """Counts in equal bins over [-width, width], width the least power of two above all magnitudes: when a value
    reaches it, it doubles and pairs of bins merge, so that only what was seen counts, never when. `low` and `high` are
    the exact extremes; `zeros` counts what quantization always holds exactly, such as what a ReLU cuts, and no bin
    does."""

    low: float = np.inf
    high: float = -np.inf
    width: float = 0.0
    zeros: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Counts `values` of any shape; they must be finite."""
        if values.size == 0:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        counted = values[np.abs(values) >= TINY].astype(np.float64)
        self.zeros += values.size - counted.size
        if counted.size == 0:
            return
        width = 2.0 ** int(np.frexp(np.abs(counted).max())[1])
        self.width = self.width or width
        while width > self.width:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.width *= 2
        index = np.floor(counted * (BINS / 2 / self.width)).astype(np.int64)  # a power of two: exact
        self.counts += np.bincount(index + BINS // 2, minlength=BINS)

    @property
    def total(self) -> int:
        return int(self.counts.sum()) + self.zeros

    @property
    def edges(self) -> np.ndarray:
        """[BINS + 1]"""
        return np.linspace(-self.width, self.width, BINS + 1)

    @property
    def centers(self) -> np.ndarray:
        """[BINS], moved inside the extremes that were seen"""
        edges = self.edges
        return np.clip((edges[1:] + edges[:-1]) / 2, self.low, self.high)
