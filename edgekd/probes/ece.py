"""Expected calibration error of the greatest probability, with an estimate and an interval that hold where the true
error is small or nothing.

What is estimated: sum over bins of |share of right answers - mean confidence| * share of samples, of all data that the
samples were drawn from; BINS bins of equal width over the confidence, Guo et al. arXiv 1706.04599, eq. 3. It is the
calibration error E|P(right | confidence) - confidence| where a bin's confidences are all too high or all too low, and
less where they are mixed (Kumar et al. arXiv 1909.10155). The same sum of a sample is too great, since every bin adds
the size of its noise (Bröcker, Clim. Dyn. 39 (2012) 655), and no resampling of it takes that off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgekd.probes import Subject, figure
from edgekd.probes._classes import classified, confidence, right
from edgekd.records import Measurement, Quantity

MEASURES = (Quantity("ece", "%", "expected calibration error", better="lower", split=True, column=120),)
BINS = 15
DRAWS = 1000  # samples drawn per hypothesis
TAIL = 0.025  # outside of the limits, on each side
PRIOR = 4  # samples' worth of trust that a bin is calibrated: few samples of a bin can't say much else


def measure(subject: Subject) -> Iterator[Measurement]:
    """The calibration error of a classifier's answers; the note has the plain sum, as it is mostly published."""
    found = classified(subject)
    if found is None or found.sample is not None:  # positions of one sample are not independent
        return
    sure, hits = confidence(found.ours), right(found.ours, found.labels)
    if np.isfinite(sure).all():
        note = f"the plain sum over {BINS} bins, noise of the sample included, is {100 * plain(sure, hits):.2f} %"
        limits = (100 * x for x in interval(sure, hits))
        yield figure(MEASURES[0], *limits, n=len(sure), split=subject.split, note=note)


def plain(confidence: np.ndarray, right: np.ndarray) -> float:
    """The share that the sample shows: the sum over bins (i/BINS, (i+1)/BINS]. Biased upwards."""
    size, mean, hits = _binned(confidence, right)
    return float(np.abs(hits - size * mean).sum()) / len(confidence)


def interval(confidence: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """(estimate, low, high) as shares, of confidences [n] and right or wrong 0/1 [n]: the true errors that the plain
    sum is likely under.

    A hypothesis is a rate of right answers per bin; right answers are drawn from it (binomial, in bins of the sample's
    sizes), and it stands if their plain sums are neither mostly greater nor mostly smaller than ours. `low` and the
    estimate, which half of them exceed, come from the observed gaps with the least sure ones shrunk to nothing first;
    `high` is the greater of two: from gaps that are spread over the bins as their noise is, which add least to the
    plain sum, so that their error is the greatest that can look like this; and from the observed gaps, grown."""
    size, mean, hits = _binned(confidence, right)
    total, observed = len(confidence), plain(confidence, right)
    observed_rate = (hits + PRIOR * mean) / (size + PRIOR)
    variance = np.maximum(mean * (1 - mean), 1e-12)
    sure = np.abs(observed_rate - mean) / variance
    generator = np.random.default_rng(0)

    def shrunk(x: float) -> np.ndarray:
        """From calibrated, x = 0, to the observed rates, x = 1: the likeliest of each error (a soft threshold, by the
        variance of one sample)."""
        kept = np.maximum(0, 1 - (1 - x) * sure.max() / np.maximum(sure, 1e-12))
        return mean + (observed_rate - mean) * kept

    def spread(x: float) -> np.ndarray:
        """From calibrated, x = 0, to wrong by all that a bin allows, x = 1: the rates that z standard errors reach
        (Wilson's limits of the mean)."""
        z2 = total * (x / max(1 - x, 1e-9)) ** 2 / size
        down = np.where(mean > 0.5, -1, 1)
        return np.clip((mean + z2 / 2 + down * np.sqrt(z2 * mean * (1 - mean) + z2**2 / 4)) / (1 + z2), 0, 1)

    def scaled(x: float) -> np.ndarray:
        """The observed gaps, times 0 at x = 0 and without end at x = 1."""
        return np.clip(mean + (observed_rate - mean) * x / max(1 - x, 1e-9), 0, 1)

    def below(rates: np.ndarray) -> float:
        """The share of drawn samples whose plain sum is less than ours; half of equals."""
        sums = np.abs(generator.binomial(size, rates, (DRAWS, len(size))) - size * mean).sum(1) / total
        return float(((sums < observed - 1e-12).mean() + (sums <= observed + 1e-12).mean()) / 2)

    def error(rates: np.ndarray) -> float:
        return float((size * np.abs(rates - mean)).sum()) / total

    def solve(family: Callable[[float], np.ndarray], share: float) -> float:
        """The error at which that share lies below; falls along a family."""
        low, high = 0.0, 1.0
        for _ in range(11):
            middle = (low + high) / 2
            low, high = (middle, high) if below(family(middle)) > share else (low, middle)
        return error(family((low + high) / 2))

    calibrated = below(mean)
    value = solve(shrunk, 0.5) if calibrated > 0.5 else 0.0
    low = min(value, solve(shrunk, 1 - TAIL)) if calibrated > 1 - TAIL else 0.0
    # where even calibrated ones mostly show more than this sample, nothing is concluded from that
    least = TAIL * min(1.0, 2 * calibrated)
    return value, low, max(value, solve(spread, least), solve(scaled, least))


def _binned(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(samples, mean confidence, right answers) of each bin that has any."""
    index = np.clip(np.ceil(np.nan_to_num(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    size, hits, sure = (np.bincount(index, weights=w, minlength=BINS) for w in (None, right, confidence))
    held = size > 0
    return size[held], sure[held] / size[held], hits[held]
