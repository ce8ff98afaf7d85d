"""Trains a model of the task on labels, from its initial weights: teachers, and the control `alone`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from edgekd.models import saved
from edgekd.records import Artifact, Made, Run
from edgekd.training.learn import learn
from edgekd.training.settings import Training


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """`model`: the name of one of the task's models."""

    model: str = "student"
    reads: ClassVar = ("train",)

    def __call__(
        self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None
    ) -> Made:
        return learned(self, source, run, teacher)


def learned(
    stage: Train,
    source: Artifact | None,
    run: Run,
    teacher: tuple[Artifact, ...],
    peers: int = 1,
    learns_with: tuple[str, ...] = (),
) -> Made:
    """Trains `stage.model` from its initial weights, or `source` further, and saves it; of `peers` that learn together,
    the first is saved. The models `learns_with` begin with their artifacts in `teacher`, or their initial weights."""
    module = saved.create(run.task, stage.model, run.seed) if source is None else saved.load(source, run.task)
    record = {"model": stage.model, "pruning": None, "seed": run.seed} if source is None else saved.record_of(source)
    others = [saved.create(run.task, stage.model, run.seed + 1000 * number) for number in range(1, peers)]
    names = (stage.model, *learns_with) if learns_with else ()
    begun = dict(zip(stage.teachers, teacher, strict=False))
    for name in learns_with:
        others.append(saved.load(begun[name], run.task) if name in begun else saved.create(run.task, name, run.seed))
    if learns_with:  # the others are fixed teachers
        fixed = {name: artifact for name, artifact in begun.items() if name not in learns_with}
        stage, teacher = dataclasses.replace(stage, teachers=tuple(fixed)), tuple(fixed.values())
    facts = learn([module, *others] if others else module, run, stage, teacher=teacher, names=names)
    saved.save(run.folder, module, model=record["model"], pruning=record["pruning"], seed=record["seed"])
    return Made("torch", {**facts, "parameters": sum(p.numel() for p in module.parameters())})
