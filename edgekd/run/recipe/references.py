"""Checks references between the tables of a recipe: teachers exist, the stages are in a valid order, `[mixed]` names
stages that it can extend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgekd.errors import Problem, near
from edgekd.run.recipe.models import Model
from edgekd.run.recipe.stages import Line, before, partners

STUDENT = "student"
NO_STUDENT = (
    'begin with a `distill` or `train` stage, or load the student: [model.student] weights = "student.safetensors"'
)


def problems(
    lines: Sequence[Line],
    models: Mapping[str, Model],
    mixed: Mapping[str, Sequence[float]],
    told: Sequence[str],
    place: str,
) -> list[Problem]:
    """Teachers must be models or earlier stages; the first stage makes a student; `quantize` is the last stage. `told`:
    the names of all stages, also of invalid ones."""
    found = [*_mixed(mixed, lines, told, place), *_sources(lines, told, place)]
    for line in lines:
        known = ["teacher", *models, *(s.name for s in before(line, lines))]
        found += _strangers(line.teacher, known, f"{place}: stage {line.number} ({line.name}): teacher")
        found += _boxes(line.stage, models, f"{place}: stage {line.number} ({line.name})")
    for name, model in models.items():
        found += _strangers(model.teacher, list(models), f"{place}: model.{name}: teacher")
        found += _boxes(model.stage, models, f"{place}: model.{name}.{model.way}")
        if _learns_from_itself(name, models):
            text, hint = "learns from itself through its teachers", "name teachers that are made before it"
            found.append(Problem(f"{place}: model.{name}: teacher", text, hint))
    for first in (s for s in lines if (s.number == 1 or s.source == STUDENT) and STUDENT not in models):
        if first.use not in ("distill", "train"):
            text = f"`{first.use}` needs a trained student"
            found.append(Problem(f"{place}: stage {first.number} ({first.name})", text, NO_STUDENT))
    return found + [
        Problem(f"{place}: stage {s.number} ({s.name})", "`quantize` must be the last stage", "move it to the end")
        for s in lines
        if s.use == "quantize" and s.number < len(told) and _followed(s, lines)
    ]


def _sources(lines: Sequence[Line], told: Sequence[str], place: str) -> Iterator[Problem]:
    """Problems of stages that go on from one that is not there, or from an int8 model."""
    for line in lines:
        where = f"{place}: stage {line.number} ({line.name}): source"
        earlier = told[: line.number - 1]
        if line.source is not None and line.source not in (STUDENT, *earlier):
            known = f"known here: {', '.join([STUDENT, *earlier])}"
            yield Problem(where, f"no earlier stage is named `{line.source}`", near(line.source, earlier, known))
        if any(s.name == line.source and s.use == "quantize" for s in lines):
            yield Problem(where, f"`{line.source}` quantizes, and nothing can follow that", "name what it goes on from")


def _followed(line: Line, lines: Sequence[Line]) -> bool:
    """Whether the next stage goes on from this one, as far as that is known."""
    after = [s for s in lines if s.number == line.number + 1]
    return not after or after[0].source is None


def _strangers(teachers: Iterable[str], known: Sequence[str], where: str) -> list[Problem]:
    told = f"known here: {', '.join(dict.fromkeys(known))}"
    return [Problem(where, f"nothing is named `{t}`", near(t, known, told)) for t in teachers if t not in known]


def _boxes(stage: Any, models: Mapping[str, Model], where: str) -> list[Problem]:
    """Problems of models that learn together with a stage's student, and show less than their outputs."""
    shows = {name: models[name].shows for name in partners(stage) if name in models}
    text = "the model {} shows its {} only, and one that learns with the student shows its outputs"
    wrong = [(name, shown) for name, shown in shows.items() if shown != "logits"]
    return [Problem(f"{where}: learns_with", text.format(*both), 'shows = "logits"') for both in wrong]


def _learns_from_itself(name: str, models: Mapping[str, Model]) -> bool:
    """Whether a model is among the teachers of its teachers, or the models that these learn with."""
    seen, ahead = set(), [name]
    while ahead:
        found = models.get(ahead.pop())
        for other in (*found.teacher, *partners(found.stage)) if found is not None else ():
            if other == name:
                return True
            ahead += [] if other in seen else [other]
            seen.add(other)
    return False


def _mixed(
    shares: Mapping[str, Sequence[float]], lines: Sequence[Line], told: Sequence[str], place: str
) -> list[Problem]:
    """Problems of `[mixed]`: stages that don't quantize, or that give their float layers themselves."""
    by_name, found = {line.name: line for line in lines}, []
    for name, given in shares.items():
        line, where = by_name.get(name), f"{place}: mixed.{name}"
        if line is None and name not in told:
            hint = near(name, by_name, "name a stage that quantizes")
            found.append(Problem(where, f"no stage is named `{name}`", hint))
        elif line is not None and line.use != "quantize":
            found.append(Problem(where, f"`{line.use}` does not quantize to int8", "name a stage that quantizes"))
        elif line is not None and getattr(line.stage, "float_layers", None):
            found.append(Problem(where, "the stage has float_layers of its own", "leave out one of the two"))
        if not given:
            found.append(Problem(where, "is empty", "give shares of the time that int8 saves, for example [0.1, 0.3]"))
    return found
