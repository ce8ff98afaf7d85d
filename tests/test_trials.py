"""Losses tried before training: what has no gradient or other labels than it takes is refused, and the other losses are
left alone."""

import dataclasses

import numpy as np
import pytest
from torch import nn

from edgekd import Task, arrays, components, metrics
from edgekd.data.columns import load
from edgekd.errors import UsageError
from edgekd.records import Signals
from edgekd.training.loss_checks import check_terms, telling
from edgekd.training.read_terms import terms

ON_LABELS = ("cross_entropy", "dkd", "heads")
TAPPED = (
    "attention",
    "channel_wise",
    "contrastive",
    "heads",
    "hint",
    "normalized_features",
    "patient",
    "relational",
    "similarity",
)
KINDS = {
    "float": (lambda y: y + 0.5, "float"),
    "whole floats": (lambda y: y.astype(np.float32), "float32"),
    "bool": (lambda y: y > 0, "bool"),
    "one-hot": (lambda y: np.eye(3)[y], "one-hot"),
    "a column": (lambda y: y[:, None], "[B, 1]"),
    "too great": (lambda y: np.where(np.arange(len(y)) % 20 == 7, 3, y), "from 0 to 3"),
    "negative": (lambda y: np.where(np.arange(len(y)) % 20 == 7, -100, y), "-100"),  # the class that torch leaves out
    "none": (lambda y: None, "no labels"),
}


def net(outputs, width=6):
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, outputs)
    )


def task_of(labels, outputs=3, make=net, metric=None):
    x = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    splits = arrays(
        x[:80],
        None if labels is None else labels[:80],
        x[80:],
        None if labels is None else labels[80:],
        validation=0.25,
    )
    models = {"teacher": lambda: make(outputs), "student": lambda: make(outputs)}
    return Task("trial", "1", models, splits, (metric,) if metric else ())


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 3, 120)


def told(task, *losses, shows=None, change=lambda y: y):
    columns, guides = load(task, "train"), {"": task.models["teacher"](), "peers": task.models["student"]()}
    columns = dataclasses.replace(columns, labels=change(columns.labels))
    return list(check_terms(terms(losses) if losses else (), task.models["student"](), guides, task, columns, shows))


VALUES = {"mse", "mae", "huber", "bounded", "cosine"}  # of numbers and vectors


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_loss_of_numbers_learns_or_is_refused(name, labels):
    scores, single = (told(task, {"use": name}) for task in (task_of(labels), task_of(labels, 1)))
    if name == "cosine":  # of vectors; a single number has no angle
        assert scores == [] and "gradient is always 0" in single[0][1]
    else:
        assert single == [] and "labels have 1 values per sample, the output 3" in scores[0][1]


def test_a_loss_of_strings_is_refused(labels):
    ((_, message, hint),) = told(task_of(labels), {"use": "ctc"})
    assert "takes an output with a blank" in message and "edgekd.classes(axis=2, blank=0)" in hint


@pytest.mark.parametrize("name", sorted(set(components.names("losses")) - VALUES - {"ctc"}))
def test_a_built_in_loss_learns_or_is_refused(name, labels):
    """One contract over the folder: on scores it reacts; on a single number, and on labels that it can't take, it
    reacts or is refused."""
    on = {"on": ["1"]} if name in TAPPED else {}
    assert told(task_of(labels), {"use": name, **on}) == [] or name == "patient"  # which takes vectors
    single = told(task_of(labels, 1), {"use": name, **on})
    assert bool(single) == (name not in TAPPED and name != "logit_mse" or name in ("heads", "patient")), single
    assert all(number == 0 and ("classes" in message or "vectors" in message) for number, message, _ in single)
    for kind, (change, word) in KINDS.items() if name in ON_LABELS else ():
        ((_, message, hint),) = told(task_of(labels), {"use": name, **on}, change=change)
        assert word in message and hint, kind
    assert single == [] or "logit_mse" in single[0][2] or name == "patient"


def test_labels_that_number_classes_may_be_of_any_integer_type(labels):
    for kind in (np.uint8, np.int32, np.int64):
        assert told(task_of(labels.astype(kind)), {"use": "cross_entropy"}) == []


def test_the_rows_tried_are_those_that_tell():
    labels = np.zeros(1000)
    labels[[500, 600]], labels[700] = (-1, 9), np.nan
    assert set(telling(labels, 1000)) == {0, 1, 2, 3, 500, 600, 700}
    assert telling(None, 2).tolist() == [0, 1] and telling(np.array(["a", "b"]), 2).tolist() == [0, 1]


# losses of one's own


def mse(student, teacher: "Signals | None", batch):
    return (student.output[:, 0] - batch.labels.float()).square()


