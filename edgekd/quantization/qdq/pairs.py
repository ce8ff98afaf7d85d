"""Products of two bytes that are added in pairs in 16 bits (Intel SDM, PMADDUBSW), exact and saturated."""

from __future__ import annotations

import numpy as np

LOW, HIGH = -(2**15), 2**15 - 1


def reach(rows: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """(lowest, highest) sum of two neighbouring products over all raw activations in [low, high]; `rows` int [outputs,
    sum]."""
    even, odd = (part.astype(np.int32) for part in _pairs(rows))  # bytes times bytes
    least = np.minimum(even * low, even * high) + np.minimum(odd * low, odd * high)
    most = np.maximum(even * low, even * high) + np.maximum(odd * low, odd * high)
    return int(least.min(initial=0)), int(most.max(initial=0))


def products(a: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(exact sums, sums of pairs saturated in 16 bits, pairs outside): int64 [positions, outputs] twice; `a` raw
    unsigned [positions, sum], `rows` raw signed [outputs, sum]."""
    first, second = _pairs(a)
    even, odd = _pairs(rows)
    exact = np.rint(a.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.int64)  # whole numbers far below 2^53
    excess, outside = np.zeros_like(exact), 0
    for n in range(len(rows)):
        at = np.flatnonzero(np.abs(even[n]) + np.abs(odd[n]) > 128)  # 128 * 255 fits into 16 bits
        sums = first[:, at] * even[n, at] + second[:, at] * odd[n, at]
        over = sums - np.clip(sums, LOW, HIGH)
        excess[:, n] = over.sum(1)
        outside += int(np.count_nonzero(over))
    return exact, exact - excess, outside


def _pairs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The even and the odd members of a sum, [..., pairs] int64 twice; the last odd one is 0 where there is none."""
    rows = np.pad(rows.astype(np.int64), [(0, 0), (0, rows.shape[1] % 2)])
    return rows[:, 0::2], rows[:, 1::2]
