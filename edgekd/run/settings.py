"""What a table of a recipe says of a stage, a model or a point of a sweep: settings with defaults filled in, losses
with their schedules, teachers and how several make one. Everything that is wrong is told, with its place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from edgekd import components, signatures
from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.training.terms import BY, EMA, KEYS, PEERS, terms

STAGE_KEYS = ("use", "name", "teacher")  # what a [[stage]] says beside its part's settings
FILLED_IN = ("augment_seed", "sha256", "teachers")  # settings that the plan fills in


def public_stages() -> list[str]:
    """Stages that a recipe's line may name: those that make a model from a model."""
    return [name for name in components.names("stages") if name not in ("answer", "load", "export")]


def find_part(folder: str, use: Any, where: str, problems: list[Problem]) -> Any:
    try:
        return components.find(folder, str(use), public_stages() if folder == "stages" else None)
    except UsageError as error:
        problems += [Problem(where, p.message, p.hint) for p in error.problems]
        return None


def find_stage(use: str, where: str, problems: list[Problem]) -> Any:
    """The class of a stage, once it is seen to be one: the folder's docstring says what a stage is."""
    part = find_part("stages", use, where, problems)
    if part is None:
        return None
    if not isinstance(part, type) or not dataclasses.is_dataclass(part):
        problems.append(
            Problem(where, f"`{use}` is no stage", "a stage is a frozen dataclass of its settings, which is called")
        )
        return None
    found, calls = [], {"__call__": ("stage(source, run, *, teacher=(), data=None)", (None,) * 3, {"teacher": ()})}
    if hasattr(part, "check"):
        calls["check"] = ("check(model, example, forward)", (None,) * 4, {})
    for name, (wanted, given, named) in calls.items():
        try:
            inspect.signature(getattr(part, name)).bind(*given, **named)
        except (TypeError, ValueError) as error:
            found.append(
                Problem(where, f"`{use}` can't be called as {wanted}: {error}", f"the signature is `{wanted}`")
            )
    # one that depends on the settings is looked at with them
    if not isinstance(getattr(part, "reads", None), property):
        found += _reads(part, use, where)
    problems += found
    return None if found else part


def _reads(of: Any, use: str, where: str) -> list[Problem]:
    """What is wrong with the splits that a stage (or its class, where all read the same) says that it reads."""
    why = ""
    try:
        reads = getattr(of, "reads", None)
    except THEIRS as error:  # (a stage may be the user's own code)
        reads, why = None, f": {type(error).__name__}: {error}"
    if isinstance(reads, list | tuple) and set(map(str, reads)) <= {"train", "validation", "test"}:
        return []
    return [Problem(where, f"`{use}` does not say which splits it reads{why}", 'reads: ClassVar = ("train",)')]


