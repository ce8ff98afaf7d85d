"""Checks of a recipe's losses: each is called once on a few samples, with untrained models as student and teachers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.components import Use
from edgekd.errors import Problem
from edgekd.models import saved
from edgekd.run.recipe.stages import partners
from edgekd.run.variants import FORMS, RecipeView
from edgekd.training import supervision
from edgekd.training.loss_checks import check_terms
from edgekd.training.read_terms import losses_of
from edgekd.training.terms import EMA, PEERS, Term, terms_for

CONTROL = "the control (the student alone, by labels)"  # the place in problems with its losses
LABELS = "give the first stage a loss on labels, which trains the control too, or set control = false"


@dataclass(frozen=True)
class Objective:
    """The losses that one of the task's models is trained with, and its teachers. `together`: (name, model) of all that
    learn together, the student first; `number`: of the one that is meant."""

    where: str
    use: str
    model: str
    losses: tuple[Term, ...]
    teachers: tuple[str, ...] = ()
    combine: Use | None = None
    together: tuple[tuple[str, str], ...] = ()
    number: int = 0


def problems(view: RecipeView, notes: dict[str, list[str]]) -> list[Problem]:
    """The problems of the losses. `notes` {stage: lines on what its losses learn from} is filled in."""
    found: list[Problem] = []
    tried = set()  # a sweep over other settings repeats an objective
    for objective in _objectives(view):
        if repr(objective) not in tried:
            tried.add(repr(objective))
            found += _wrong(objective, view, notes, found)
    return found


def _objectives(view: RecipeView) -> Iterator[Objective]:
    first, last = view.recipe.stages[0], view.recipe.stages[-1]
    for line in itertools.chain.from_iterable(map(view.swept, view.recipe.stages)):
        where, stage = f"stage {line.number} ({line.name})", line.stage
        if getattr(stage, "mode", None) != "ptq":
            combine = getattr(stage, "combine", None)
            found = Objective(where, line.use, view.student, losses_of(stage), line.teacher, combine)
            yield from _each(found, stage, view)
    for name, model in view.recipe.models.items():
        if model.stage is not None:
            where, stage = f"model.{name}.{model.way}", model.stage
            found = Objective(where, model.way, model.of, stage.losses, model.teacher, stage.combine)
            yield from _each(found, stage, view)
    if view.controlled and (view.task.heads or not view.on_labels(first)):  # else they are the stage's own
        yield Objective(CONTROL, "train", view.student, view.control(first))
    if view.controlled and last.use in FORMS and view.trains(last):
        yield Objective(CONTROL, last.use, view.student, view.control(last))


def _each(objective: Objective, stage: Any, view: RecipeView) -> Iterator[Objective]:
    """The objective of a stage, or of every model that learns together with its student."""
    others = [(name, view.partner(name)) for name in partners(stage)]
    if not others:
        yield objective
        return
    together = ((stage.model, objective.model), *others)
    yield dataclasses.replace(objective, together=together)
    for number, (name, model) in enumerate(others, 1):
        where = f"{objective.where}: {name}"
        yield dataclasses.replace(objective, where=where, model=model, together=together, number=number)


def _wrong(
    objective: Objective, view: RecipeView, notes: dict[str, list[str]], before: Sequence[Problem]
) -> list[Problem]:
    place, told = f"{view.recipe.place}: {objective.where}", []
    tapped = [i for i, term in enumerate(objective.losses) if objective.use == "quantize" and term.on]
    text = "a quantized model is a single graph: its modules have no paths"
    found = [Problem(f"{place}: losses[{i}]: on", text, "tap layers in an earlier stage") for i in tapped]
    teachers, shows = _fresh_teachers(objective, view)
    found += _without_answers(objective, view, shows, place)
    own = terms_for(objective.losses, [name for name, _ in objective.together], objective.number)
    rest = [i for i, term in enumerate(objective.losses) if i not in tapped and term in own]
    data = view.resolved.data("train")
    losses, student = [objective.losses[i] for i in rest], saved.create(view.task, objective.model, 0)
    for number, message, hint in check_terms(losses, student, teachers, view.task, data, shows, told):
        if objective.where == CONTROL and any((p.message, p.hint) == (message, hint) for p in before):
            continue  # reported for the stage already
        hint = LABELS if objective.where == CONTROL else hint
        found.append(Problem(f"{place}: losses[{rest[number]}]", message, hint))
    if objective.where != CONTROL:
        notes.setdefault(objective.where, told)
    whole = len(objective.teachers) > 1 and any(t.needs_teacher() and t.teacher is None for t in objective.losses)
    if objective.combine is not None or whole:
        shown = {name: shows[name] for name in objective.teachers}
        given = _answer(view, objective.model), data, view.task.declared
        wrong = supervision.check_ensemble(objective.combine, shown, *given)
        found += [Problem(f"{place}: combine", *said) for said in wrong]
    return found


def _without_answers(objective: Objective, view: RecipeView, shows: Mapping[str, str], place: str) -> Iterator[Problem]:
    """Problems of what needs predicted classes, where the output has none."""
    task = view.task
    for of, output in (task.heads or {"": task.output}).items():
        if output is None or output.scored:
            continue
        which = f"the output {of}" if of else "the output"
        for name, shown in shows.items():
            if name and shown != "logits":
                text = f"the teacher {name} shows its {shown} only, and {which} is declared as {output.kind}"
                yield Problem(f"{place}: teacher", text, 'shows = "logits"')
        if any(term.by == "agreement" and term.output in ("", of) for term in objective.losses):
            text = f"no share of equal answers can be followed: {which} is declared as {output.kind}"
            yield Problem(f"{place}: losses: schedule", text, 'by = "training"')
    if task.heads and any(term.by == "agreement" and not term.output for term in objective.losses):
        text = "a schedule that follows the agreement on an output says which: the task has several"
        yield Problem(f"{place}: losses: schedule", text, f"output = one of {', '.join(task.heads)}")


def _fresh_teachers(objective: Objective, view: RecipeView) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """({teacher: an untrained model}, {teacher: what it shows}); "" is the teacher of terms that name none."""
    fresh = lambda name: saved.create(view.task, name, 0)
    teachers = {name: fresh(view.model_of(name)) for name in objective.teachers}
    teachers |= {PEERS: fresh(objective.model), EMA: fresh(objective.model)}
    others = {name: fresh(model) for i, (name, model) in enumerate(objective.together) if i != objective.number}
    teachers |= others
    teachers[""] = teachers[next(iter((*objective.teachers, *others, PEERS)))]
    models = view.recipe.models
    shows: dict[str, str] = {name: models[name].shows if name in models else "logits" for name in objective.teachers}
    shows[""] = next((s for s in shows.values() if s != "logits"), "logits")
    return teachers, shows


def _answer(view: RecipeView, model: str) -> Any:
    """What an untrained `model` gives: a tensor, or {output: tensor}."""
    import torch

    with torch.no_grad():
        return view.task.call(saved.create(view.task, model, 0).eval(), view.example())
