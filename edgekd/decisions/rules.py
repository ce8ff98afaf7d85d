"""Budgets as people write them: `[any]` and `[TARGET]` tables of `name = rule`, in a recipe's `[gate.*]` and in a file
for `--budget`.

    rule   min X | max X | drop max X vs teacher|baseline | regress max X % vs teacher|baseline
    value  a rule, a list of rules, or { is = rule or rules, accept = ["measured", ...], level = "error" | "warn" }

A rule may end with a remark in parentheses: where its limit is from, such as `max 2 MiB (flash of
cortex-m4-stm32l4r5)`. X has a unit: ms, us, s; B, kB (1000), KiB (1024), MB, MiB, ...; %; pt (percentage points, also
of a `drop` of what is in %); none for counts. `regress` is relative. A target's table adds to `[any]`, and replaces a
name that both have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Required, get_args

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from edgekd.decisions import quantities
from edgekd.errors import Problem, UsageError, closest, meant, near
from edgekd.files import read_toml
from edgekd.records import Origin

Kind = Literal["min", "max", "drop", "regress"]
Level = Literal["error", "warn"]
Line = TypedDict("Line", {"is": Required[str | list[str]], "accept": list[Origin], "level": Level}, total=False)
Tables = dict[str, dict[str, str | list[str] | Line]]
Budget = Tables | TypedDict("Gate", {"gate": Tables})

ANY = "any"
LARGEST = 10**18
GRAMMAR = "min X, max X, drop max X vs teacher|baseline, or regress max X % vs teacher|baseline"
ORIGINS: tuple[Origin, ...] = ("measured", "counted")  # what is accepted where a budget doesn't say
QUALITY = "drop max 1.0 pt vs teacher"  # where a recipe has no budget of quality

# {unit that measurements have: {unit that people write: factor}}
SCALES: Mapping[str, Mapping[str, float]] = {
    "ms": {"ms": 1, "s": 1000, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ns": 1e-6},
    "B": {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "%": {"%": 1},
    "pt": {"pt": 1},
    "": {"": 1, "k": 10**3, "M": 10**6, "G": 10**9},
}
_EXAMPLE = {"ms": "35 ms", "B": "98496 B or 96 KiB", "%": "88 %", "pt": "1.0 pt", "": "20000"}
_RULE = re.compile(
    r"(min|max|drop +max|regress +max) +([-+]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?) *([^\s0-9(]\S*)?"
    r"(?: +vs +(\S+))?(?: +\([^()]*\))?"
)


@dataclass(frozen=True)
class Rule:
    """One rule of a budget, read. `limit` in `unit`, which is the measurement's (`drop` of a %: pt; `regress`: %);
    `text` as written."""

    name: str
    kind: Kind
    limit: float
    unit: str
    versus: str | None
    text: str
    accept: tuple[Origin, ...] = ORIGINS
    level: Level = "error"
    place: str = ""


def parse(name: str, text: Any, place: str = "", units: Mapping[str, str] | None = None) -> Rule:
    """One rule on the measurement `name`; `units`: {measurement: unit} of those that are known, by default all that
    edgekd measures. Raises UsageError."""
    units = quantities.units() if units is None else units
    if not isinstance(text, str):
        raise UsageError(
            Problem(place, f"must be a rule in words, not {text!r}", f'for example {name} = "{_example(name, units)}"')
        )
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise UsageError(Problem(place, f"`{text[:80]}` is no rule", _near(name, text, units)))
    kind, number, written, versus = match[1].split()[0], Decimal(match[2].replace("_", "")), match[3] or "", match[4]
    if not abs(number) < LARGEST:
        raise UsageError(Problem(place, f"`{text[:80]}` is out of any range"))
    if kind in ("min", "max") and versus:
        raise UsageError(
            Problem(
                place, f"`{text}` compares, but `{kind}` takes no `vs`", f"drop max {match[2]} {written} vs {versus}"
            )
        )
    if kind in ("drop", "regress") and versus not in ("teacher", "baseline"):
        given = f"nothing is called `{versus}`" if versus else "it is not said what to compare with"
        raise UsageError(Problem(place, f"{given} in `{text}`", "`vs teacher` or `vs baseline`"))
    if kind in ("drop", "regress") and name in quantities.known() and quantities.known()[name].better is None:
        raise UsageError(Problem(place, f"neither way of {name} is better, so it has no `{kind}`", "min X or max X"))
    if kind in ("drop", "regress") and number < 0:
        raise UsageError(Problem(place, f"`{text}` allows less than nothing", "give 0 or more"))
    wanted = "%" if kind == "regress" else units.get(name)
    if kind == "drop" and wanted == "%":
        wanted = "pt"
    limit, unit = _convert(number, written, wanted, kind, name, place, text)
    if kind in ("min", "max") and unit == "%" and name in quantities.known() and not 0 <= limit <= 100:
        raise UsageError(Problem(place, f"{name} lies between 0 and 100 %, so `{text}` can't be met or says nothing"))
    return Rule(name, kind, limit, unit, versus, " ".join(text.split()), accepted(name), place=place)  # type: ignore[arg-type]


def accepted(name: str) -> tuple[Origin, ...]:
    """The origins that a rule on `name` accepts where the budget doesn't say."""
    return (*ORIGINS, "emulated") if quantities.has_origin(name, "emulated") else ORIGINS


