"""Trains a model of the task from its random start on labels: teachers, and the control `alone`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgekd import models
from edgekd.records import Artifact, Made, Run
from edgekd.train import Training, learn


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """`model`: which of the task's models."""

    model: str = "student"
    reads: ClassVar = ("train",)

    def __call__(self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        return learned(self, source, run, teacher)


def learned(stage: Train, source: Artifact | None, run: Run, teacher: tuple[Artifact, ...], peers: int = 1) -> Made:
    """Trains `stage.model` from its start, or `source` on, and saves it; of `peers` that learn together, the first is saved."""
    module = models.create(run.task, stage.model, run.seed) if source is None else models.load(source, run.task)
    record = {"model": stage.model, "pruning": None, "seed": run.seed} if source is None else models.record_of(source)
    others = [models.create(run.task, stage.model, run.seed + 1000 * number) for number in range(1, peers)]
    facts = learn([module, *others] if others else module, run, stage, teacher=teacher)
    models.save(run.folder, module, model=record["model"], pruning=record["pruning"], seed=record["seed"])
    return Made("torch", {**facts, "parameters": sum(p.numel() for p in module.parameters())})
