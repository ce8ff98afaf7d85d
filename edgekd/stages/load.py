"""Loads a model's weights from a file: a safetensors file, or a state dict that torch loads without unpickling
objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgekd.models import saved
from edgekd.records import Artifact, Made, Run


@dataclass(frozen=True, kw_only=True)
class Load:
    """`weights`: the file; `sha256`: its digest, filled in by the plan. The digest is part of the key, the path is
    not."""

    model: str
    weights: str
    sha256: str = ""
    reads: ClassVar = ()
    cpu_only: ClassVar = True

    def __call__(
        self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None
    ) -> Made:
        module = saved.bring(Path(self.weights), saved.create(run.task, self.model, run.seed))
        saved.save(run.folder, module, model=self.model, seed=run.seed)
        return Made("torch", {"parameters": sum(p.numel() for p in module.parameters())})
