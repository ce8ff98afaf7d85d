"""Intervals: published values, independent oracles, and coverage."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from edgekd import intervals
from edgekd.metrics import mean_error, top1
from edgekd.records import Metric


@pytest.mark.parametrize(
    "k, n, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_limits(k, n, low, high):
    assert intervals.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.9999])
def test_wilson_is_scipys(level):
    for n in (1, 2, 7, 60, 899, 10_000):
        for k in {0, 1, n // 3, n // 2, n - 1, n}:
            theirs = scipy.stats.binomtest(k, n).proportion_ci(level, "wilson")
            assert intervals.wilson(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_at_the_ends():
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    assert intervals.wilson(0, 10)[0] == 0.0 and intervals.wilson(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="11 of 10"):
        intervals.wilson(11, 10)


def test_wilson_covers():
    """Exact coverage: summed over all k, averaged over p (Brown, Cai & DasGupta: close to nominal on average, never far
    below)."""
    n, covered = 60, []
    for p in np.linspace(0.02, 0.98, 97):
        mass = scipy.stats.binom.pmf(np.arange(n + 1), n, p)
        covered.append(
            sum(m for k, m in enumerate(mass) if intervals.wilson(k, n)[0] <= p <= intervals.wilson(k, n)[1])
        )
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.89


def test_median_of_six_is_the_whole_range_and_of_five_is_refused():
    assert intervals.median([3, 1, 2, 6, 5, 4]) == (3.5, 1.0, 6.0)  # 2 / 2^6 = 3.1 % lies outside
    with pytest.raises(ValueError, match="5 values are too few"):
        intervals.median([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="finite"):
        intervals.median([1, 2, 3, 4, 5, math.nan])


@pytest.mark.parametrize("n", [6, 9, 25, 60, 400, 5000])
def test_ranks_of_the_median_are_the_tightest_that_hold(n):
    """The ranks by scipy's binomial: each tail at most 2.5 %, and one rank further in would be more."""
    _, low, high = intervals.median(np.arange(1, n + 1))
    below = scipy.stats.binom(n, 0.5)
    assert below.cdf(low - 1) <= 0.025 < below.cdf(low)
    assert below.sf(high - 1) <= 0.025 < below.sf(high - 2)


def test_the_median_covers_a_skewed_distribution():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(600):
        _, low, high = intervals.median(generator.exponential(size=15))
        hits += low <= math.log(2) <= high
    assert hits / 600 > 0.94  # exact coverage 96.5 %


def test_mean_by_hand():
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.7764: half width 2.7764 * sqrt(2.5 / 5) = 1.9632
    assert intervals.mean([1, 2, 3, 4, 5]) == pytest.approx((3.0, 1.0368, 4.9632), abs=1e-4)
    with pytest.raises(ValueError, match="1 values are too few"):
        intervals.mean([1])


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_bca_is_scipys_of_the_same_resamples(statistic):
    """Up to 200 rows, where both jackknife them one by one."""
    for n in (5, 30, 199):
        x = np.random.default_rng(n).gamma(2, size=n)
        given = {"n_resamples": 500, "vectorized": True, "method": "BCa", "rng": np.random.default_rng(0)}
        theirs = scipy.stats.bootstrap((x,), statistic, **given).confidence_interval
        ours = intervals.bootstrap(x, lambda rows: float(statistic(rows)), resamples=500)
        assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bootstrap_is_scipys_bca_and_repeats():
    x = np.random.default_rng(0).exponential(size=40)
    for statistic in (np.mean, np.std):  # the second is biased, and its interval is moved by that
        mine = intervals.bootstrap(x, statistic, resamples=4000)
        theirs = scipy.stats.bootstrap((x,), statistic, n_resamples=4000, method="BCa", rng=1).confidence_interval
        assert mine == pytest.approx(tuple(theirs), rel=0.02)
    mine = intervals.bootstrap(x, np.mean, resamples=4000)
    assert mine == intervals.bootstrap(x, np.mean, resamples=4000)


