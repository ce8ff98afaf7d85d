"""Distils a teacher into a student: labels and the teacher's softened outputs, weighted (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgekd.records import Artifact, Made, Run
from edgekd.stages.train import Train

KD = ({"use": "cross_entropy", "weight": 0.1}, {"use": "kl", "weight": 0.9, "temperature": 4.0})


@dataclass(frozen=True, kw_only=True)
class Distill(Train):
    """`Train` with a teacher. `cache` False runs the teacher live on every batch instead of once per view."""

    losses: tuple[dict[str, Any], ...] = KD
    cache: bool = True
    reads: ClassVar = ("train",)

    def __call__(self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        return Train.__call__(self, source, run, teacher=teacher, data=data)
