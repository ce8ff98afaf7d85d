"""From how many rows a device counts as timed, and how wide its intervals are: by hand."""

import math

import numpy as np
import pytest
from test_predicting import A72, amounts, drawn, known

from edgekd.predicting import calibration, costs, population
from edgekd.predicting.population import COUNT


@pytest.mark.parametrize(
    "rows, kind", [(0, "transferred"), (1, "transferred"), (2, "transferred"), (3, "calibrated"), (12, "calibrated")]
)
def test_three_rows_are_enough_and_two_are_not(rows, kind):
    pop = known()
    fitted = calibration.fit(drawn(rows, np.random.default_rng(0), A72.traits() @ pop.weights), A72, pop)
    assert (fitted.kind, fitted.rows, fitted.reach) == (kind, rows, pop.reach[kind])


def test_noise_is_that_of_the_rows_and_what_a_network_adds_that_was_never_timed():
    pop = known()
    mean = A72.traits() @ pop.weights
    assert calibration.fit((), A72, pop).noise == pytest.approx(pop.noise + population.MISFIT)
    for noise in (0.02, 0.05):
        rows = drawn(60, np.random.default_rng(0), mean, noise=noise)
        own = population.posterior(rows, mean, pop.spread, pop.noise).noise
        assert calibration.fit(rows, A72, pop).noise == pytest.approx(own + population.MISFIT)
        assert math.sqrt(own) == pytest.approx(noise, abs=0.01)  # beside the sixty rows stand five common ones of 0.05


def test_the_interval_of_a_ratio_by_hand():
    """Costs of 1 and 2 in variances 0.09 and 0.04, covariance 0.03: 0.09 + 0.04 - 2 * 0.03 = 0.07, and twice a row's
    noise of 0.01; what a network adds that was never timed is in both times alike."""
    float_, int8 = costs.NAMES.index("gemm"), COUNT + costs.NAMES.index("gemm")
    mean, covariance = np.zeros(2 * COUNT), np.zeros((2 * COUNT, 2 * COUNT))
    mean[int8] = math.log(2)
    covariance[float_, float_], covariance[int8, int8], covariance[float_, int8], covariance[int8, float_] = (
        0.09,
        0.04,
        0.03,
        0.03,
    )
    made = calibration.Calibration("b", A72, "ncnn", mean, covariance, 0.01 + population.MISFIT, 5, 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "costs", lambda work: amounts(gemm=7))
        found = calibration.ratio((), made)
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-2 * 0.3), 2 * math.exp(2 * 0.3)))