def test_bootstrap_without_chance_is_a_point():
    assert intervals.bootstrap(np.full(20, 3.0), np.mean) == (3.0, 3.0)
    assert intervals.bootstrap([7.0], np.mean) == (7.0, 7.0)


def test_bootstrap_covers():
    generator, hits = np.random.default_rng(2), 0
    for _ in range(400):
        low, high = intervals.bootstrap(generator.gamma(4, size=60), np.mean, resamples=500)
        hits += low <= 4 <= high
    assert 0.92 <= hits / 400 <= 0.98


def pairs(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.array(a, float), np.array(b, float)


def test_paired_gives_tangos_published_limits():
    """Airway hyper-responsiveness before and after transplantation, n = 21: Fagerland, Lydersen & Laake, Statist. Med.
    33 (2014) 2850."""
    assert intervals.paired(*pairs(1, 1, 7, 12)) == pytest.approx((-0.286, -0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("only_a, only_b, n", [(1, 7, 21), (0, 0, 30), (3, 0, 40), (5, 5, 50), (0, 9, 9)])
def test_tango_is_the_score_test_turned_around(only_a, only_b, n):
    """Oracle: for a difference d, the likelihood over the shares is maximized on a grid, and |score| <= z decides."""
    z, inside = intervals._z(0.95), []
    for d in np.linspace(-0.999, 0.999, 1999):
        q = np.linspace(max(0.0, -d), (1 - d) / 2, 20001)  # q: share of only_b, q + d of only_a, 1 - 2q - d of the rest
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [
                np.where(count > 0, count * np.log(p), 0.0)
                for count, p in ((only_a, q + d), (only_b, q), (n - only_a - only_b, 1 - 2 * q - d))
            ]
        best = q[np.nanargmax(sum(terms))]
        variance = n * (2 * best + d - d * d)
        if variance > 0 and abs(only_a - only_b - n * d) / math.sqrt(variance) <= z:
            inside.append(d)
    _, low, high = intervals.paired(*pairs(n - only_a - only_b, only_a, only_b, 0))
    assert (low, high) == pytest.approx((min(inside), max(inside)), abs=3e-3)


def test_paired_keeps_its_width_where_nothing_differs():
    value, low, high = intervals.paired(np.ones(100), np.ones(100))
    assert value == 0 and low == pytest.approx(-high) and high == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3)


def test_paired_covers_at_small_discordance():
    generator, hits = np.random.default_rng(3), 0
    for _ in range(500):
        kind = generator.choice(4, size=80, p=[0.9, 0.05, 0.02, 0.03])  # true difference 0.03
        a, b = np.isin(kind, (0, 1)).astype(float), np.isin(kind, (0, 2)).astype(float)
        _, low, high = intervals.paired(a, b)
        hits += low <= 0.03 <= high
    assert 0.92 <= hits / 500 <= 0.985


def test_paired_of_other_numbers_is_t_of_the_differences_and_wider_where_they_are_skewed():
    a, b = np.array([1.0, 2, 4, 8]), np.array([1.5, 2, 3, 5])
    expected, (_, low, high) = scipy.stats.ttest_rel(a, b).confidence_interval(0.95), intervals.paired(a, b)
    assert low == pytest.approx(expected.low) and high > expected.high + 1  # the long tail of -0.5, 0, 1, 3 is above
    even = np.array([-3.0, -1, 0, 1, 3])
    expected = scipy.stats.ttest_rel(even, 0 * even).confidence_interval(0.95)
    assert intervals.paired(even, 0 * even)[1:] == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="same samples"):
        intervals.paired([1, 2], [1, 2, 3])


@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_limits_are_halls_transformation_turned_around(sign):
    """Oracle: at the limit, the transformed t of the sample is Student's quantile of the error that is kept back."""
    x = sign * np.random.default_rng(0).exponential(size=50)
    n, g = len(x), 1.3 * scipy.stats.skew(x)
    limit = intervals.skewed_mean(x, 0.9)[2 if sign > 0 else 1]
    t, s = (x.mean() - limit) / x.std(ddof=1), 1.0
    moved = np.sqrt(n) * (t + g * t**2 / 3 + g**2 * t**3 / 27 * s) + g / (6 * np.sqrt(n))
    assert abs(moved) == pytest.approx(scipy.stats.t.ppf(1 - 0.05 / (1 + 6 * g**2 / n), n - 1))
    assert intervals.skewed_mean(np.full(9, 0.1)) == (pytest.approx(0.1),) * 3


def test_a_comparison_of_skewed_records_passes_by_mistake_no_more_often_than_promised():
    """A candidate whose losses are an exponential worse, judged at exactly what it is worse by: 5 % of the one-sided
    bounds may lie below. Student's t and the bootstrap give 9 %."""
    loss = Metric("log_loss", "nat", "lower", lambda o, y: o, lambda r: float(np.mean(r)))
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        ours = generator.normal(3, 1, 30)
        wrong += intervals.paired_of(loss, ours + generator.exponential(size=30), ours, 0.9)[2] < 1
    assert wrong <= 24  # of 20 promised; its standard deviation is 4


def test_a_mean_is_known_by_what_it_makes_of_parts_of_the_records():
    x = np.random.default_rng(0).exponential(size=40)
    percent = Metric("error", "%", "lower", lambda o, y: o, lambda r: 100 * float(np.mean(r)))
    assert intervals.interval_of(percent, x)[1:] == pytest.approx(tuple(100 * b for b in intervals.skewed_mean(x)[1:]))
    for curved in (lambda r: float(np.sqrt(r.mean())), lambda r: float(np.median(r)), lambda r: float(r.mean()) + 1):
        metric = Metric("curved", "", "lower", lambda o, y: o, curved)
        assert intervals.interval_of(metric, x)[1:] == pytest.approx(intervals.bootstrap(x, curved))


def test_paired_of_a_metric():
    a, b = pairs(80, 12, 4, 4)
    value, low, high = intervals.paired_of(top1(), a, b)
    assert (value, low, high) == pytest.approx(tuple(100 * x for x in intervals.paired(a, b)))
    root = Metric("rms", "", "lower", lambda o, y: (o - y) ** 2, lambda r: float(np.sqrt(r.mean())))
    x = np.random.default_rng(0).exponential(size=200)
    value, low, high = intervals.paired_of(root, 4 * x, x)
    assert value == pytest.approx(np.sqrt(x.mean())) and low < value < high


def test_signed_rank_distribution_is_counted_right():
    for n in (1, 4, 7):
        sums = [
            sum(s * r for s, r in zip(signs, range(1, n + 1), strict=True))
            for signs in itertools.product((0, 1), repeat=n)
        ]
        expected = [np.mean(np.array(sums) <= w) for w in range(n * (n + 1) // 2 + 1)]
        assert intervals._signed_rank_cdf(n) == pytest.approx(expected)


def test_ratio_is_hodges_lehmann():
    a, b = [1.0, 1.1, 1.2, 1.15, 1.05, 1.3, 1.25], [1.0, 1.0, 1.1, 1.0, 1.1, 1.1, 1.0]
    logs = np.log(np.array(a) / b)
    walsh = [(x + y) / 2 for i, x in enumerate(logs) for y in logs[i:]]
    value, low, high = intervals.ratio(a, b)
    assert value == pytest.approx(math.exp(np.median(walsh)))
    # n = 7: P(W <= 2) = 3/128 = 2.3 % but P(W <= 3) = 3.9 %, so the third walsh average from each end is the limit
    assert (low, high) == pytest.approx((math.exp(sorted(walsh)[2]), math.exp(sorted(walsh)[-3])))


def test_ratio_shrugs_off_a_burst_and_refuses_too_few():
    generator = np.random.default_rng(0)
    a, b = np.exp(generator.normal(0, 0.01, 20)), 2 * np.exp(generator.normal(0, 0.01, 20))
    a[3] *= 10
    assert intervals.ratio(a, b)[0] == pytest.approx(0.5, rel=0.01)
    assert intervals.ratio(a, b)[2] < 0.51
    with pytest.raises(ValueError, match="5 pairs are too few"):
        intervals.ratio([1] * 5, [1] * 5)
    with pytest.raises(ValueError, match="positive"):
        intervals.ratio([1] * 6, [0] * 6)


def test_ratio_covers_under_a_drift_that_both_share():
    generator, hits = np.random.default_rng(4), 0
    for _ in range(500):
        drift = np.cumsum(generator.normal(0, 0.05, 10))
        a, b = np.exp(0.1 + drift + generator.normal(0, 0.02, 10)), np.exp(drift + generator.normal(0, 0.02, 10))
        _, low, high = intervals.ratio(a, b)
        hits += low <= math.exp(0.1) <= high
    assert 0.93 <= hits / 500 <= 0.99


def test_interval_of_a_metric():
    records = np.array([1.0] * 81 + [0.0] * 182)
    assert intervals.interval_of(top1(), records) == pytest.approx((30.798, 25.53, 36.62), abs=0.01)  # Wilson
    value, low, high = intervals.interval_of(mean_error(), np.random.default_rng(0).exponential(size=100))
    assert low < value < high


def test_interval_of_does_not_take_every_binary_metric_for_a_mean():
    squared = Metric("squared", "", "higher", lambda o, y: o, lambda r: float(np.mean(r)) ** 2)
    value, low, high = intervals.interval_of(squared, np.array([1.0] * 90 + [0.0] * 10))
    # Wilson of 90 in 100 would end at 0.945, its square at 0.893
    assert value == pytest.approx(0.81) and low < 0.81 < high < 0.95
    assert high == pytest.approx(0.893, abs=0.02)


def test_a_level_is_a_probability():
    with pytest.raises(ValueError, match="between 0 and 1"):
        intervals.wilson(1, 2, 95)


def auc(rows):
    """Area under the ROC curve, of [n, 2]: score, label. Raises ValueError for one class, as scikit-learn's did."""
    score, label = rows[:, 0], rows[:, 1]
    if len(set(label)) < 2:
        raise ValueError("only one class is there")
    return float((score[label == 1][:, None] > score[label == 0]).mean())


AUC = Metric("auc", "", "higher", lambda o, y: np.stack([o, y], 1), auc)


def test_a_metric_that_takes_both_classes_has_its_interval_in_whatever_order():
    rng = np.random.default_rng(0)
    label = np.repeat([0.0, 1.0], 40)
    rows = np.stack([rng.normal(label, 1), label], 1)
    assert intervals.multiple_of_mean(AUC, rows) is None
    value, low, high = intervals.interval_of(AUC, rows)
    assert value == auc(rows) and 0.5 < low < value < high < 1
    other = rows + np.array([1.0, 0]) * rng.normal(0, 1, (80, 1))
    difference, low, high = intervals.paired_of(AUC, rows, other)
    assert difference == pytest.approx(auc(rows) - auc(other)) and low < difference < high


def test_resamples_that_a_statistic_is_not_defined_for_are_drawn_again():
    rng = np.random.default_rng(1)
    rows = np.stack([rng.normal(size=60), np.arange(60) < 2], 1)  # every seventh resample has no positive one
    low, high = intervals.bootstrap(rows, auc)
    assert (low, high) == intervals.bootstrap(
        rows, lambda r: auc(r) if 0 < r[:, 1].sum() < len(r) else math.nan
    ) and 0 <= low < auc(rows) < high <= 1
    # of the records as they are, and of hardly a resample
    seldom = lambda r: float(r.mean()) if len(set(r)) == 8 else math.nan
    assert np.isnan(intervals.bootstrap(np.arange(8), seldom)).all()
    assert np.isnan(intervals.interval_of(AUC, np.ones((8, 2)))).all()
