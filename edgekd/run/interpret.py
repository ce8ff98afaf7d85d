"""What a resolved recipe asks for, before any of it is a step: whom each model is made by, what the control learns by,
what targets share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.records import Task
from edgekd.run import target_settings
from edgekd.run.recipe import Recipe
from edgekd.run.recipe.stages import Line
from edgekd.run.resolve import Resolved
from edgekd.run.target_settings import Wants
from edgekd.signatures import settings_of
from edgekd.stages.train import Train
from edgekd.training.read_terms import losses_of
from edgekd.training.settings import Training
from edgekd.training.terms import Term

FORMS = ("quantize", "weight_only")  # stages that give a model another form
# settings that a control without teachers has no use for, as they are by default
ALONE = {f: getattr(Training(), f) for f in ("combine", "teacher_precision", "balance", "ema")}


@dataclass(frozen=True)
class Settled:
    """A stage of the recipe as some targets get it, at one point of the sweep. `base`: the name of the candidate that
    it makes, but for the seed; `control`: that of the control in the same form."""

    line: Line
    stage: Any
    base: str
    control: str


@dataclass(frozen=True)
class Variant:
    """Stages in a row for some targets, at one seed and point of the sweep."""

    targets: tuple[str, ...]
    seed: int
    stages: tuple[Settled, ...]


@dataclass(frozen=True)
class Asked:
    """A view of a resolved recipe: nothing is computed, nothing kept."""

    resolved: Resolved

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def task(self) -> Task:
        return self.resolved.task

    @property
    def student(self) -> str:
        """Which of the task's models the stages work on."""
        return getattr(self.recipe.stages[0].stage, "model", "student")

    @property
    def controlled(self) -> bool:
        """Whether there is a student that learns from labels alone."""
        return self.recipe.control and self.recipe.stages[0].use == "distill"

    def model_of(self, teacher: str) -> str:
        """Which of the task's models a teacher is: a `[model.NAME]`'s, or the student for a stage."""
        return self.recipe.models[teacher].of if teacher in self.recipe.models else self.student

    def control(self, line: Line) -> tuple[Term, ...]:
        """What the control learns by in a stage: its losses that need no teacher, else those of the first stage, of
        weight 1 together; else those that the teacher is trained by."""
        labels = self.on_labels(line) or self.on_labels(self.recipe.stages[0])
        if labels:
            whole = sum(term.weight for term in labels)
            return tuple(dataclasses.replace(_alone(term), weight=term.weight / whole) for term in labels)
        teacher = self.recipe.models["teacher"]
        return teacher.stage.losses if teacher.way == "train" else settings_of(Train, {}, "")[0]["losses"]

    def trains(self, line: Line) -> bool:
        """Whether the control learns in a stage that gives a model another form."""
        return bool(losses_of(line.stage))

    def on_labels(self, line: Line) -> list[Term]:
        """The stage's losses that need no teacher."""
        terms = getattr(line.stage, "losses", ())
        return [t for t in terms if not t.needs_teacher() and not t.on and t.weight > 0]

    def example(self) -> Any:
        """Two rows of inputs as tensors: what a model is traced with."""
        import numpy as np

        from edgekd.data.columns import take

        columns = self.resolved.data("train")
        return take(columns, np.arange(2, dtype=np.int64) % len(columns)).inputs

    def swept(self, line: Line) -> Iterator[Line]:
        """A stage at every point of its own sweep."""
        return self.recipe.sweep.lines(line)

    def wants(self) -> dict[Wants, tuple[str, ...]]:
        """{want: names of the targets}"""
        return target_settings.wants(self.resolved.targets)

    def served(self) -> dict[Wants, tuple[str, ...]]:
        """{want: the targets that what is made for it is right for}"""
        groups = self.wants()
        return {
            want: tuple(t for other, names in groups.items() if want.serves(other) for t in names) for want in groups
        }

    def variants(self) -> Iterator[Variant]:
        """The recipe's stages for every group of targets, at every seed and point of the sweep."""
        groups, sweep = self.wants(), self.recipe.sweep
        for (want, targets), seed in itertools.product(self.served().items(), sweep.seeds):
            for choices in sweep.points():
                settled, suffix = [], ""
                for line in self.recipe.stages:
                    own = {key: choice for (stage, key), choice in choices.items() if stage == line.name}
                    line = line.at({key: choice.value for key, choice in own.items()})
                    suffix += "".join(f"-{choice.text}" for choice in own.values()) + _label(line, want, groups)
                    control = f"alone-{line.name}{_label(line, want, groups)}"
                    settled.append(Settled(line, want.into(line), f"{line.name}{suffix}", control))
                yield Variant(targets, seed, tuple(settled))

    def alone(self) -> Train:
        """How the control is trained: like the first stage's student, on labels only."""
        first = self.recipe.stages[0]
        shared = {f.name: getattr(first.stage, f.name) for f in dataclasses.fields(Train)}
        return Train(**(shared | ALONE | {"losses": self.control(first)}))

    def controls(self) -> Iterator[Variant]:
        """The control in the form that the line ends in, so that it competes with it: by the last stage, with labels
        only. Of a sweep over that stage's settings it has those of the recipe."""
        last, groups = self.recipe.stages[-1], self.wants()
        if not self.controlled or last.use not in FORMS:
            return
        for (want, targets), seed in itertools.product(self.served().items(), self.recipe.sweep.seeds):
            stage = want.into(last)
            if self.trains(last):
                stage = dataclasses.replace(stage, **ALONE, losses=self.control(last))
            base = f"alone-{last.name}{_label(last, want, groups)}"
            yield Variant(targets, seed, (Settled(last, stage, base, ""),))


def _label(line: Line, want: Wants, groups: Mapping[Wants, Any]) -> str:
    """What a point's name says of its targets, where others want other settings of a stage."""
    stage = want.into(line)
    if len(groups) < 2 or all(w.into(line) == stage for w in groups):
        return ""
    return target_settings.label(stage, want)


def _alone(term: Term) -> Term:
    """A term without a schedule that follows the agreement with a teacher."""
    return dataclasses.replace(term, schedule={}, by="training") if term.by == "agreement" else term
