"""What a resolved recipe asks for, before any of it is a step: whom each model is made by, what the control learns by,
what targets share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.records import Task
from edgekd.run import target_settings
from edgekd.run.recipe import Read, StageLine
from edgekd.run.resolve import Resolved
from edgekd.run.target_settings import Wants

FORMS = ("quantize", "weight_only")  # stages that give a model another form


@dataclass(frozen=True)
class Asked:
    """A view of a resolved recipe: nothing is computed, nothing kept."""

    resolved: Resolved

    @property
    def read(self) -> Read:
        return self.resolved.read

    @property
    def task(self) -> Task:
        return self.resolved.task

    @property
    def student(self) -> str:
        """Which of the task's models the stages work on."""
        return self.read.stages[0].settings.get("model", "student")

    @property
    def controlled(self) -> bool:
        """Whether there is a student that learns from labels alone."""
        return self.read.recipe.control and self.read.stages[0].use == "distill"

    def model_of(self, teacher: str) -> str:
        """Which of the task's models a teacher is: a `[model.NAME]`'s, or the student for a stage."""
        table = self.read.models.get(teacher)
        if table is None:
            return self.student
        return next((table[way]["model"] for way in ("train", "distill") if way in table), teacher)

    def control(self, line: StageLine) -> tuple[dict[str, Any], ...]:
        """What the control learns by in a stage: its losses that need no teacher, else those of the first stage, of
        weight 1 together; else those that the teacher is trained by."""
        labels = self.on_labels(line) or self.on_labels(self.read.stages[0])
        whole = sum(t["weight"] for t in labels)
        if labels:
            alone = [
                t if t.get("schedule", {}).get("by") != "agreement" else {k: v for k, v in t.items() if k != "schedule"}
                for t in labels
            ]
            return tuple({**t, "weight": t["weight"] / whole} for t in alone)
        return (
            self.read.models["teacher"]
            .get("train", {})
            .get("losses", ({"use": "cross_entropy", "weight": 1.0, "smoothing": 0.0},))
        )

    def trains(self, line: StageLine) -> bool:
        """Whether the control learns in a stage that gives a model another form."""
        return line.settings.get("mode", "ptq") != "ptq"

    def on_labels(self, line: StageLine) -> list[dict[str, Any]]:
        """The stage's losses that need no teacher."""
        from edgekd.training.terms import terms

        losses = line.settings["losses"]
        return [
            t
            for t, term in zip(losses, terms(losses), strict=True)
            if not term.needs_teacher() and not term.on and term.weight > 0
        ]

    def own_sweep(self, line: StageLine) -> list[dict[str, Any]]:
        keys = {k.partition(".")[2]: v for k, v in self.read.recipe.sweep.items() if k.partition(".")[0] == line.name}
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]

    def wants(self) -> dict[Wants, tuple[str, ...]]:
        """{want: names of the targets}"""
        return target_settings.wants(self.resolved.targets)

    def served(self) -> dict[Wants, tuple[str, ...]]:
        """{want: the targets that what is made for it is right for}"""
        groups = self.wants()
        return {
            want: tuple(t for other, names in groups.items() if want.serves(other) for t in names) for want in groups
        }

    def wanted(self, stage: StageLine, want: Wants, groups: Mapping) -> str:
        """What a point's name says of its targets, where others want other settings of a stage."""
        settings = want.into(stage)
        if len(groups) < 2 or all(w.into(stage) == settings for w in groups):
            return ""
        return target_settings.label(settings, want)
