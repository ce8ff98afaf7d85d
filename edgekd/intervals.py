"""Intervals for every kind of figure that edgekd shows: shares, medians, means, paired differences, ratios of times,
any metric.

All take plain sequences of numbers and a confidence `level`, and are two-sided. They raise ValueError where the data
can't carry the interval asked for (too few values): an interval that is too short would be a false statement.

Student's t and the binomial are scipy.special's. scipy.stats has Wilson's limits and BCa too, equal to 1e-12 (the tests
compare): it takes half a second to import in every run, jackknifes row by row however many there are, and gives up
where a resample has no figure. Hall's and Tango's limits and those of the signed rank it has not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from edgekd.errors import THEIRS
from edgekd.records import Measurement, Metric

Statistic = Callable[[np.ndarray], float]
# how many times as long the longer of two predicted times has to be, so that 95 % of left-out pairs, int8 and float,
# have it right, by what a prediction rests on (benchmarks/latency/result.json); without rows of the board none is far
# enough apart
CLEAR = {"calibrated": 2.25, "transferred": math.inf}


def clear(*predicted: Measurement) -> float:
    """The ratio from which on two predicted times differ clearly, by the first word of their notes."""
    return max(CLEAR.get(m.note.partition(":")[0], math.inf) for m in predicted)


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share: k of n. Wilson, JASA 22 (1927) 209; recommended by Brown, Cai & DasGupta, Statist.
    Sci. 16 (2001) 101."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a share between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z, p = _z(level), k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


def median(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): order statistics whose ranks hold the median with at least `level` (binomial), whatever the
    distribution.

    David & Nagaraja, Order Statistics (2003) 7.1. The tails share the error equally; ValueError where n is too small
    for two bounds (at 95 % it takes 6 values)."""
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    if n == 0 or not np.isfinite(ordered).all():
        raise ValueError("a median takes finite values, at least one")
    # the rank-th smallest value is above the median with at most half of 1 - level, and the rank-th greatest below
    rank = int(np.searchsorted(bdtr(np.arange(n + 1), n, 0.5), (1 - level) / 2, side="right"))
    if rank < 1:
        raise ValueError(f"{n} values are too few for a {level:.0%} interval of the median")
    return float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[n - rank])