def stage_settings(part: type, table: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    """A part's settings with defaults; the settings of its loss terms and criterion checked against theirs."""
    filled = [Problem(f"{where}: {k}", "is filled in by edgekd", "leave it out") for k in FILLED_IN if k in table]
    settings, found = signatures.settings_of(part, table, where)
    problems += filled + found
    losses = settings.get("losses", () if settings else table.get("losses", ()))
    if isinstance(losses, list | tuple) and losses and all(isinstance(t, dict) for t in losses):
        settings["losses"] = tuple(_loss(t, f"{where}: losses[{i}]", problems) for i, t in enumerate(losses))
    elif "losses" in settings:
        problems.append(Problem(f"{where}: losses", "is empty", 'for example losses = [{ use = "cross_entropy" }]'))
    if not found and isinstance(getattr(part, "reads", None), property):
        problems += _reads(part(**settings), part.__name__, where)
    return settings


def _loss(table: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    """One loss term with its defaults filled in; what is wrong with it is left out."""
    if not isinstance(table.get("use"), str):
        problems.append(
            Problem(
                where, "`use` is missing", f"one of {', '.join(components.names('losses'))}, or `package.module:name`"
            )
        )
        return {}
    weight = table.get("weight", 1.0)
    if not _number(weight) or weight < 0:
        problems.append(Problem(f"{where}: weight", f"must be a number of at least 0, not {weight!r}"))
        weight = 1.0
    on, teacher, schedule = table.get("on"), table.get("teacher"), table.get("schedule")
    if on is not None and (
        not isinstance(on, list | tuple) or not on or not all(isinstance(p, str) and p.strip() for p in on)
    ):
        problems.append(
            Problem(f"{where}: on", f"must be a list of paths, not {on!r}", 'for example on = ["layer2 -> layer3"]')
        )
        on = None
    if teacher is not None and not isinstance(teacher, str):
        problems.append(Problem(f"{where}: teacher", f"must be one name, not {teacher!r}"))
        teacher = None
    part = find_part("losses", table["use"], where, problems)
    if part is None:
        return {"use": table["use"], "weight": weight}
    if not inspect.isroutine(part) and not isinstance(part, type | functools.partial):
        problems.append(Problem(where, f"`{table['use']}` is {type(part).__name__}, not a function"))
        return {"use": table["use"], "weight": weight}
    own = {k: v for k, v in table.items() if k not in KEYS}
    hyper, found = signatures.settings_of(part, own, where, components.KINDS["losses"])
    problems += found
    if schedule is not None:
        found = _schedule(schedule, part, hyper, f"{where}: schedule")
        problems += found
        schedule = None if found else schedule
    more = {
        key: value for key, value in (("on", on), ("teacher", teacher), ("schedule", schedule)) if value is not None
    }
    return {"use": table["use"], "weight": weight, **more, **hyper}


def _schedule(schedule: Any, part: Any, hyper: Mapping[str, Any], where: str) -> list[Problem]:
    """What is wrong with {"weight" or a setting: [[share, value], ...]}, and `by`: what the shares are of."""
    example = "for example schedule = { weight = [[0, 0], [0.2, 1]] }"
    if not isinstance(schedule, Mapping) or not set(schedule) - {"by"}:
        return [Problem(where, f"must be a table, not {schedule!r}", example)]
    found: list[Problem] = []
    if schedule.get("by", BY[0]) not in BY:
        found.append(Problem(f"{where}.by", f"is {schedule['by']!r}", f"one of {', '.join(BY)}"))
    numbers = [k for k, v in hyper.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    known = ["weight", *(k for k in numbers if not isinstance(part, type) or k in getattr(part, "changing", ()))]
    for name, curve in schedule.items():
        if name == "by":
            continue
        if name not in known:
            found.append(
                Problem(f"{where}.{name}", "is nothing that can change over the training", f"one of {', '.join(known)}")
            )
        elif not isinstance(curve, list | tuple) or not curve or not all(map(_point, curve)):
            found.append(Problem(f"{where}.{name}", f"must be a list of [share, value], not {curve!r}", example))
        elif [p[0] for p in curve] != sorted(p[0] for p in curve) or not all(0 <= p[0] <= 1 for p in curve):
            found.append(Problem(f"{where}.{name}", "shares must go from 0 to 1, in order", example))
        elif name == "weight":
            found += [Problem(f"{where}.weight", f"{v} is below 0") for _, v in curve if v < 0]
        else:
            for value in dict.fromkeys(v for _, v in curve):
                _, wrong = signatures.settings_of(part, {**hyper, name: value}, where, components.KINDS["losses"])
                found += wrong
    return found


def _point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_number, value))


def _number(value: Any) -> bool:
    """A finite number that a float can hold."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -sys.float_info.max <= value <= sys.float_info.max
    )


def teachers_of(
    table: Mapping[str, Any], part: type, settings: Mapping[str, Any], where: str, problems: list[Problem]
) -> tuple[str, ...]:
    """The teachers that a stage names (one, or a list), by default `teacher` where one of its terms needs one that
    nobody else is."""
    losses, wants, named = settings.get("losses", ()), [], []
    for number, term in enumerate(terms([t for t in losses if isinstance(t.get("use"), str)])):
        try:
            if not term.needs_teacher():
                continue
        except (UsageError, TypeError, ValueError):
            continue  # told already
        if term.teacher is None:
            wants.append(term.use)
        elif term.teacher == PEERS and settings.get("peers", 1) < 2:
            problems.append(
                Problem(
                    f"{where}: losses[{number}]: teacher",
                    "there are no peers",
                    "set `peers` of a distill stage to 2 or more",
                )
            )
        elif term.teacher not in (EMA, PEERS):
            named.append(term.teacher)
    trains = "losses" in signatures.parameters(part) and settings.get("mode") != "ptq"
    default = list(dict.fromkeys([*(["teacher"] if wants and settings.get("peers", 1) < 2 else []), *named]))
    teacher = table.get("teacher", default)
    names = [teacher] if isinstance(teacher, str) else teacher
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        problems.append(
            Problem(f"{where}: teacher", f"must be the name of a model or stage, or a list of such, not {teacher!r}")
        )
        return ()
    if len(set(names)) < len(names):
        problems.append(Problem(f"{where}: teacher", "names one twice"))
    problems += [
        Problem(f"{where}: losses: teacher", f"`{n}` is none of the stage's teachers", f"they are {', '.join(names)}")
        for n in named
        if n not in names
    ]
    for number, term in enumerate(
        terms([t for t in losses if isinstance(t.get("use"), str)]) if len(names) > 1 else ()
    ):
        if term.on and term.use in wants and term.teacher is None:
            text = f"`{term.use}` looks inside a teacher, and the stage has {len(names)}"
            problems.append(Problem(f"{where}: losses[{number}]: teacher", text, f"name one: {', '.join(names)}"))
    if (
        trains
        and not names
        and any(
            (t.get("schedule") or {}).get("by") == "agreement" for t in losses if isinstance(t.get("schedule"), Mapping)
        )
    ):
        text = "follows the agreement with a teacher, and the stage has none that is given"
        problems.append(Problem(f"{where}: losses: schedule", text, 'teacher = "teacher"'))
    if settings.get("combine") is not None and len(names) < 2:
        problems.append(Problem(f"{where}: combine", "there is only one teacher", 'teacher = ["one", "two"]'))
    return tuple(names) if trains else ()
