"""Judges a candidate against the rules of a budget. A figure that is not known, or whose origin is not accepted, is
inconclusive: it never passes.

Counted figures compare exactly. Measured ones pass where the whole 95 % interval is within the limit, fail where the
whole interval is beyond it, and are inconclusive otherwise. `drop` is paired per sample and one-sided at 95 %. A
predicted figure is judged by the bad end of its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from edgekd.decisions import quantities
from edgekd.decisions.figures import Figure, Records, Reference, figure
from edgekd.decisions.rules import Rule, fitted, parse
from edgekd.decisions.tables import ANY, Budget, problems, read, rules, with_default
from edgekd.errors import FAILED, INCONCLUSIVE, PASSED
from edgekd.records import Candidate, Check, Metric, Verdict

__all__ = [
    "ANY", "Budget", "Records", "Reference", "Rule", "exit_code", "excess", "judge", "limit", "overall", "parse",
    "problems", "read", "rules", "verdict_of", "with_default",
]  # fmt: skip

SLACK = 1e-9  # the rounding error that a figure which isn't counted may have


def judge(
    rules: Iterable[Rule],
    candidate: Candidate,
    *,
    target: str,
    split: Literal["validation", "test"] = "test",
    records: Records | None = None,
    teacher: Records | Reference | None = None,
    baseline: Reference | None = None,
    metrics: Mapping[str, Metric] | None = None,
    point_estimate: bool = False,
) -> tuple[Check, ...]:
    """One check per rule. `records`, `teacher`: of `split`. `metrics`: {name: the metric, which computes a figure from
    records and says which direction is better}.

    `point_estimate` ignores intervals: the choice on validation uses it."""
    references = {
        "teacher": teacher if isinstance(teacher, Reference) or teacher is None else Reference((), teacher),
        "baseline": baseline,
    }
    found = []
    for rule in rules:
        given = figure(rule, candidate, target, split, records or {}, references.get(rule.versus or ""), metrics or {})
        verdict, reason = _verdict(rule, given, point_estimate)
        unit = rule.unit if given.value is None else given.unit
        shown = (given.value, given.low, given.high, unit, given.origin)
        found.append(Check(target, candidate.id, rule.name, rule.text, verdict, rule.level, *shown, rule.place, reason))
    return tuple(found)


def overall(checks: Iterable[Check]) -> Verdict:
    """The worst verdict of the checks of level `error`: fail, then inconclusive, then pass."""
    verdicts = {c.verdict for c in checks if c.level == "error"}
    return next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")  # type: ignore[return-value]


def exit_code(verdicts: Iterable[Verdict], inconclusive: Literal["fail", "warn"] = "fail") -> int:
    """1 if any verdict is fail, 3 if any is inconclusive (0 with `warn`), else 0."""
    verdicts = set(verdicts)
    if "fail" in verdicts:
        return FAILED
    return INCONCLUSIVE if "inconclusive" in verdicts and inconclusive == "fail" else PASSED


def verdict_of(check: Check) -> str:
    """The verdict that follows from a check's own figures; "" if it has none."""
    if check.value is None:
        return ""
    return _verdict(
        parse(check.name, check.rule), Figure(check.value, check.low, check.high, check.unit, check.origin), False
    )[0]


def limit(check: Check) -> float | None:
    """The limit of a check's rule, in the check's unit."""
    rule = fitted(parse(check.name, check.rule), check.unit)
    return None if rule is None else rule.limit


def excess(check: Check) -> float | None:
    """How far a check's value (for a predicted one, the bad end of its interval) is beyond the limit, in the check's
    unit; negative: the margin that is left."""
    bound = limit(check)
    if bound is None or check.value is None:
        return None
    least = check.rule.startswith("min")
    value = (check.low if least else check.high) if check.origin == "predicted" else check.value
    return None if value is None else bound - value if least else value - bound


def _verdict(rule: Rule, given: Figure, point_estimate: bool) -> tuple[Verdict, str]:
    """(verdict, the reason why it is inconclusive, or why it fails with a value within the limit)."""
    if given.value is None or given.low is None or given.high is None:
        return "inconclusive", given.reason
    fit = fitted(rule, given.unit)
    if fit is None:
        return (
            "inconclusive",
            f"`{rule.text}` is in {rule.unit or 'no unit'}, but {rule.name} is in {given.unit or 'no unit'}",
        )
    sign = -1.0 if rule.kind == "min" else 1.0  # from here on, less is better
    limit = sign * fit.limit
    slack = 0.0 if given.origin == "counted" else SLACK * max(1.0, abs(limit))
    best, worst = sorted((sign * given.low, sign * given.high))
    said = ""
    if given.origin == "predicted":
        best, said = (
            worst,
            f"predicted: judged by the bad end of its interval, {sign * worst:.4g} {given.unit}".rstrip(),
        )
    elif point_estimate or given.origin == "counted":
        best = worst = sign * given.value
    if worst <= limit + slack:
        return "pass", ""
    if best > limit + slack:
        return "fail", said
    more = given.reason or f"more {quantities.repeats(rule.name)} would decide"
    return "inconclusive", f"the limit is inside the interval: {more}"
