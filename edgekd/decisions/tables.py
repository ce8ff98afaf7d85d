"""Budgets: `[any]` and `[TARGET]` tables of `name = value`, in a recipe's `[gate.*]` and in a file for `--budget`.

    value  a rule (rules.py), a list of rules, or { is = rule or rules, accept = ["measured", ...], level = "error" |
           "warn" }

A target's table adds to `[any]`, and overrides a name that both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Required, get_args

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from edgekd.decisions import quantities
from edgekd.decisions.rules import Level, Rule, acceptable, accepted, example_of, parse
from edgekd.errors import Problem, UsageError, gathered, near
from edgekd.files import read_toml
from edgekd.records import Origin

Line = TypedDict("Line", {"is": Required[str | list[str]], "accept": list[Origin], "level": Level}, total=False)
Tables = dict[str, dict[str, str | list[str] | Line]]
Budget = Tables | TypedDict("Gate", {"gate": Tables})

ANY = "any"
KEYS = ("is", "accept", "level")
QUALITY = "drop max 1.0 pt vs teacher"  # the default of a recipe without a budget on quality
RELATIVE = "regress max 1 % vs teacher"  # the same of a metric that is no share


def lines(value: Any, name: str, place: str, units: Mapping[str, str], problems: list[Problem]) -> list[Rule]:
    """The rules of one key of a table; its problems go to `problems`."""
    example = f"{name} = {example_of(name, units)!r}".replace("'", '"')
    texts, accept, level = value, accepted(name), "error"
    if isinstance(value, Mapping):
        texts, accept, level = _inline(value, name, place, units, problems)
    listed = list(texts) if isinstance(texts, (list, tuple)) else [texts]
    if not listed and not (isinstance(value, Mapping) and "is" not in value):
        problems.append(Problem(place, "has no rule", f"for example {example}"))
    found = []
    for number, text in enumerate(listed):
        where = f"{place}[{number}]" if len(listed) > 1 else place
        rule = gathered(partial(parse, name, text, where, units), problems)
        found += [replace(rule, accept=accept, level=level)] if rule is not None else []
    least = max((r.limit for r in found if r.kind == "min"), default=-math.inf)
    most = min((r.limit for r in found if r.kind == "max"), default=math.inf)
    if least > most:
        problems.append(Problem(place, f"no value is at least {least:g} and at most {most:g}"))
    return found


def _inline(
    table: Mapping[str, Any], name: str, place: str, units: Mapping[str, str], problems: list[Problem]
) -> tuple[Any, tuple[Origin, ...], Level]:
    """(rules as written, accepted origins, level) of `{ is = ..., accept = ..., level = ... }`."""
    for key in table:
        if key not in KEYS:
            problems.append(Problem(f"{place}.{key}", "unknown key", near(str(key), KEYS, f"keys: {', '.join(KEYS)}")))
    if "is" not in table:
        hint = f'for example {{ is = "{example_of(name, units)}", level = "warn" }}'
        problems.append(Problem(place, "`is` is missing", hint))
    level, accept = table.get("level", "error"), table.get("accept", accepted(name))
    if level not in get_args(Level):
        problems.append(Problem(f"{place}.level", f"must be error or warn, not {level!r}"))
    if not isinstance(accept, (list, tuple)) or not accept or not all(o in get_args(Origin) for o in accept):
        told = f"must be a list of {', '.join(get_args(Origin))}, not {accept!r}"
        problems.append(Problem(f"{place}.accept", told))
        accept = accepted(name)
    elif not all(acceptable(name, o, units) for o in accept):
        hint = 'for example accept = ["measured", "predicted"]'
        problems.append(Problem(f"{place}.accept", "a time can't be emulated", hint))
    return table.get("is", []), tuple(accept), "warn" if level == "warn" else "error"


def problems(
    gate: Mapping[str, Any],
    place: str = "gate",
    targets: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
) -> list[Problem]:
    """The problems of the tables {target or any: {name: value}}. `targets`: the known ones (None: any name is valid);
    `metrics`: {name: unit} of the task (None: not known, and then names of measurements are not checked)."""
    found: list[Problem] = []
    units = {**quantities.units(), **(metrics or {})}
    for target, table in gate.items():
        where = _under(place, target)
        if targets is not None and target != ANY and target not in targets:
            hint = near(target, [ANY, *targets], f"targets: {', '.join(targets)}; `any` is for all")
            found.append(Problem(where, f"no target is named `{target}`", hint))
        if not isinstance(table, Mapping):
            found.append(Problem(where, "must be a table of measurements", f'[{target}] with top1 = "min 88 %"'))
            continue
        for name, value in table.items():
            lines(value, name, f"{where}.{name}", units, found)
            if metrics is not None and name not in units:
                text = f"no measurement is named `{name}`"
                found.append(Problem(f"{where}.{name}", text, near(name, units)))
    return found


def rules(gate: Mapping[str, Mapping[str, Any]], target: str, place: str = "recipe.toml: gate") -> tuple[Rule, ...]:
    """The rules that hold for one target. Raises UsageError with every problem."""
    found: list[Rule] = []
    wrong: list[Problem] = []
    merged = {name: (ANY, value) for name, value in gate.get(ANY, {}).items()} | {
        n: (target, v) for n, v in gate.get(target, {}).items()
    }
    for name, (table, value) in merged.items():
        found += lines(value, name, f"{_under(place, table)}.{name}", quantities.units(), wrong)
    if wrong:
        raise UsageError(*wrong)
    return tuple(found)


def _under(place: str, table: str) -> str:
    return f"{place}.{table}" if place.endswith("gate") else f"{place}: {table}"


def with_default(
    gate: Mapping[str, Any], metric: str, unit: str = "%", targets: Sequence[str] | None = None
) -> dict[str, Any]:
    """The gate with a default budget on quality where it has none, so that a fast but inaccurate model is never chosen.
    `metric`: the task's first, in `unit`.

    The default goes to `any` if no table has a budget on quality; else to those of `targets` without one."""
    made = {name: dict(table) if isinstance(table, Mapping) else table for name, table in gate.items()}
    told = {name for name, table in made.items() if isinstance(table, dict) and not all(map(quantities.cost, table))}
    if ANY in told or not isinstance(made.get(ANY, {}), dict):
        return made
    rule = QUALITY if unit == "%" else RELATIVE
    # emulation gives the target's outputs, and no times
    line = {"is": rule, "accept": ["measured", "emulated"]}
    for name in (t for t in targets or () if t not in told) if told else (ANY,):
        made[name] = {metric: line, **made.get(name, {})}
    return made


def read(
    path: Path | str, targets: Iterable[str] | None = None, metrics: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """(tables, their place) of a budget file: `[any]`, `[TARGET]`, or the same inside of `[gate]`, so that a recipe
    will do. `targets`, `metrics`: see `problems`. Raises UsageError with every problem."""
    table = read_toml(path)
    table.pop("schema", None)
    names, where = None if targets is None else list(targets), f"{path}"
    if isinstance(table.get("gate"), dict):
        beside = [name for name in table if name == ANY or name in (names or ())]
        if beside:
            raise UsageError(
                Problem(where, f"has [gate.*] and also [{beside[0]}]", "put all tables inside of [gate], or none")
            )
        table, where = table["gate"], f"{path}: gate"
    elif "stage" in table:  # a recipe without a gate
        table = {}
    found = problems(table, where, names, metrics)
    if not any(isinstance(t, dict) and t for t in table.values()):
        found.append(Problem(str(path), "has no budget", '[any] with top1 = "min 88 %"'))
    if found:
        raise UsageError(*found)
    return table, where