def mean(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t; takes at least 2 values. Exact for normal values, close for large n; see
    `skewed_mean` for others."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        raise ValueError(f"{len(x)} values are too few for an interval of a mean")
    centre, half = float(x.mean()), _t(0.5 + level / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return centre, centre - half, centre + half


def skewed_mean(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) where values may be skewed, such as losses: Student's limits, moved out to those of Hall's
    transformed t where they are.

    Hall, J. R. Statist. Soc. B 54 (1992) 221: t + g t^2 / (3 sqrt n) + g^2 t^3 / (27 n) + g / (6 sqrt n) is close to
    normal. A sample's skewness g is mostly too small: 1.3 g is taken, and of the error only 1 / (1 + 6 g^2 / n) is
    spent. Tried in benchmarks/intervals: where this holds, and where nothing can, since a value in hundreds that makes
    up the mean may be in no sample."""
    x = np.asarray(values, np.float64)
    centre, low, high = mean(x, level)
    spread = float(x.std())
    if not spread > 1e-12 * abs(centre):  # all the same, but for rounding
        return centre, low, high
    skewness = float((((x - centre) / spread) ** 3).mean())
    reach = [_hall(skewness * side, len(x), (1 - level) / 2) * float(x.std(ddof=1)) for side in (-1, 1)]
    return centre, min(low, centre - reach[0]), max(high, centre + reach[1])


def figure(statistic: Statistic, rows: np.ndarray) -> float:
    """The statistic of records; NaN where a task's code raises, such as for an AUC where one class is missing."""
    try:
        return float(statistic(rows))
    except THEIRS:
        return math.nan


def bootstrap(records: Any, statistic: Statistic, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """(low, high) of `statistic(records)` with records [n, ...] resampled by row: bias-corrected and accelerated (BCa).

    Efron, JASA 82 (1987) 171. The acceleration comes from a jackknife over at most 200 groups of rows. Needs some tens
    of records; with one record, or a statistic that never moves, the interval is the figure itself. A resample that the
    statistic is not defined for is drawn again; (NaN, NaN) where that is more than every second."""
    rows = np.asarray(records)
    n, value = len(rows), figure(statistic, rows)
    if n < 2 or not math.isfinite(value):
        return value, value
    generator, found = np.random.default_rng(0), []
    for _ in range(2 * resamples):
        found.append(figure(statistic, rows[generator.integers(0, n, n)]))
        if not math.isfinite(found[-1]):
            found.pop()
        elif len(found) == resamples:
            break
    else:
        return math.nan, math.nan
    drawn = np.sort(found)
    if drawn[0] == drawn[-1]:
        return float(min(drawn[0], value)), float(max(drawn[0], value))
    # half of the ties count as below: discrete statistics are then not taken for biased ones
    share = (np.searchsorted(drawn, value, "left") + np.searchsorted(drawn, value, "right")) / (2 * resamples)
    bias = NormalDist().inv_cdf(min(max(share, 0.5 / resamples), 1 - 0.5 / resamples))
    left_out = np.array(
        [
            figure(statistic, np.delete(rows, group, axis=0))
            for group in np.array_split(generator.permutation(n), min(n, 200))
        ]
    )
    left_out = left_out[np.isfinite(left_out)]
    moved = left_out.mean() - left_out if len(left_out) else left_out
    spread = float((moved**2).sum()) ** 1.5
    acceleration = float((moved**3).sum()) / (6 * spread) if spread > 0 else 0.0
    low, high = (_bca(bias, acceleration, z) for z in (-_z(level), _z(level)))
    return float(np.quantile(drawn, low)), float(np.quantile(drawn, high))


def paired(
    a_records: Any, b_records: Any, level: float = 0.95, statistic: Statistic | None = None
) -> tuple[float, float, float]:
    """(difference a - b, low, high) for records of the same samples in the same order.

    0/1 records: Tango's score interval, Statist. Med. 17 (1998) 891, which keeps its width where no sample differs.
    Other numbers: `skewed_mean` of the differences. With `statistic` (records -> figure): bootstrap of statistic(a) -
    statistic(b). Raises ValueError on unequal lengths."""
    a, b = _rows(a_records, b_records)
    if statistic is not None:
        both, width = (
            np.concatenate([a.reshape(len(a), -1), b.reshape(len(b), -1)], axis=1),
            a.reshape(len(a), -1).shape[1],
        )

        def difference(rows: np.ndarray) -> float:
            return statistic(rows[:, :width].reshape(-1, *a.shape[1:])) - statistic(
                rows[:, width:].reshape(-1, *b.shape[1:])
            )

        return (figure(difference, both), *bootstrap(both, difference, level))
    if _binary(a) and _binary(b):
        return _tango(int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()), len(a), _z(level))
    return skewed_mean(a - b, level)


def ratio(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(a / b, low, high) for positive figures of interleaved processes: a[i] and b[i] were taken one after the other.

    Hodges-Lehmann estimate and exact signed-rank interval of the log ratios (Hodges & Lehmann, Ann. Math. Stat. 34
    (1963) 598): a burst of noise in one pair doesn't move it. Takes at least 6 pairs at 95 %."""
    x, y = (np.asarray(v, np.float64) for v in (a, b))
    if x.shape != y.shape or x.ndim != 1 or not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise ValueError("a ratio takes two equally long sequences of positive numbers")
    logs = np.log(x / y)
    i, j = np.triu_indices(len(logs))
    walsh = np.sort((logs[i] + logs[j]) / 2)
    # walsh averages to leave out on each side, plus one
    cut = int(np.searchsorted(_signed_rank_cdf(len(logs)), (1 - level) / 2, side="right"))
    if cut < 1:
        raise ValueError(f"{len(logs)} pairs are too few for a {level:.0%} interval of a ratio")
    return math.exp(float(np.median(walsh))), math.exp(float(walsh[cut - 1])), math.exp(float(walsh[-cut]))


def side_by_side(*figures: Measurement) -> bool:
    """Whether the `each` of positive figures can be paired: they are of the same interleaved processes, or inputs."""
    alike = (
        len({(m.pairing, len(m.each)) for m in figures}) == 1 and bool(figures[0].pairing) and len(figures[0].each) >= 6
    )
    return alike and all(math.isfinite(x) and x > 0 for m in figures for x in m.each)


def ratio_of(a: Measurement, b: Measurement) -> tuple[float, float, float]:
    """(a / b, low, high) of two positive figures: from pairs where they were measured interleaved, else the widest
    range that both intervals allow. Two predicted times that differ clearly have no limits (NaN): they share their
    error."""
    if side_by_side(a, b):
        return ratio(a.each, b.each)
    if not min(a.low, b.low) > 0:
        raise ValueError("a ratio takes positive figures")
    if a.origin == b.origin == "predicted" and max(a.value / b.value, b.value / a.value) > clear(a, b):
        return a.value / b.value, math.nan, math.nan
    return a.value / b.value, a.low / b.high, a.high / b.low


def interval_of(metric: Metric, records: Any) -> tuple[float, float, float]:
    """(value, low, high) of a task's metric: where it is a multiple of the mean of its records, Wilson if they are 0/1
    and else `skewed_mean`; bootstrap of any other. NaN where it is not defined for the records."""
    rows = np.asarray(records)
    value, times = figure(metric.value, rows), multiple_of_mean(metric, rows)
    if times is None:
        low, high = bootstrap(rows, metric.value)
    else:
        bounds = wilson(int(rows.sum()), len(rows)) if _binary(rows) else skewed_mean(_of_samples(rows))[1:]
        low, high = sorted(times * bound for bound in bounds)
    return value, min(low, value), max(high, value)


def paired_of(metric: Metric, a_records: Any, b_records: Any, level: float = 0.95) -> tuple[float, float, float]:
    """(difference a - b, low, high) of a task's metric on the same samples, in the metric's unit."""
    a, b = _rows(a_records, b_records)
    times = multiple_of_mean(metric, np.concatenate([a, b]))
    if times is None:
        return paired(a, b, level, metric.value)
    difference, low, high = paired(_of_samples(a), _of_samples(b), level)
    low, high = sorted((times * low, times * high))
    return times * difference, low, high


def multiple_of_mean(metric: Metric, rows: np.ndarray) -> float | None:
    """The constant c for which the metric is c times the mean of its records, tested on these and on parts of them;
    None if there is none."""
    if len(rows) < 2 or not rows.size or not np.isfinite(rows).all():
        return None
    tried = [rows, rows[::2], rows[1::2], rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    if _binary(rows) or not rows.any():  # any 0 and 1 are records
        half = np.ones(rows.shape)
        half[::2] = 0
        tried += [half, 0 * half, np.ones(rows.shape)]
    figures = [(figure(metric.value, x), float(np.mean(x))) for x in tried]
    if not all(math.isfinite(value) for value, _ in figures):
        return None
    value, centre = max(figures, key=lambda f: abs(f[1]))
    times = float(f"{value / centre:.12g}") if centre else math.nan  # the same of all records
    alike = all(math.isclose(value, times * centre, rel_tol=1e-9, abs_tol=1e-12) for value, centre in figures)
    return times if alike and math.isfinite(times) else None


# ---------------------------------------------------------------- the mathematics underneath


def _t(p: float, freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # scipy.stats has the same number, and takes half a second to import

    return float(stdtrit(freedom, p))


def _hall(skewness: float, n: int, tail: float) -> float:
    """How many standard deviations above the mean of n values the true one may lie, one-sided: Hall's t turned around.
    See `skewed_mean`."""
    g, root = 1.3 * skewness, math.sqrt(n)
    t = -_t(tail / (1 + 6 * max(g, 0.0) ** 2 / n), n - 1)
    if abs(g) < 1e-6:
        return t / root
    return 3 / g * (1 - float(np.cbrt(1 - g / root * (t + g / (6 * root)))))


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level must be between 0 and 1, not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def _rows(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or not len(x):
        raise ValueError(f"paired records must be of the same samples, not of {list(x.shape)} and {list(y.shape)}")
    return x, y


def _of_samples(rows: np.ndarray) -> np.ndarray:
    """One number per sample: the mean of its records."""
    return rows if rows.ndim == 1 else rows.reshape(len(rows), -1).mean(1)


def _binary(rows: np.ndarray) -> bool:
    return rows.ndim == 1 and bool(np.isin(rows, (0, 1)).all())


def _signed_rank_cdf(n: int) -> np.ndarray:
    """P(W <= w) of Wilcoxon's signed-rank statistic: counts of subsets of 1..n by their sum."""
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, n + 1):
        counts[rank:] += counts[:-rank].copy()
        counts /= 2
    return np.cumsum(counts)


def _bca(bias: float, acceleration: float, z: float) -> float:
    shifted = bias + z
    return NormalDist().cdf(bias + shifted / max(1 - acceleration * shifted, 1e-9))


def _tango(b: int, c: int, n: int, z: float) -> tuple[float, float, float]:
    """Score interval of (b - c) / n from b and c discordant pairs of n: the differences d that a score test at z
    doesn't reject."""

    def score(d: float) -> float:
        half = -b - c + (2 * n - b + c) * d
        # the second share, most likely under d
        other = (math.sqrt(max(half * half + 8 * n * c * d * (1 - d), 0.0)) - half) / (4 * n)
        variance = n * (2 * other + d * (1 - d))
        gap = b - c - n * d
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    def solve(inside: float, outside: float, reached: Callable[[float], bool]) -> float:
        for _ in range(80):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if reached(middle) else (middle, outside)
        return outside

    value = (b - c) / n
    return value, solve(value, -1.0, lambda d: score(d) > z), solve(value, 1.0, lambda d: score(d) < -z)
