"""A model whose function in the task makes it with its weights: nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgekd.models import saved
from edgekd.records import Artifact, Made, Run


@dataclass(frozen=True, kw_only=True)
class Given:
    """`model`: its name among the task's models, whose digests are part of the key."""

    model: str
    reads: ClassVar = ()
    cpu_only: ClassVar = True

    def __call__(
        self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None
    ) -> Made:
        module = saved.create(run.task, self.model, run.seed)
        saved.save(run.folder, module, model=self.model, seed=run.seed)
        origin = getattr(run.task.models[self.model], "origin", {})
        return Made("torch", {"parameters": sum(p.numel() for p in module.parameters()), "origin": origin})
