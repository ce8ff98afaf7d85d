"""Code of a recipe that calls sys.exit() has failed, whatever its number: 2 while a recipe is read, 6 while it runs."""

import sys
from types import SimpleNamespace

import pytest

from edgekd.cli import run as command
from edgekd.errors import Problem, RunFailed, UsageError, first_line
from edgekd.progress import Silent
from edgekd.run import sanity_check
from edgekd.run.plan import Plan, Step
from edgekd.run.steps import run_steps
from edgekd.store.store import Store

MODULE = """
import dataclasses
import sys
import tiny
from tiny import *
from edgekd.records import Metric

calls = {"count": 0}

def quit(*args, **settings):
    sys.exit(0)

def late(*args, **settings):
    calls["count"] += 1
    if calls["count"] > LATE:
        sys.exit(0)

class Late(Net):
    def forward(self, x):
        late() if self.training else None
        return super().forward(x)

@dataclasses.dataclass(frozen=True)
class Quits:
    reads = ()
    def __call__(self, source, run, *, teacher=(), data=None):
        sys.exit(0)

def loss(student, teacher, batch):
    if len(batch.index) > ROWS:  # the few samples that it is tried on before training are fewer
        sys.exit(0)
    return ((student.output - 1.0) ** 2).mean(1)

def criterion(group):
    sys.exit(0)

LATE = ROWS = 0
"""
TRAIN = 'use = "train"\nepochs = 1'


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Runs the recipe of a module `mine` with these lines; (exit code, stderr)."""
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("mine", None)  # another test's
    yield lambda lines, stage=TRAIN: _run(tmp_path, lines, stage)
    sys.modules.pop("mine", None)


def _run(folder, lines, stage):
    (folder / "mine.py").write_text(MODULE + lines)
    text = (
        'task = "mine:task"\n'
        "threads = 1\n"
        "control = false\n"
        "[[stage]]\n"
        f"{stage}\n"
        "[model.teacher]\n"
        f"train = {{ epochs = 1 }}\n"
    )
    (folder / "recipe.toml").write_text(text)
    return command(["compress", "recipe.toml", "--out", "run", "--quiet"])


READING = {
    "the module": ("sys.exit(0)", None),
    "the task": ("def task():\n    sys.exit(0)", None),
    "data": ("task = dataclasses.replace(task, data=quit)", None),
    "a model": ('task = dataclasses.replace(task, models={**task.models, "student": quit})', None),
    "forward": ("task = dataclasses.replace(task, forward=quit)", None),
    "augment": ("task = dataclasses.replace(task, augment=quit)", None),
    "collate": ("task = dataclasses.replace(task, collate=quit)", None),
    "a metric": ('task = dataclasses.replace(task, metrics=(Metric("top1", "%", "higher", quit, quit),))', None),
    "a loss": ("", 'use = "train"\nlosses = [{ use = "mine:loss" }]'),
}
RUNNING = {
    "a stage": ("", TRAIN + '\n[[stage]]\nname = "own"\nuse = "mine:Quits"'),
    "a criterion": ("", TRAIN + '\n[[stage]]\nuse = "prune"\nmacs = 0.54\ncriterion = "mine:criterion"'),
    "a model in training": (
        'LATE = 1\ntask = dataclasses.replace(task, models={**task.models, "teacher": lambda: Late(8)})',
        None,
    ),
    "a loss in training": ("ROWS = 8", 'use = "train"\nlosses = [{ use = "mine:loss" }]'),
}


def test_the_first_line_of_an_error_that_says_nothing_is_its_type():
    assert first_line(ValueError()) == "ValueError" and first_line(OSError("  a\nb ")) == "a"


@pytest.mark.parametrize("where", READING)
def test_while_a_recipe_is_read(where, recipe, capsys):
    lines, stage = READING[where]
    code = recipe(lines, **({} if stage is None else {"stage": stage}))
    err = capsys.readouterr().err
    assert code == 2 and "exit" in err.lower() and "internal" not in err, err


@pytest.mark.parametrize("where", RUNNING)
def test_while_it_runs(where, recipe, capsys, monkeypatch):
    monkeypatch.setattr(sanity_check, "check", lambda *given: None)  # it takes seconds, and runs none of this
    lines, stage = RUNNING[where]
    code = recipe(lines, **({} if stage is None else {"stage": stage}))
    err = capsys.readouterr().err
    assert code == 6 and "mine.py:" in err and "calls sys.exit(0)" in err, err


@pytest.mark.parametrize(("stage", "kind"), [("quantize", RunFailed), ("load", UsageError)])
def test_an_error_of_use_while_it_runs_is_told_with_its_step(stage, kind, tmp_path):
    """What only a training shows is told as all that breaks there; a brought file that is wrong stays an error of
    use."""

    def part(source, run, *, teacher=()):
        raise UsageError(Problem("losses[0]", "takes other labels"))

    resolved = SimpleNamespace(task=None, threads=1, data=None, processes=1, device="cpu")
    with pytest.raises(kind) as caught:
        run_steps(
            Plan({"key": Step("key", stage, "quantize.s1", part, 0, None, ())}),
            resolved,
            Store(tmp_path),
            Silent(),
            lambda **_: None,
        )
    assert [(p.place, p.message) for p in caught.value.problems] == [("quantize.s1: losses[0]", "takes other labels")]


def test_an_interrupt_stays_one(recipe, capsys):
    assert recipe("raise KeyboardInterrupt") == 130 and "interrupted" in capsys.readouterr().err
