"""A rule of a budget as text:

    min X | max X | drop max X vs teacher|baseline | regress max X % vs teacher|baseline

It may end with a remark in parentheses on the source of its limit, such as `max 2 MiB (flash of cortex-m4-stm32l4r5)`.
X has a unit: ms, us, s; B, kB (1000), KiB (1024), MB, MiB, ...; %; pt (percentage points, also for a `drop` of a metric
in %); none for counts. `regress` is relative."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, get_args

from edgekd.decisions import quantities
from edgekd.errors import Problem, UsageError, closest, meant
from edgekd.records import Origin

Kind = Literal["min", "max", "drop", "regress"]
Level = Literal["error", "warn"]

LARGEST = 10**18
GRAMMAR = "min X, max X, drop max X vs teacher|baseline, or regress max X % vs teacher|baseline"
ORIGINS: tuple[Origin, ...] = ("measured", "counted")  # accepted by default

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
    """One parsed rule of a budget. `limit`: in `unit`, the measurement's unit (pt for a `drop` of a %; % for
    `regress`); `text`: as written."""

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
    """Parses one rule on the measurement `name`; `units`: {known measurement: unit}, by default all of edgekd's. Raises
    UsageError."""
    units = quantities.units() if units is None else units
    if not isinstance(text, str):
        hint = f'for example {name} = "{example_of(name, units)}"'
        raise UsageError(Problem(place, f"must be a rule as text, not {text!r}", hint))
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise UsageError(Problem(place, f"`{text[:80]}` is not a valid rule", _near(name, text, units)))
    kind, number, written, versus = match[1].split()[0], Decimal(match[2].replace("_", "")), match[3] or "", match[4]
    if not abs(number) < LARGEST:
        raise UsageError(Problem(place, f"the limit of `{text[:80]}` is too large"))
    if kind in ("min", "max") and versus:
        raise UsageError(
            Problem(place, f"`{kind}` takes no `vs`, in `{text}`", f"drop max {match[2]} {written} vs {versus}")
        )
    if kind in ("drop", "regress") and versus not in ("teacher", "baseline"):
        given = f"`{versus}` is not a reference" if versus else "`vs` is missing"
        raise UsageError(Problem(place, f"{given} in `{text}`", "write `vs teacher` or `vs baseline`"))
    known = quantities.of(name)
    if kind in ("drop", "regress") and known is not None and known.better is None:
        raise UsageError(
            Problem(place, f"neither direction of {name} is better, so it has no `{kind}`", "write min X or max X")
        )
    if kind in ("drop", "regress") and number < 0:
        raise UsageError(Problem(place, f"the limit of `{text}` must not be negative", "give 0 or more"))
    wanted = "%" if kind == "regress" else units.get(name)
    if kind == "drop" and wanted == "%":
        wanted = "pt"
    limit, unit = _convert(number, written, wanted, kind, name, place, text)
    if kind in ("min", "max") and unit == "%" and known is not None and not 0 <= limit <= 100:
        raise UsageError(Problem(place, f"{name} is between 0 and 100 %, so `{text}` always or never holds"))
    return Rule(name, kind, limit, unit, versus, " ".join(text.split()), accepted(name), place=place)  # type: ignore[arg-type]


def accepted(name: str) -> tuple[Origin, ...]:
    """The origins that a rule on `name` accepts by default."""
    return (*ORIGINS, "emulated") if quantities.has_origin(name, "emulated") else ORIGINS


def acceptable(name: str, origin: str, units: Mapping[str, str] | None = None) -> bool:
    """Whether a budget may accept this origin of `name`: an emulated time has no meaning."""
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
    """The rule with its limit in another unit of the same kind; None if the units can't be converted."""
    if rule.unit == unit:
        return rule
    factor = SCALES.get(rule.unit, {}).get(unit)
    return replace(rule, limit=rule.limit / factor, unit=unit) if factor else None


def _near(name: str, text: str, units: Mapping[str, str]) -> str:
    """A hint on the rule that was probably meant."""
    words = text.split()
    found = closest(words[0], get_args(Kind)) if words else []
    if found and words[0] != found[0]:
        return f"{meant([' '.join([found[0], *words[1:]])], '')} rules: {GRAMMAR}"
    if words and re.match(r"[-+0-9<>=]", words[0]):
        return f"write `max` or `min`: {example_of(name, units)}"
    if words and words[0] in ("drop", "regress") and words[1:2] != ["max"]:
        return f"write `{words[0]} max`: {GRAMMAR}"
    return f"rules: {GRAMMAR}"


def example_of(name: str, units: Mapping[str, str]) -> str:
    unit = units.get(name, "%")
    return f"{'max' if quantities.lower(name) else 'min'} {_EXAMPLE.get(unit, f'0.1 {unit}')}".partition(" or ")[0]
