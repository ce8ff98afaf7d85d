"""The losses of stages whose recipe gives none, by the kind of the task's output: a stage's own defaults are those of
classes."""

from __future__ import annotations

import dataclasses
from typing import Any

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
    """The recipe with losses that fit the task's output, where it gives none."""
    kind = task.output.kind if task.output is not None else ""
    if kind not in FITTING:
        return recipe
    lines = tuple(
        line if "losses" in line.said else dataclasses.replace(line, stage=_stage(line.stage, kind))
        for line in recipe.stages
    )
    models = {
        name: dataclasses.replace(model, stage=_stage(model.stage, kind)) for name, model in recipe.models.items()
    }
    return dataclasses.replace(recipe, stages=lines, models=models)


def _stage(stage: Any, kind: str) -> Any:
    """The stage with other losses, if it trains with its own defaults."""
    own = {f.name: f.default for f in dataclasses.fields(stage)}.get("losses") if stage is not None else None
    if not own or stage.losses not in (own, terms([term.table() for term in own])):
        return stage
    labels, both = FITTING[kind]
    taught = any(term.needs_teacher() for term in own)
    return dataclasses.replace(stage, losses=both if taught else labels or own)
