"""Distils teachers into a student: trains it on labels and the teachers' softened outputs (Hinton, Vinyals, Dean
2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from edgekd.records import Artifact, Made, Run
from edgekd.stages.train import Train, learned
from edgekd.training.read_terms import Losses
from edgekd.training.terms import Term

KD = (Term("cross_entropy", 0.1), Term("kl", 0.9, {"temperature": 4.0}))


@dataclass(frozen=True, kw_only=True)
class Distill(Train):
    """`Train` with teachers. `cache` False runs a teacher on every batch instead of once per view; a teacher whose
    layers a term taps always runs on every batch. `peers`: the number of students that learn together, each with its
    own initial weights and from the others; the first is kept. `learns_with`: other models of the task that learn
    together with the student, each from the outputs of the others; the student is kept. A model with a table
    `[model.NAME]` begins with the weights that this gives it, another with its initial weights."""

    losses: Annotated[tuple[Term, ...], Losses()] = KD
    cache: bool = True
    peers: Annotated[int, Ge(1), Le(8)] = 1
    learns_with: tuple[str, ...] | None = None
    reads: ClassVar = ("train",)

    def __call__(
        self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None
    ) -> Made:
        return learned(self, source, run, teacher, self.peers, self.learns_with or ())
