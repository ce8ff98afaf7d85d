"""Figures that are a formula of parts per sample are computed again from a run's predictions."""

import dataclasses

import numpy as np
import pytest

import edgekd
from edgekd import results
from edgekd.records import Measurement
from edgekd.run import evidence

MASK = edgekd.classes(3, axis=1)
METRIC = edgekd.mean_iou(MASK)


@pytest.fixture
def kept(tmp_path):
    """(a figure, the predictions that it was computed from, as they are read from a run)."""
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(12, 3, 4, 4)).astype(np.float32), rng.integers(0, 3, (12, 4, 4))
    records = {METRIC.name: METRIC.records(outputs, labels)}
    path = tmp_path / "a.npz"
    results.save_predictions(path, range(12), "digest", outputs, records, [METRIC])
    value = METRIC.value(records[METRIC.name])
    return Measurement("mean_iou", "%", value, value - 1, value + 1, 12, "test", None, "measured"), path


def held(figure, path, wrong):
    return evidence._held([figure], "host", results.load_predictions(path), {}, str(path), wrong)


def test_a_figure_that_its_parts_give(kept):
    wrong = []
    (metric,) = held(*kept, wrong).values()
    assert not wrong and metric.better == "higher"
    assert metric.value(results.load_predictions(kept[1]).records["mean_iou"]) == kept[0].value


def test_a_figure_that_its_parts_contradict(kept):
    wrong = []
    better = dataclasses.replace(kept[0], value=kept[0].value + 0.5)
    assert held(better, kept[1], wrong) == {} and "come to" in wrong[0].message


def test_parts_of_another_formula_are_not_trusted(kept):
    """A formula that edgekd does not know is not computed: the figure is left to the stored checks."""
    arrays = results.load_arrays(kept[1])
    arrays["mean_iou.formula"] = np.array("mine")
    results.save_arrays(kept[1], arrays)
    wrong = []
    assert held(*kept, wrong) == {} and not wrong
