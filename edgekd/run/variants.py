"""The variants of a resolved recipe: its stages for each group of targets, seed and point of the sweep, and those of
the control."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.records import Task
from edgekd.run import default_losses, target_settings
from edgekd.run.recipe import Recipe
from edgekd.run.recipe.stages import Line, sequences
from edgekd.run.resolve import Resolved
from edgekd.run.target_settings import TargetSettings
from edgekd.signatures import settings_of
from edgekd.stages.train import Train
from edgekd.training.read_terms import losses_of
from edgekd.training.settings import Training
from edgekd.training.terms import Term

FORMS = ("quantize", "weight_only")  # stages that change a model's number format
# the defaults of settings that a control without teachers does not use
ALONE = {f: getattr(Training(), f) for f in ("combine", "teacher_precision", "balance", "ema")}


@dataclass(frozen=True)
class Settled:
    """A stage of the recipe with the settings of some targets, at one point of the sweep. `base`: the name of its
    candidate, without the seed; `control`: that of the control in the same form."""

    line: Line
    stage: Any
    base: str
    control: str


@dataclass(frozen=True)
class Variant:
    """The sequence of stages for some targets, at one seed and point of the sweep."""

    targets: tuple[str, ...]
    seed: int
    stages: tuple[Settled, ...]


@dataclass(frozen=True)
class RecipeView:
    """A read-only view of a resolved recipe."""

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

    def partner(self, name: str) -> str:
        """Which of the task's models one is that learns together with a student."""
        return self.recipe.models[name].of if name in self.recipe.models else name

    def control(self, line: Line) -> tuple[Term, ...]:
        """The losses of the control in a stage: the stage's losses that need no teacher, else those of the first stage,
        scaled to a total weight of 1; else the teacher's own."""
        if self.task.heads:
            return self._control_of_heads(line)
        labels = self.on_labels(line) or self.on_labels(self.recipe.stages[0])
        if labels:
            whole = sum(term.weight for term in labels)
            return tuple(dataclasses.replace(_alone(term), weight=term.weight / whole) for term in labels)
        teacher = self.recipe.models["teacher"]
        return teacher.stage.losses if teacher.way == "train" else settings_of(Train, {}, "")[0]["losses"]

    def _control_of_heads(self, line: Line) -> tuple[Term, ...]:
        """The same for each of several outputs, scaled to the total weight that the stage gives it."""
        teacher = self.recipe.models["teacher"]
        taught = teacher.stage.losses if teacher.way == "train" else ()
        sources = (
            self.on_labels(line),
            self.on_labels(self.recipe.stages[0]),
            taught,
            default_losses.on_labels(self.task),
        )
        found: list[Term] = []
        for name in self.task.heads:
            of = lambda terms, name=name: [t for t in terms if t.output == name and t.weight > 0]
            labels = next(filter(None, map(of, sources)), [])
            whole = sum(t.weight for t in of(losses_of(line.stage))) or sum(t.weight for t in labels)
            scale = whole / (sum(t.weight for t in labels) or 1)
            found += [dataclasses.replace(_alone(t), weight=t.weight * scale) for t in labels]
        return tuple(found)

    def trains(self, line: Line) -> bool:
        """Whether the stage trains the control, besides changing its number format."""
        return bool(losses_of(line.stage))

    def on_labels(self, line: Line) -> list[Term]:
        """The stage's losses that need no teacher."""
        terms = getattr(line.stage, "losses", ())
        return [t for t in terms if not t.needs_teacher() and not t.on and t.weight > 0]

    def example(self) -> Any:
        """Two rows of inputs as tensors, to trace a model with."""
        import numpy as np

        from edgekd.data.columns import take

        columns = self.resolved.data("train")
        return take(columns, np.arange(2, dtype=np.int64) % len(columns)).inputs

    def swept(self, line: Line) -> Iterator[Line]:
        """A stage at every point of its own sweep."""
        return self.recipe.sweep.lines(line)

    def target_groups(self) -> dict[TargetSettings, tuple[str, ...]]:
        """{settings: names of the targets that need them}"""
        return target_settings.grouped(self.resolved.targets)

    def served_groups(self) -> dict[TargetSettings, tuple[str, ...]]:
        """{settings: names of all targets that a model made with them suits}"""
        groups = self.target_groups()
        return {
            settings: tuple(t for other, names in groups.items() if settings.serves(other) for t in names)
            for settings in groups
        }

    def variants(self) -> Iterator[Variant]:
        """The recipe's stages for every group of targets, at every seed and point of the sweep."""
        groups, sweep = self.target_groups(), self.recipe.sweep
        for (settings, targets), seed in itertools.product(self.served_groups().items(), sweep.seeds):
            ways = [(way, c) for way in sequences(self.recipe.stages) for c in sweep.points({s.name for s in way})]
            for way, choices in ways:
                settled, suffix = [], ""
                for line in way:
                    control = _control(line, settings, groups)  # no sweep applies to it
                    own = {key: choice for (stage, key), choice in choices.items() if stage == line.name}
                    line = line.at({key: choice.value for key, choice in own.items()})
                    suffix += "".join(f"-{choice.text}" for choice in own.values()) + _label(line, settings, groups)
                    settled.append(Settled(line, settings.into(line), f"{line.name}{suffix}", control))
                yield Variant(targets, seed, tuple(settled))

    def alone(self) -> Train:
        """The stage that trains the control: as the first stage trains its student, on labels only."""
        first = self.recipe.stages[0]
        shared = {f.name: getattr(first.stage, f.name) for f in dataclasses.fields(Train)}
        return Train(**(shared | ALONE | {"losses": self.control(first)}))

    def controls(self) -> Iterator[Variant]:
        """The control after the last stage, trained on labels only, so that it competes in the same form. A sweep over
        that stage's settings does not apply to it."""
        last, groups = self.recipe.stages[-1], self.target_groups()
        if not self.controlled or last.use not in FORMS:
            return
        for (settings, targets), seed in itertools.product(self.served_groups().items(), self.recipe.sweep.seeds):
            stage = settings.into(last)
            if self.trains(last):
                stage = dataclasses.replace(stage, **ALONE, losses=self.control(last))
            yield Variant(targets, seed, (Settled(last, stage, _control(last, settings, groups), ""),))


def _control(line: Line, settings: TargetSettings, groups: Mapping[TargetSettings, Any]) -> str:
    """The name of the control after a stage."""
    return f"alone-{line.name}{_label(line, settings, groups)}"


def _label(line: Line, settings: TargetSettings, groups: Mapping[TargetSettings, Any]) -> str:
    """A suffix for a candidate's name, where other targets need other settings of the stage."""
    stage = settings.into(line)
    if len(groups) < 2 or all(w.into(line) == stage for w in groups):
        return ""
    return target_settings.label(stage, settings)


def _alone(term: Term) -> Term:
    """The term, without a schedule that follows the agreement with a teacher."""
    return dataclasses.replace(term, schedule={}, by="training") if term.by == "agreement" else term
