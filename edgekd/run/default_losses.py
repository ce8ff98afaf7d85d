"""The losses and ensembles of stages whose recipe gives none, by the kind of the task's output: a stage's own defaults
are those of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgekd.components import Use
from edgekd.records import Task
from edgekd.run.recipe import Recipe
from edgekd.training.read_terms import terms
from edgekd.training.terms import Term

LABELS, BOTH = (Term("mse"),), (Term("mse", 0.5), Term("logit_mse", 0.5))
FITTING = {  # {kind: (from labels, with a teacher)}
    "numbers": (LABELS, BOTH),
    "embeddings": ((), (Term("cosine"),)),
}


def fitted(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with losses and ensembles that fit the task's output, where it gives none."""
    if task.output is None or task.output.scored:
        return recipe
    kind = task.output.kind
    lines = tuple(
        dataclasses.replace(line, stage=_combined(_stage(line.stage, kind, "losses" in line.said), line.teacher))
        for line in recipe.stages
    )
    models = {
        name: dataclasses.replace(model, stage=_combined(_stage(model.stage, kind), model.teacher))
        for name, model in recipe.models.items()
    }
    return dataclasses.replace(recipe, stages=lines, models=models)


def _combined(stage: Any, teachers: Sequence[str]) -> Any:
    """The stage with the mean of its teachers' outputs: a stage's own default is that of their probabilities."""
    if len(teachers) < 2 or getattr(stage, "combine", True) is not None:
        return stage
    return dataclasses.replace(stage, combine=Use("ensembles", "mean_logits"))


def _stage(stage: Any, kind: str, said: bool = False) -> Any:
    """The stage with other losses, if it trains with its own defaults; `said`: the recipe gives them."""
    if said or kind not in FITTING:
        return stage
    own = {f.name: f.default for f in dataclasses.fields(stage)}.get("losses") if stage is not None else None
    if not own or stage.losses not in (own, terms([term.table() for term in own])):
        return stage
    labels, both = FITTING[kind]
    taught = any(term.needs_teacher() for term in own)
    return dataclasses.replace(stage, losses=both if taught else labels or own)