def acceptable(name: str, origin: str, units: Mapping[str, str] | None = None) -> bool:
    """Whether a budget may say that it accepts this origin of `name`: a time that was emulated tells nothing."""
    units = quantities.units() if units is None else units
    return origin in get_args(Origin) and not (origin == "emulated" and units.get(name) == "ms")


def _convert(
    number: Decimal, written: str, wanted: str | None, kind: str, name: str, place: str, text: str
) -> tuple[float, str]:
    """(number, unit) in the measurement's unit; in decimals, so that 0.29 kB are 290 bytes."""
    if wanted is None:  # a metric whose unit isn't known here; it is compared with the measurement's when judged
        for unit, scale in SCALES.items():
            if written in scale and (written or unit == ""):
                return float(number * Decimal(str(scale[written]))), unit
        return float(number), written
    scale = SCALES.get(wanted, {wanted: 1})
    if written in scale:
        return float(number * Decimal(str(scale[written]))), wanted
    example = _EXAMPLE.get(wanted, f"0.1 {wanted}")
    if not written:
        raise UsageError(Problem(place, f"`{text}` has no unit", f"for example {example}"))
    if kind == "drop" and wanted == "pt":
        raise UsageError(
            Problem(
                place,
                f"`{text}` is in {written}",
                f"a drop of {name} is in percentage points: drop max 1.0 pt vs teacher",
            )
        )
    if kind == "regress":
        raise UsageError(
            Problem(place, f"`{text}` is in {written}", "`regress` is relative: regress max 3 % vs baseline")
        )
    found = closest(written.lower(), [u.lower() for u in scale], cutoff=0.5)
    spelled = [u for u in scale if found and u.lower() == found[0]]
    hint = f"did you mean {' or '.join(spelled)}?" if spelled else f"for example {example}"
    raise UsageError(
        Problem(place, f"{name} is not in {written}" if wanted else f"{name} is a count and takes no `{written}`", hint)
    )


def fitted(rule: Rule, unit: str) -> Rule | None:
    """The rule with its limit in another unit of the same kind; None where there is no way from one to the other."""
    if rule.unit == unit:
        return rule
    factor = SCALES.get(rule.unit, {}).get(unit)
    return replace(rule, limit=rule.limit / factor, unit=unit) if factor else None


def _near(name: str, text: str, units: Mapping[str, str]) -> str:
    """What was probably meant by what is no rule."""
    words = text.split()
    found = closest(words[0], get_args(Kind)) if words else []
    if found and words[0] != found[0]:
        return f"{meant([' '.join([found[0], *words[1:]])], '')} rules: {GRAMMAR}"
    if words and re.match(r"[-+0-9<>=]", words[0]):
        return f"say `max` or `min`: {_example(name, units)}"
    if words and words[0] in ("drop", "regress") and words[1:2] != ["max"]:
        return f"say `{words[0]} max`: {GRAMMAR}"
    return f"rules: {GRAMMAR}"


