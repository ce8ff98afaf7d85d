"""Checks that passed are not made again, and are as soon as anything changes that they depend on."""

import dataclasses
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from edgekd import data
from edgekd.errors import UsageError
from edgekd.run import checks, passed, plan, resolve
from edgekd.store import fingerprint
from edgekd.store.store import Store

RECIPE = {
    "task": "tiny:task",
    "threads": 1,
    "stage": [{"use": "distill", "epochs": 1}, {"use": "quantize", "mode": "ptq"}],
    "model": {"teacher": {"train": {"epochs": 1}}},
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Plans a recipe with a store; which checks were made."""
    calls, task, planned = [], data.check, checks.check
    monkeypatch.setattr(data, "check", lambda *a, **k: calls.append("task") or task(*a, **k))
    monkeypatch.setattr(checks, "check", lambda *a: calls.append("plan") or planned(*a))
    store = Store(tmp_path / "store")

    def make(**changes):
        calls.clear()
        resolved = resolve.resolved({**RECIPE, **changes}, store=store)
        return calls[:] if calls else [], plan.make(resolved, store), list(calls)

    return make


def test_what_passed_is_not_checked_again(made):
    _, first, calls = made()
    assert calls == ["task", "plan"]
    _, second, calls = made()
    assert calls == []
    assert (second.losses, second.notes, list(second.steps)) == (first.losses, first.notes, list(first.steps))
    assert first.losses


@pytest.mark.parametrize(
    "change, again",
    [
        (lambda patch: {"stage": [{"use": "distill", "epochs": 2}, {"use": "quantize", "mode": "ptq"}]}, ["plan"]),
        (lambda patch: {"stage": [{"use": "distill", "name": "first", "epochs": 1}]}, ["plan"]),
        (lambda patch: {"targets": ["raspberry-pi-4"]}, ["plan"]),
        (lambda patch: patch.setattr(tiny, "task", dataclasses.replace(tiny.task, classes=None)), ["task", "plan"]),
        (lambda patch: patch.setattr(tiny, "task", _other_data()), ["task", "plan"]),
        (lambda patch: patch.setattr(tiny, "task", dataclasses.replace(tiny.task, version="2")), ["task", "plan"]),
        (lambda patch: patch.setattr(tiny, "task", _other_model()), ["task", "plan"]),
        (lambda patch: patch.setattr(passed, "_edgekd", lambda: "another edgekd"), ["task", "plan"]),
        (lambda patch: {"model": {**RECIPE["model"], "idle": {"train": {"model": "teacher", "epochs": 1}}}}, ["plan"]),
        (lambda patch: patch.setattr(tiny, "task", _other_metric()), ["task", "plan"]),
    ],
    ids=[
        "setting",
        "name",
        "target",
        "classes",
        "data",
        "version",
        "model",
        "edgekd",
        "a model without a step",
        "metric",
    ],
)
def test_what_a_check_depends_on_has_it_made_again(made, monkeypatch, change, again):
    made()
    assert made(**(change(monkeypatch) or {}))[2] == again


def _other_data():
    x, y = tiny.blobs(1)
    return dataclasses.replace(tiny.task, data=data.arrays(x[:240], y[:240], x[240:], y[240:], validation=0.25))


def _other_model():
    return dataclasses.replace(tiny.task, models={**tiny.task.models, "student": lambda: tiny.Net(16)})


def _other_metric():
    (metric,) = tiny.task.metrics
    return dataclasses.replace(tiny.task, metrics=(dataclasses.replace(metric, value=lambda records: 0.0),))


def test_the_code_of_a_loss_of_a_model_without_a_step_counts(made, tmp_path, monkeypatch):
    """Its own loss passed once; broken, it is refused although no step of the plan uses it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = "def own(student, teacher, batch):\n    {}return student.output.square().mean(-1)\n"
    idle = {"idle": {"train": {"model": "teacher", "epochs": 1, "losses": [{"use": "idleloss:own"}]}}}
    try:
        (tmp_path / "idleloss.py").write_text(lines.format(""))
        made(model={**RECIPE["model"], **idle})
        sys.modules.pop("idleloss")
        (tmp_path / "idleloss.py").write_text(lines.format("raise ValueError('broken')\n    "))
        importlib.invalidate_caches()
        with pytest.raises(UsageError, match="broken"):
            made(model={**RECIPE["model"], **idle})
    finally:
        sys.modules.pop("idleloss", None)


def test_what_did_not_pass_is_told_every_time(made, monkeypatch):
    wrong = {"stage": [{"use": "distill", "epochs": 1}, {"use": "prune", "macs": 0.001}]}
    for _ in range(2):
        with pytest.raises(UsageError, match="can't be reached"):
            made(**wrong)
    monkeypatch.setattr(tiny, "task", dataclasses.replace(tiny.task, classes=2))
    for _ in range(2):
        with pytest.raises(UsageError, match="labels are outside"):
            made()


def test_what_a_task_depends_on_is_computed_once(made, monkeypatch):
    calls, of_task = [], passed.of_task
    monkeypatch.setattr(passed, "of_task", lambda *given: calls.append(1) or of_task(*given))
    made()
    assert len(calls) == 1


def test_where_the_identity_can_not_be_told_the_check_is_made(tmp_path):
    calls = []

    def unknown():
        raise ValueError("no source")

    for _ in range(2):
        assert passed.kept(Store(tmp_path), "plan", unknown, lambda: calls.append(1) or {"x": 1}) == {"x": 1}
    assert len(calls) == 2
    assert passed.kept(None, "plan", lambda: 1, lambda: calls.append(1) or {}) == {} and len(calls) == 3


def test_every_source_file_of_edgekd_counts(tmp_path, monkeypatch):
    """In a copy of the package: a file far from this module is edited, and one is added."""
    shutil.copytree(
        Path(passed.__file__).parent.parent, tmp_path / "edgekd", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(passed, "__file__", str(tmp_path / "edgekd/run/passed.py"))
    told = lambda: passed._edgekd.__wrapped__()
    first = told()
    (tmp_path / "edgekd/losses/kl.py").write_text((tmp_path / "edgekd/losses/kl.py").read_text() + "\n")
    second = told()
    (tmp_path / "edgekd/losses/another.py").write_text("")
    assert len({first, second, told()}) == 3


def test_names_and_contents_of_files_are_told_apart(tmp_path):
    one, two = [("a.py", b"x"), ("b.py", b"y")], [("a.py", b"x"), ("b.py", b"z")]
    found = set()
    for number, files in enumerate((one, two, one[:1], [("a.py", b"xb.py 1\ny")])):
        folder = tmp_path / str(number) / "folder"
        folder.mkdir(parents=True)
        for name, content in (*files, ("a.pyc", bytes([number]))):
            (folder / name).write_bytes(content)
        found.add(fingerprint.files([folder], "*.py"))
    (folder / "a.pyc").write_bytes(b"another")
    assert len(found) == 4 and fingerprint.files([folder], "*.py") in found
