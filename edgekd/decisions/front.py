"""The Pareto front: the candidates that no other candidate dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def front(rows: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Positions of the rows that no other row dominates, in their order. Lower is better for every key (negate those to
    maximize).

    A row dominates another if it is nowhere worse and somewhere better; equal rows stay together. A NaN is worse than
    every number."""
    if not rows:
        return ()
    values = np.array([[math.inf if math.isnan(x) else x for x in row] for row in rows], np.float64)
    kept = []
    for i, row in enumerate(values):
        beaten = ((values <= row).all(1) & (values < row).any(1)).any()
        if not beaten:
            kept.append(i)
    return tuple(kept)
