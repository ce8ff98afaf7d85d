"""What can't work of a recipe's losses: each is called once on a few samples, with fresh models for student and
teachers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.components import Use
from edgekd.errors import Problem
from edgekd.models import saved
from edgekd.run.interpret import FORMS, Asked
from edgekd.training import supervision
from edgekd.training.loss_checks import rehearse
from edgekd.training.read_terms import losses_of
from edgekd.training.terms import EMA, PEERS, Term

CONTROL = "the control (the student alone, by labels)"  # in problems with its losses
LABELS = "give the first stage a loss on labels, which the control learns by too, or set control = false"


@dataclass(frozen=True)
class Lesson:
    """What one of the task's models learns by, and from which teachers."""

    where: str
    use: str
    model: str
    losses: tuple[Term, ...]
    teachers: tuple[str, ...] = ()
    combine: Use | None = None


def problems(asked: Asked, heard: dict[str, list[str]]) -> list[Problem]:
    """What is wrong with the losses; what they look at goes to `heard`, by stage."""
    found: list[Problem] = []
    tried = set()  # what a sweep over other settings would try again
    for lesson in _lessons(asked):
        if repr(lesson) not in tried:
            tried.add(repr(lesson))
            found += _wrong(lesson, asked, heard, found)
    return found


def _lessons(asked: Asked) -> Iterator[Lesson]:
    first, last = asked.recipe.stages[0], asked.recipe.stages[-1]
    for line in itertools.chain.from_iterable(map(asked.swept, asked.recipe.stages)):
        where, stage = f"stage {line.number} ({line.name})", line.stage
        if getattr(stage, "mode", None) != "ptq":
            combine = getattr(stage, "combine", None)
            yield Lesson(where, line.use, asked.student, losses_of(stage), line.teacher, combine)
    for name, model in asked.recipe.models.items():
        if model.stage is not None:
            where, stage = f"model.{name}.{model.way}", model.stage
            yield Lesson(where, model.way, model.of, stage.losses, model.teacher, stage.combine)
    if asked.controlled and not asked.on_labels(first):  # else they are the stage's own
        yield Lesson(CONTROL, "train", asked.student, asked.control(first))
    if asked.controlled and last.use in FORMS and asked.trains(last):
        yield Lesson(CONTROL, last.use, asked.student, asked.control(last))


def _wrong(lesson: Lesson, asked: Asked, heard: dict[str, list[str]], before: Sequence[Problem]) -> list[Problem]:
    place, told = f"{asked.recipe.place}: {lesson.where}", []
    tapped = [i for i, term in enumerate(lesson.losses) if lesson.use == "quantize" and term.on]
    text = "a quantized model is one graph, its modules have no paths"
    found = [Problem(f"{place}: losses[{i}]: on", text, "tap layers in a stage before") for i in tapped]
    guides, shows = _guides(lesson, asked)
    rest, data = [i for i in range(len(lesson.losses)) if i not in tapped], asked.resolved.data("train")
    losses, student = [lesson.losses[i] for i in rest], saved.create(asked.task, lesson.model, 0)
    for number, message, hint in rehearse(losses, student, guides, asked.task, data, shows, told):
        if lesson.where == CONTROL and any((p.message, p.hint) == (message, hint) for p in before):
            continue  # the stage's own, told already
        hint = LABELS if lesson.where == CONTROL else hint
        found.append(Problem(f"{place}: losses[{rest[number]}]", message, hint))
    if lesson.where != CONTROL:
        heard.setdefault(lesson.where, told)
    if lesson.combine is not None:
        wrong = supervision.rehearse(lesson.combine, lesson.teachers, _outputs(asked, lesson.model), data)
        found += [Problem(f"{place}: combine", *said) for said in wrong]
    return found


def _guides(lesson: Lesson, asked: Asked) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """({teacher: a fresh model}, {teacher: what it shows}), "" for terms that name none."""
    fresh = lambda name: saved.create(asked.task, name, 0)
    guides = {name: fresh(asked.model_of(name)) for name in lesson.teachers}
    guides |= {PEERS: fresh(lesson.model), EMA: fresh(lesson.model)}
    guides[""] = guides[lesson.teachers[0] if lesson.teachers else PEERS]
    models = asked.recipe.models
    shows: dict[str, str] = {name: models[name].shows if name in models else "logits" for name in lesson.teachers}
    shows[""] = next((s for s in shows.values() if s != "logits"), "logits")
    return guides, shows


def _outputs(asked: Asked, model: str) -> list[int]:
    """The shape of what a fresh `model` answers to one sample."""
    import torch

    with torch.no_grad():
        return list(asked.task.call(saved.create(asked.task, model, 0).eval(), asked.example()).shape[1:])