def constant(student, teacher: "Signals | None", batch):
    return student.output.sum(1) * 0 + 1


def rounded(student, teacher: "Signals | None", batch):
    return student.output.round().sum(1)  # moves, and has a gradient of 0


def shares(student, teacher: "Signals | None", batch):
    return nn.functional.binary_cross_entropy(student.output[:, 0], (batch.labels > 0).float(), reduction="none")


def late(student, teacher: "Signals | None", batch, *, sharp: float = 0.0):
    return sharp * student.output.square().sum(1)


def broken(student, teacher: "Signals | None", batch):
    return student.output.sum(1).log()


def own(name, **more):
    return {"use": f"{__name__}:{name}", **more}


def test_a_loss_of_ones_own_takes_what_it_likes(labels):
    numbers = task_of(labels + 0.5, 1)
    assert told(numbers, own("mse"), {"use": "logit_mse"}) == []
    flat = task_of(labels + 0.5, 1, lambda n: nn.Sequential(net(n), nn.Flatten(0)))
    assert told(flat, {"use": "logit_mse"}) == []
    ((_, message, _),) = told(flat, {"use": "kl"})
    assert "[6]" in message or "[5]" in message or "[4]" in message
    probability = task_of(labels, 1, lambda n: nn.Sequential(net(n), nn.Sigmoid()))
    assert told(probability, own("shares")) == []  # it can't be asked for other outputs than shares


@pytest.mark.parametrize("name, word", [("constant", "always"), ("rounded", "gradient is always 0")])
def test_a_loss_that_teaches_nothing(labels, name, word):
    ((number, message, _),) = told(task_of(labels), {"use": "cross_entropy"}, own(name))
    assert number == 1 and word in message and "would not train the student" in message


def test_a_loss_is_tried_at_the_weight_and_settings_that_it_gets(labels):
    task = task_of(labels)
    assert told(task, {"use": "cross_entropy"}, own("late", sharp=0.0, schedule={"sharp": [[0, 0], [0.5, 1]]})) == []
    assert told(task, {"use": "cross_entropy"}, own("late", sharp=1.0, schedule={"weight": [[0, 0], [0.5, 1]]})) == []
    assert told(task, {"use": "cross_entropy"}, own("late", sharp=0.0, weight=0.0)) == []  # switched off
    ((number, _, _),) = told(
        task, {"use": "cross_entropy"}, own("late", sharp=0.0, schedule={"weight": [[0, 0], [0.5, 1]]})
    )
    assert number == 1
    ((_, message, _),) = told(task, {"use": "cross_entropy", "weight": 0.0})
    assert "weights of all losses are 0" in message
    ((_, message, _),) = told(task, {"use": "kl", "schedule": {"weight": [[0, 0], [1, 0]]}})
    assert "weights of all losses are 0" in message


def test_equal_guides_are_no_reason(labels):
    """A peer or an average begins as the student: kl is 0 there, and reacts all the same."""
    assert told(task_of(labels), {"use": "kl", "teacher": "peers"}) == []


def test_what_is_not_finite_at_the_start(labels):
    numbers = np.where(np.arange(120) < 80, np.nan, labels)
    ((_, message, hint),) = told(task_of(numbers, 1), own("mse"))
    assert "nan" in message and "60 of 60 labels are NaN" in hint
    ((_, message, _),) = told(task_of(labels, make=lambda n: nn.Sequential(net(n), nn.LogSigmoid())), own("broken"))
    assert "nan before any training" in message


def test_layers_of_one_number_have_no_attention(labels):
    task = task_of(
        labels,
        make=lambda n: nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4, n)),
    )
    for name in ("attention", "channel_wise"):
        ((_, message, hint),) = told(task, {"use": name, "on": ["1"]})
        assert "would not train the student" in message and "tap" in hint


def test_a_black_box_and_a_single_number(labels):
    ((_, message, _),) = told(task_of(labels, 1), {"use": "hard"}, shows={"": "label"})
    assert "two classes or more" in message


# ---------------------------------------------------------------- in a recipe

SHORT = {"epochs": 1, "batch": 32}
NUMBERS = task_of(np.random.default_rng(2).normal(size=120), 1, metric=metrics.mean_error())
MSE = {"use": "test_trials:mse"}


def recipe_of(**more):
    stage = {"use": "distill", **SHORT, "losses": [MSE, {"use": "logit_mse"}]}
    return {
        "task": "test_trials:NUMBERS",
        "threads": 1,
        "stage": [stage],
        "model": {"teacher": {"train": {**SHORT, "losses": [MSE]}}},
        **more,
    }


def problems(table):
    from edgekd.run import plan, resolve

    with pytest.raises(UsageError) as caught:
        plan.make(resolve.resolved(table))
    return [str(p) for p in caught.value.problems]


