"""Checks `learns_with`: the models that learn together with a stage's student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekd.errors import Problem
from edgekd.training.terms import Term, terms_for

EXAMPLE = '{ use = "kl", weight = 1.0, temperature = 1.0 }'


def problems(settings: Mapping[str, Any], teachers: Sequence[str], where: str) -> list[Problem]:
    """The problems of a stage's `learns_with` with its other settings and its fixed `teachers`."""
    student, partners, place = settings.get("model", "student"), settings["learns_with"], f"{where}: learns_with"
    found = [Problem(place, "names a model twice")] if len(set(partners)) < len(partners) else []
    if student in partners:
        text = f"`{student}` is the stage's own model"
        found.append(Problem(place, text, "students of one model that learn together are `peers = 2`"))
    if settings.get("peers", 1) > 1:
        text = "`peers` are more students of the same model, `learns_with` names other models"
        found.append(Problem(place, text, "give one of the two"))
    for name in partners:
        if name in teachers:
            text = f"`{name}` learns with the student: its outputs change, so no answers of it can be kept in a cache"
            found.append(Problem(f"{where}: teacher", text, "name it in one of `teacher` and `learns_with`"))
    return [*found, *_terms(settings["losses"], (student, *partners), teachers, where)]


def uncached(table: Mapping[str, Any], stage: Any, teachers: Sequence[str], where: str) -> list[Problem]:
    """The problem of a `table` that asks for a cache where no teacher is fixed."""
    if not getattr(stage, "learns_with", None) or teachers or not table.get("cache"):
        return []
    text = "the stage has no fixed teacher whose answers could be kept: the models of `learns_with` keep changing"
    return [Problem(f"{where}: cache", text, "leave it out")]


def _terms(losses: Sequence[Term], names: Sequence[str], teachers: Sequence[str], where: str) -> Iterator[Problem]:
    """Problems of terms that don't fit the models `names` that learn together."""
    for number, term in enumerate(losses):
        place = f"{where}: losses[{number}]"
        if term.by == "agreement":
            text = "follows the agreement with a teacher, and the models of `learns_with` keep changing"
            yield Problem(f"{place}: schedule", text, 'by = "training"')
        if term.on and term.teacher == names[0]:
            text = f"`{term.use}` taps layers of `{names[0]}` for another model: only the student learns from layers"
            yield Problem(place, text, f"name one of {', '.join(names[1:])}")
        if term.on and term.teacher is None and not teachers and len(names) > 2 and term.needs_teacher():
            text = f"`{term.use}` taps layers of a teacher, and the stage learns with {len(names) - 1} models"
            yield Problem(f"{place}: teacher", text, f"name one: {', '.join(names[1:])}")
    asked = [term for term in losses if term.needs_teacher()]
    if not any(term.teacher in names or (term.teacher is None and not teachers) for term in asked):
        yield Problem(f"{where}: losses", "no loss learns from a model of `learns_with`", f"add {EXAMPLE}")
    for number, name in enumerate(names):
        if losses and not terms_for(losses, names, number):
            yield Problem(f"{where}: losses", f"`{name}` has no loss to learn by", 'add { use = "cross_entropy" }')
