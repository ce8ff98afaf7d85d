"""The teachers of a stage: those that the recipe names, else those that its loss terms need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.errors import Problem
from edgekd.run.recipe import learns_with
from edgekd.signatures import parameters
from edgekd.training.terms import EMA, PEERS, Term


def teachers_of(
    part: type, settings: Mapping[str, Any], told: Any, where: str, problems: list[Problem]
) -> tuple[str, ...]:
    """The teachers of a stage: `told` (one, or a list), by default those that its terms name, and `teacher` where a
    term needs a teacher but names none."""
    losses, peers = settings.get("losses", ()), settings.get("peers", 1)
    partners = settings.get("learns_with") or ()
    needing = [(number, term) for number, term in enumerate(losses) if _needs(term)]
    for number, term in needing:
        if term.teacher == PEERS and peers < 2:
            hint = "set `peers` of a distill stage to 2 or more"
            problems.append(Problem(f"{where}: losses[{number}]: teacher", "the stage trains no peers", hint))
    together = (settings.get("model", "student"), *partners) if partners else ()
    wanted = [term.teacher for _, term in needing if term.teacher not in (None, EMA, PEERS, *together)]
    single = any(term.teacher is None for _, term in needing) and peers < 2 and not partners
    given = told if told is not None else list(dict.fromkeys([*(["teacher"] if single else []), *wanted]))
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        text = f"must be the name of a model or stage, or a list of such, not {given!r}"
        problems.append(Problem(f"{where}: teacher", text))
        return ()
    trains = "losses" in parameters(part) and settings.get("mode") != "ptq"
    problems += _wrong(needing, wanted, names, where)
    problems += learns_with.problems(settings, names, where) if partners else []
    if trains and not names and any(term.by == "agreement" for term in losses):
        text = "follows the agreement with a teacher, and the stage names no teacher"
        problems.append(Problem(f"{where}: losses: schedule", text, 'teacher = "teacher"'))
    if settings.get("combine") is not None and len(names) < 2 and partners:
        text = "is for fixed teachers; models that learn together learn from each of the others"
        problems.append(Problem(f"{where}: combine", text, "leave it out"))
    elif settings.get("combine") is not None and len(names) < 2:
        problems.append(Problem(f"{where}: combine", "there is only one teacher", 'teacher = ["one", "two"]'))
    return tuple(names) if trains else ()


def _wrong(
    needing: Sequence[tuple[int, Term]], wanted: Sequence[str], names: Sequence[str], where: str
) -> list[Problem]:
    """Problems of terms that don't fit these teachers."""
    found = [Problem(f"{where}: teacher", "names a teacher twice")] if len(set(names)) < len(names) else []
    found += [
        Problem(
            f"{where}: losses: teacher", f"`{n}` is not a teacher of the stage", f"its teachers: {', '.join(names)}"
        )
        for n in wanted
        if n not in names
    ]
    for number, term in needing if len(names) > 1 else ():
        if term.on and term.teacher is None:
            text = f"`{term.use}` taps layers of a teacher, and the stage has {len(names)} teachers"
            found.append(Problem(f"{where}: losses[{number}]: teacher", text, f"name one: {', '.join(names)}"))
    return found


def _needs(term: Term) -> bool:
    """Whether a term needs a teacher; a loss whose signature can't be read is reported elsewhere."""
    try:
        return term.needs_teacher()
    except (TypeError, ValueError):
        return False
