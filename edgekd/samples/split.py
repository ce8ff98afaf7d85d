"""Which samples calibrate, and which compare int8 with float."""

from __future__ import annotations

import numpy as np

ENOUGH = 128  # samples of which every fourth is kept for comparing
KEPT = 512  # of these at most
SPREAD = 8  # steps of sequences that are run for each that calibrates


def divided(count: int, samples: int, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(rows to calibrate on, rows to compare on that are none of these; none of `count` below ENOUGH): up to `samples`
    and KEPT, spread evenly over the data, which may be sorted; whole batches where the file takes only `size`."""
    once, every = size or 1, np.arange(count)
    kept = every[3::4] if count >= max(ENOUGH, 4 * once) else every[:0]
    return _spread(np.delete(every, kept), samples, once), _spread(kept, KEPT, once) if len(kept) else kept


def of_sequences(lengths: list[int], samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(sequences whose steps calibrate, sequences to compare on; none where there are few steps): every fourth of the
    latter, so many that there are steps enough for `samples` and KEPT."""
    every, mean = np.arange(len(lengths)), max(1.0, sum(lengths) / len(lengths))
    kept = every[3::4] if sum(lengths) >= ENOUGH and len(lengths) >= 4 else every[:0]
    some = lambda rows, steps: _spread(rows, max(1, round(steps / mean)), 1) if len(rows) else rows
    return some(np.delete(every, kept), SPREAD * samples), some(kept, KEPT)


def few(lengths: list[int], steps: int) -> np.ndarray:
    """Sequences, evenly spread, that have about so many steps."""
    return _spread(np.arange(len(lengths)), max(1, round(steps * len(lengths) / max(1, sum(lengths)))), 1)


def spread(count: int, samples: int) -> np.ndarray:
    """Up to `samples` rows of `count`, evenly."""
    return _spread(np.arange(count), samples, 1)


def _spread(rows: np.ndarray, samples: int, size: int) -> np.ndarray:
    wanted = max(size, min(len(rows), samples) // size * size)
    return rows[np.linspace(0, len(rows) - 1, wanted).round().astype(np.int64)]
