"""From how many rows a device counts as timed, and how wide its intervals are: by hand."""

import math

import numpy as np
import pytest
from test_predicting import A72, drawn, known

from edgekd.predicting import calibration, population


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
