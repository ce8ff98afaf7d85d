"""The control competes in every form, and what learning from a teacher brought over it is said."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from edgekd import metrics
from edgekd.decisions import gains
from edgekd.files import toml
from edgekd.records import Candidate, Measurement
from edgekd.run import plan, resolve
from edgekd.training.terms import Term

TEXT = (Path(__file__).parent.parent / "benchmarks/distillation/RESULTS.md").read_text(encoding="utf-8")


def candidate(id, *measurements):
    return Candidate(id, id, 0, (), (), "onnx", None, "", measurements)


def gained(value, low, high, over="alone"):
    return Measurement("gain", "pt", value, low, high, 100, "test", None, "measured", note=f"over {over}")


def test_a_gain_by_hand():
    theirs = np.r_[np.ones(80), np.zeros(20)]
    ours = np.r_[np.ones(80), np.ones(10), np.zeros(10)]  # right on ten more, wrong on none
    found = gains.gain(metrics.top1(), ours, theirs, "alone")
    assert (found.value, found.unit, found.split, found.n, found.note) == (
        pytest.approx(10.0),
        "pt",
        "test",
        100,
        "over alone",
    )
    assert 3 < found.low < 6 and 16 < found.high < 20
    # less is better
    errors = gains.gain(metrics.mean_error(), np.full(10, 1.0) + np.arange(10) / 100, np.full(10, 3.0), "alone")
    assert errors.value == pytest.approx(2 - 0.045) and 0 < errors.low < errors.value < errors.high


def test_labels_that_did_better_are_told():
    told = gains.labels_did_better([candidate("distill", gained(-1.5, -2.5, -0.5))], ["alone"])
    assert told == "training on labels alone is better: alone is 1.50 [0.50, 2.50] pt above distill on test"
    assert gains.labels_did_better([candidate("distill", gained(-0.1, -1, 0.8))], ["alone"]).endswith("may be chance")
    assert gains.labels_did_better([candidate("a"), candidate("distill", gained(0.1, -1, 1))], ["alone"]) == ""
    assert gains.labels_did_better([candidate("again", gained(-1, -2, -0.5, "distill"))], ["alone"]) == ""


def test_a_stage_that_bought_nothing_is_told_with_what_to_try():
    line = [
        candidate("teacher"),
        candidate("distill", gained(0.1, -0.6, 0.8)),
        candidate("quantize", gained(2, 1, 3, "alone-quantize")),
    ]
    told = gains.without_gain(line, tapped=False)
    assert told[0] == "distill has no significant gain over alone: +0.10 [-0.60, +0.80] pt on test, paired"
    assert len(told) == 2 and "attention" in told[1] and "RESULTS.md" in told[1]
    assert "is worse than alone" in gains.without_gain([candidate("distill", gained(-2, -3, -1))], True)[0]
    assert "attention" not in gains.without_gain(line, tapped=True)[1]
    assert gains.without_gain(line[2:], False) == []
    assert gains.taps_layers(
        {"stage": [{"losses": [{"use": "kl"}, {"use": "attention", "on": ["a"]}]}]}
    ) and not gains.taps_layers({"stage": [{}]})


def test_the_advice_has_the_benchmarks_figures():
    for world in ("cifar", "built-in"):
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| {world}: KD + attention | {world}: KD |"))
        value, low, high = (
            f"{float(x):+.1f}" for x in re.search(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]", row).groups()
        )
        assert f"{value} [{low}, {high}]" in gains.TRY
    suggested = re.search(r"\{.*\}", gains.TRY)[0].replace('"layer2 -> layer3"', '"3 -> 3"')
    stage = f'task = "digits"\n[[stage]]\nuse = "distill"\nlosses = [{{ use = "kl" }}, {suggested}]'
    assert toml(stage)["stage"][0]["losses"][1]["use"] == "attention"


QAT = {
    "use": "quantize",
    "epochs": 2,
    "losses": [{"use": "cross_entropy", "weight": 0.25, "smoothing": 0.1}, {"use": "kl", "weight": 0.75}],
}


def planned(*stages, **more):
    return plan.make(resolve.resolved({"task": "tiny:task", "threads": 1, "stage": list(stages), **more}))


def test_the_control_is_quantized_like_the_rest_with_labels_only():
    found = planned({"use": "distill"}, {"use": "prune", "macs": 1.0}, QAT)
    points = {p.id: p for p in found.points}
    assert list(points) == ["teacher", "alone", "distill", "prune", "quantize", "alone-quantize"]
    assert {id: p.beside for id, p in points.items() if p.beside} == {"distill": "alone", "quantize": "alone-quantize"}
    step, taught = (found.steps[points[id].step] for id in ("alone-quantize", "quantize"))
    assert step.source == points["alone"].step and step.teacher == () and points["alone-quantize"].reference is None
    assert step.part.losses == (Term("cross_entropy", 1.0, {"smoothing": 0.1, "weights": ()}),)
    assert step.part == dataclasses.replace(taught.part, losses=step.part.losses, teachers=())
    assert list(found.steps)[-2] == step.key  # last: what a time budget leaves is the line


def test_a_pruned_line_is_not_held_against_a_control_that_is_whole():
    """Fewer MACs cost accuracy whoever teaches."""
    found = planned({"use": "distill"}, {"use": "prune"}, QAT, sweep={"prune.macs": [1.0, 0.54, "max 1", "max 0.54"]})
    beside = {p.id: p.beside for p in found.points if p.stages[-1] == "quantize" and p.id != "alone-quantize"}
    assert beside == {
        "quantize-1.0": "alone-quantize",
        "quantize-0.54": None,
        "quantize-max-1": "alone-quantize",
        "quantize-max-0.54": None,
    }


def test_the_control_has_no_form_of_its_own_where_the_line_has_none():
    assert [p.id for p in planned({"use": "distill"}).points] == ["teacher", "alone", "distill"]
    assert [p.id for p in planned({"use": "distill"}, QAT, control=False).points] == ["teacher", "distill", "quantize"]
    assert [p.beside for p in planned({"use": "distill"}, QAT, control=False).points] == [None] * 3


def test_seeds_and_targets_have_controls_and_a_further_distillation_what_it_began_from():
    found = planned(
        {"use": "distill"}, {"use": "distill", "name": "more"}, {**QAT, "mode": "ptq"}, sweep={"seed": [0, 1]}
    )
    beside = {p.id: p.beside for p in found.points if p.beside}
    assert (
        beside["distill.s1"] == "alone.s1"
        and beside["more.s1"] == "distill.s1"
        and beside["quantize.s0"] == "alone-quantize.s0"
    )
    two = planned({"use": "distill"}, QAT, targets=["x86-64-avx2", "cortex-a72"])
    ids = [p.id for p in two.points]
    assert sum(id.startswith("alone-quantize") for id in ids) == sum(id.startswith("quantize") for id in ids)
    assert all(p.beside in ids for p in two.points if p.beside)
