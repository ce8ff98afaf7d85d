"""The losses and ensembles of stages whose recipe gives none, by the kind of the task's output, of several outputs each
its own: a stage's own defaults are those of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekd.components import Use
from edgekd.outputs import Output, soft
from edgekd.records import Task
from edgekd.run.recipe import Recipe
from edgekd.training.read_terms import terms
from edgekd.training.terms import Term

LABELS, BOTH = (Term("mse"),), (Term("mse", 0.5), Term("logit_mse", 0.5))
# a temperature above 1 is for what the probabilities of other classes tell of a whole sample; where the answer at a
# position matters it moves the border between classes: benchmarks/kinds
EACH = (Term("cross_entropy", 0.5), Term("kl", 0.5, {"temperature": 1.0}))
FITTING = {  # {kind: (from labels, with a teacher)}
    "positions": ((Term("cross_entropy"),), EACH),
    "yes_no": ((Term("cross_entropy"),), EACH),
    "numbers": (LABELS, BOTH),
    "embeddings": ((), (Term("cosine"),)),
    "strings": ((Term("ctc"),), (Term("ctc", 0.5), Term("kl", 0.5, {"temperature": 1.0}))),
}


def fitted(recipe: Recipe, task: Task, labels: Callable[[], Any] = lambda: None) -> Recipe:
    """The recipe with losses and ensembles that fit the task's outputs, where it gives none. `labels()`: [n, ...], or
    {output: [n, ...]}, asked for where they decide."""
    declared = task.heads or ({} if task.output is None else {"": task.output})
    if any(output.kind == "classes" for output in declared.values()):
        given = labels()
        of = lambda name: given.get(name) if isinstance(given, Mapping) else given
        several = lambda name, output: getattr(of(name), "ndim", 1) > 1 and not soft(output, of(name))
        kinds = {name: _kind(output, several(name, output)) for name, output in declared.items()}
    else:
        kinds = {name: _kind(output) for name, output in declared.items()}
    if set(kinds.values()) <= {"classes"} and not task.heads:
        return recipe
    scored = task.heads or task.output is None or task.output.scored  # each output has its own mean
    combined = (lambda stage, teachers: stage) if scored else _combined
    lines = tuple(
        dataclasses.replace(line, stage=combined(_stage(line.stage, kinds, "losses" in line.said), line.teacher))
        for line in recipe.stages
    )
    models = {
        name: dataclasses.replace(model, stage=combined(_stage(model.stage, kinds), model.teacher))
        for name, model in recipe.models.items()
    }
    return dataclasses.replace(recipe, stages=lines, models=models)


def _kind(output: Output, several: bool = False) -> str:
    """`several`: whether a sample has labels at several positions."""
    if output.kind == "classes":
        return "strings" if output.blank is not None else "positions" if several else "classes"
    return output.kind


def _combined(stage: Any, teachers: Sequence[str]) -> Any:
    """The stage with the mean of its teachers' outputs: a stage's own default is that of their probabilities."""
    if len(teachers) < 2 or getattr(stage, "combine", True) is not None:
        return stage
    return dataclasses.replace(stage, combine=Use("ensembles", "mean_logits"))


def _stage(stage: Any, kinds: Mapping[str, str], said: bool = False) -> Any:
    """The stage with other losses, if it trains with its own defaults; `said`: the recipe gives them."""
    if said or (tuple(kinds) == ("",) and kinds[""] not in FITTING):
        return stage
    own = {f.name: f.default for f in dataclasses.fields(stage)}.get("losses") if stage is not None else None
    if not own or stage.losses not in (own, terms([term.table() for term in own])):
        return stage
    taught = any(term.needs_teacher() for term in own)
    given = stage.losses
    losses = [dataclasses.replace(term, output=name) for name in kinds for term in _terms(kinds[name], taught, given)]
    return dataclasses.replace(stage, losses=tuple(losses) or given)


def on_labels(task: Task) -> tuple[Term, ...]:
    """Terms that train each of several outputs on its labels."""
    own = (Term("cross_entropy"),)
    return tuple(dataclasses.replace(t, output=n) for n, o in task.heads.items() for t in _terms(_kind(o), False, own))


def _terms(kind: str, taught: bool, own: Sequence[Term]) -> Sequence[Term]:
    """The terms of an output of a kind: those of the stage where it has scores of classes, none where it is raw."""
    labels, both = FITTING.get(kind, ((), ()) if kind == "raw" else (own, own))
    return both if taught else labels
