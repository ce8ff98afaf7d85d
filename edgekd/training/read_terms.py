"""Loss terms read from a recipe: `losses = [{ use, weight, on, teacher, schedule, ...settings of the loss }]`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.components import KINDS, Part
from edgekd.errors import Problem, UsageError
from edgekd.models import taps
from edgekd.signatures import readers, settings_of
from edgekd.training.terms import BY, KEYS, Term

LOSS = KINDS["losses"]
CURVE = "for example schedule = { weight = [[0, 0], [0.2, 1]] }"


@dataclass(frozen=True)
class Losses(Part):
    """Annotates a setting that holds loss terms: `losses: Annotated[tuple[Term, ...], Losses()]`."""

    kind: str = "losses"

    def read(self, value: Any, place: str) -> tuple[tuple[Term, ...], list[Problem]]:
        """(terms with a known loss, every problem)."""
        example = 'for example losses = [{ use = "cross_entropy" }]'
        if not isinstance(value, list | tuple):
            return (), [Problem(place, f"must be a list of tables, not {value!r}", example)]
        problems = [] if value else [Problem(place, "is empty", example)]
        found = [self.term(table, f"{place}[{i}]", problems) for i, table in enumerate(value)]
        return tuple(term for term in found if term is not None), problems

    def term(self, table: Any, where: str, problems: list[Problem]) -> Term | None:
        """One term with its loss's defaults; settings with a problem are left out."""
        table = {"use": table} if isinstance(table, str) else table
        if not isinstance(table, Mapping):
            problems.append(Problem(where, f"must be a table, not {table!r}", self.known()))
            return None
        part, found = self.find(table.get("use"), where)
        problems += found
        # a loss may have a setting of this name, a number
        output = table["output"] if isinstance(table.get("output"), str) else ""
        table = {k: v for k, v in table.items() if k != "output" or v != output}
        weight, on, teacher = _weight(table, where, problems), _on(table, where, problems), table.get("teacher")
        if teacher is not None and not isinstance(teacher, str):
            problems.append(Problem(f"{where}: teacher", f"must be one name, not {teacher!r}"))
            teacher = None
        if part is None:
            return None
        own = {k: v for k, v in table.items() if k not in KEYS}
        settings, found = settings_of(part, own, where, LOSS)
        schedule, wrong = table.get("schedule"), []
        if schedule is not None:
            wrong = _schedule(schedule, part, settings, f"{where}: schedule")
        problems += [*found, *wrong]
        schedule = dict(schedule) if schedule is not None and not wrong else {}
        by = schedule.pop("by", BY[0])
        return Term(table["use"], weight, {} if found else settings, on, teacher, schedule, by, output)

    def parts(self, value: Any) -> list[Any]:
        """The losses of the terms."""
        return [term.function() for term in value]


def terms(tables: Sequence[Any]) -> tuple[Term, ...]:
    """Tables of a recipe as terms. Raises UsageError with every problem."""
    found, problems = Losses().read(tables, "losses")
    if problems:
        raise UsageError(*problems)
    return found


def losses_of(stage: Any) -> tuple[Term, ...]:
    """The terms that a stage trains with; () if it has no losses, or does not train in this mode."""
    trains = "losses" in readers(type(stage)) and getattr(stage, "mode", None) != "ptq"
    return stage.losses if trains else ()


def _weight(table: Mapping[str, Any], where: str, problems: list[Problem]) -> float:
    weight = table.get("weight", 1.0)
    if _number(weight) and weight >= 0:
        return float(weight)
    problems.append(Problem(f"{where}: weight", f"must be a number of at least 0, not {weight!r}"))
    return 1.0


def _on(table: Mapping[str, Any], where: str, problems: list[Problem]) -> tuple[tuple[str, str], ...]:
    on = table.get("on")
    if on is None:
        return ()
    if isinstance(on, list | tuple) and on and all(isinstance(p, str) and p.strip() for p in on):
        return taps.pairs(on)
    example = 'for example on = ["layer2 -> layer3"]'
    problems.append(Problem(f"{where}: on", f"must be a list of paths, not {on!r}", example))
    return ()


def _schedule(schedule: Any, part: Any, settings: Mapping[str, Any], where: str) -> list[Problem]:
    """Problems of {"weight" or a setting: [[share, value], ...]} and of `by`, which the shares refer to."""
    if not isinstance(schedule, Mapping) or not set(schedule) - {"by"}:
        return [Problem(where, f"must be a table, not {schedule!r}", CURVE)]
    found: list[Problem] = []
    if schedule.get("by", BY[0]) not in BY:
        found.append(Problem(f"{where}.by", f"is {schedule['by']!r}", f"one of {', '.join(BY)}"))
    numbers = [k for k, v in settings.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    known = ["weight", *(k for k in numbers if not isinstance(part, type) or k in getattr(part, "changing", ()))]
    for name, curve in schedule.items():
        if name != "by":
            found += _curve(name, curve, known, part, settings, f"{where}.{name}")
    return found


def _curve(
    name: str, curve: Any, known: Sequence[str], part: Any, settings: Mapping[str, Any], where: str
) -> list[Problem]:
    if name not in known:
        return [Problem(where, "is not a setting that can change during training", f"one of {', '.join(known)}")]
    if not isinstance(curve, list | tuple) or not curve or not all(map(_point, curve)):
        return [Problem(where, f"must be a list of [share, value], not {curve!r}", CURVE)]
    shares = [p[0] for p in curve]
    if shares != sorted(shares) or not all(0 <= share <= 1 for share in shares):
        return [Problem(where, "shares must go from 0 to 1, in order", CURVE)]
    if name == "weight":
        return [Problem(where, f"{v} is below 0") for _, v in curve if v < 0]
    place = where.partition(": schedule")[0]
    values = dict.fromkeys(v for _, v in curve)
    return [p for v in values for p in settings_of(part, {**settings, name: v}, place, LOSS)[1]]


def _point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_number, value))


def _number(value: Any) -> bool:
    """A finite number that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -sys.float_info.max <= value <= sys.float_info.max