def test_every_training_of_a_recipe_is_tried():
    (stage, teacher, quantize) = problems(
        recipe_of(
            stage=[
                {"use": "distill", **SHORT, "losses": [MSE, {"use": "kl"}]},
                {"use": "quantize", **SHORT, "losses": [{"use": "cross_entropy"}]},
            ],
            model={"teacher": {"train": SHORT}},
        )
    )
    found = sorted((stage, teacher, quantize), key=lambda p: p.split(":")[1])
    assert (
        "model.teacher.train: losses[0]" in found[0]
        and "stage 1 (distill): losses[1]" in found[1]
        and "stage 2 (quantize): losses[0]" in found[2]
    )


def test_the_control_is_tried(tmp_path):
    """Without a loss on labels it learns by cross-entropy, which numbers are no labels for."""
    from safetensors.torch import save_file

    save_file(net(1).state_dict(), tmp_path / "t.safetensors")
    table = recipe_of(stage=[{"use": "distill", **SHORT, "losses": [{"use": "logit_mse"}]}])
    table["model"] = {"teacher": {"weights": str(tmp_path / "t.safetensors")}}
    (problem,) = problems(table)
    assert "control" in problem and "control = false" in problem


def test_the_control_in_the_lines_form_learns_by_labels_of_the_first_stage(tmp_path):
    """Where the last stage has no loss on labels: cross-entropy is none for numbers."""
    from safetensors.torch import save_file

    from edgekd.run import plan, resolve

    save_file(net(1).state_dict(), tmp_path / "t.safetensors")
    table = recipe_of(model={"teacher": {"weights": str(tmp_path / "t.safetensors")}})
    table["stage"].append({"use": "quantize", **SHORT, "losses": [{"use": "logit_mse"}]})
    made = plan.make(resolve.resolved(table))
    step = next(made.steps[p.step] for p in made.points if p.id == "alone-quantize")
    assert [(t.use, t.weight) for t in step.part.losses] == [("test_trials:mse", 1.0)]


def test_losses_that_only_the_controls_last_stage_learns_by_are_tried():
    """The sweep's points learn by others, which are tried; the control by the recipe's."""
    stages = [recipe_of()["stage"][0], {"use": "quantize", **SHORT, "losses": [{"use": "cross_entropy"}]}]
    (problem,) = problems(recipe_of(stage=stages, sweep={"quantize.losses": [[MSE], [MSE, {"use": "logit_mse"}]]}))
    assert "the control" in problem and "losses[0]" in problem and "cross_entropy" in problem


def test_regression_with_a_loss_and_metric_of_ones_own_runs_to_its_end(tmp_path, monkeypatch):
    import tiny

    import edgekd
    from edgekd.measure import jobs

    tiny.settle(tmp_path, monkeypatch)
    # has tests of its own
    monkeypatch.setattr(jobs, "profile", lambda models, *given, **more: dict.fromkeys(models, ()))
    table = recipe_of(control=False, gate={"any": {"mean_error": "max 100"}})
    table["stage"].append({"use": "quantize", **SHORT, "samples": 32, "losses": [MSE, {"use": "logit_mse"}]})
    run = edgekd.compress(table, out=tmp_path / "run")
    assert run.exit_code == 0 and {c.point for c in run.result.candidates} >= {"teacher", "distill", "quantize"}


def test_a_sweep_over_other_settings_tries_the_losses_once(monkeypatch):
    from edgekd.run import check_losses, plan, resolve

    calls = []
    monkeypatch.setattr(check_losses, "check_terms", lambda losses, *rest: calls.append(losses) or [])
    plan.make(resolve.resolved(recipe_of(sweep={"distill.lr": [0.001, 0.002, 0.003]})))
    assert len(calls) == 2  # the stage's and the teacher's


def test_outputs_of_any_size_and_losses_that_take_no_others_are_left_alone(labels, monkeypatch):
    """A model's own outputs may be 1e18, where the gradient is as small as ever; a loss may raise on all outputs but
    those of its model."""

    def big(outputs):
        return nn.Sequential(net(outputs), nn.Threshold(-1e30, 0.0), Times())

    class Times(nn.Module):
        def forward(self, x):
            return 1e18 * x

    def picky(student, teacher, batch):
        if student.output.abs().max() > 1:
            raise ValueError("these are no shares of mine")
        return (student.output**2).mean(1)

    monkeypatch.setitem(globals(), "picky", picky)
    assert told(task_of(labels, make=big), {"use": "cross_entropy"}) == []
    assert (
        told(
            task_of(labels, make=lambda outputs: nn.Sequential(net(outputs), nn.Softmax(1))),
            {"use": f"{__name__}:picky"},
        )
        == []
    )