def _example(name: str, units: Mapping[str, str]) -> str:
    unit = units.get(name, "%")
    return f"{'max' if quantities.lower(name) else 'min'} {_EXAMPLE.get(unit, f'0.1 {unit}')}".partition(" or ")[0]


# ---------------------------------------------------------------- tables


def lines(value: Any, name: str, place: str, units: Mapping[str, str], problems: list[Problem]) -> list[Rule]:
    """The rules of one key of a table; what is wrong goes to `problems`."""
    accept, level, texts = accepted(name), "error", value
    if isinstance(value, Mapping):
        for key in value:
            if key not in ("is", "accept", "level"):
                hint = near(str(key), ("is", "accept", "level"), "keys: is, accept, level")
                problems.append(Problem(f"{place}.{key}", "unknown key", hint))
        if "is" not in value:
            problems.append(
                Problem(place, "`is` is missing", f'for example {{ is = "{_example(name, units)}", level = "warn" }}')
            )
        texts, level, accept = value.get("is", []), value.get("level", "error"), value.get("accept", accepted(name))
        if level not in get_args(Level):
            problems.append(Problem(f"{place}.level", f"must be error or warn, not {level!r}"))
        if not isinstance(accept, (list, tuple)) or not accept or not all(o in get_args(Origin) for o in accept):
            problems.append(
                Problem(f"{place}.accept", f"must be a list of {', '.join(get_args(Origin))}, not {accept!r}")
            )
            accept = accepted(name)
        elif not all(acceptable(name, o, units) for o in accept):
            problems.append(
                Problem(f"{place}.accept", "a time is never emulated", 'for example accept = ["measured", "predicted"]')
            )
    if isinstance(texts, (list, tuple)) and not texts and not (isinstance(value, Mapping) and "is" not in value):
        problems.append(Problem(place, "has no rule", f'for example {name} = "{_example(name, units)}"'))
    found = []
    for number, text in enumerate(texts if isinstance(texts, (list, tuple)) else [texts]):
        where = f"{place}[{number}]" if isinstance(texts, (list, tuple)) and len(texts) > 1 else place
        try:
            found.append(
                replace(
                    parse(name, text, where, units), accept=tuple(accept), level=level if level == "warn" else "error"
                )
            )
        except UsageError as error:
            problems += error.problems
    least, most = (
        max((r.limit for r in found if r.kind == "min"), default=None),
        min((r.limit for r in found if r.kind == "max"), default=None),
    )
    if least is not None and most is not None and least > most:
        problems.append(Problem(place, f"nothing is at least {least:g} and at most {most:g}"))
    return found


def problems(
    gate: Mapping[str, Any],
    place: str = "gate",
    targets: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Everything that is wrong with the tables {target or any: {name: value}}. `targets`: those there are (None: any
    name will do); `metrics`: {name: unit} of the task's, where they are known: then a name that is no measurement is
    told."""
    found: list[Problem] = []
    units = {**quantities.units(), **(metrics or {})}
    for target, table in gate.items():
        where = _under(place, target)
        if targets is not None and target != ANY and target not in targets:
            hint = near(target, [ANY, *targets], f"targets: {', '.join(targets)}; `any` stands for all")
            found.append(Problem(where, f"no target is named `{target}`", hint))
        if not isinstance(table, Mapping):
            found.append(Problem(where, "must be a table of measurements", f'[{target}] with top1 = "min 88 %"'))
            continue
        for name, value in table.items():
            lines(value, name, f"{where}.{name}", units, found)
            if metrics is not None and name not in units:
                text = f"nothing is measured by the name `{name}`"
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
    """The gate with a budget of quality where it has none: never the fastest, however wrong. `metric`: the task's
    first, in `unit`.

    It goes to `any` where no table has one; with `targets`, also to those that are left without where others have their
    own."""
    made = {name: dict(table) if isinstance(table, Mapping) else table for name, table in gate.items()}
    told = {name for name, table in made.items() if isinstance(table, dict) and not all(map(quantities.cost, table))}
    if ANY in told or not isinstance(made.get(ANY, {}), dict):
        return made
    rule = QUALITY if unit == "%" else "regress max 1 % vs teacher"
    # emulation answers as the target does; of its times nothing is judged
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
