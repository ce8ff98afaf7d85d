"""Judges a candidate against the rules of a budget. What isn't known, or is of an origin that isn't accepted, is
inconclusive: never a pass.

Counted figures compare exactly. Measured ones pass where the whole 95 % interval is inside of the limit, fail where it
is whole outside, and are inconclusive else. `drop` is paired per sample and one-sided at 95 %. A predicted figure is
judged on its bad end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgekd import intervals
from edgekd.decisions import quantities
from edgekd.decisions.rules import Rule, acceptable, accepted, fitted, parse
from edgekd.decisions.tables import ANY, Budget, problems, read, rules, with_default
from edgekd.errors import FAILED, INCONCLUSIVE, PASSED
from edgekd.records import NOT_COUNTED, Candidate, Check, Measurement, Metric, Verdict
from edgekd.targets import REFERENCE

__all__ = [
    "ANY", "Budget", "Reference", "Rule", "exit_code", "excess", "judge", "limit", "overall", "parse", "problems",
    "read", "rules", "verdict_of", "with_default",
]  # fmt: skip

SLACK = 1e-9  # what rounding may add to a figure that isn't counted
Records = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """What a candidate is compared with: measurements, and records per sample {metric: [n, ...]} of the same samples in
    the same order."""

    measurements: tuple[Measurement, ...] = ()
    records: Records = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """What a rule is judged on: a value with its limits, or the reason why there is none, or why they are wide."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    origin: Any = None
    reason: str = ""


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
    """A check per rule. `records`, `teacher`: of `split`. `metrics`: {name: how a figure is made of records, and which
    way is better}.

    With `point_estimate` intervals don't count: what choosing on validation goes by."""
    references = {
        "teacher": teacher if isinstance(teacher, Reference) or teacher is None else Reference((), teacher),
        "baseline": baseline,
    }
    found = []
    for rule in rules:
        figure = _figure(
            rule, candidate, target, split, records or {}, references.get(rule.versus or ""), metrics or {}
        )
        verdict, reason = _verdict(rule, figure, point_estimate)
        unit = rule.unit if figure.value is None else figure.unit
        shown = (figure.value, figure.low, figure.high, unit, figure.origin)
        found.append(Check(target, candidate.id, rule.name, rule.text, verdict, rule.level, *shown, rule.place, reason))
    return tuple(found)


def overall(checks: Iterable[Check]) -> Verdict:
    """The worst verdict of the checks that are no mere warnings: fail, then inconclusive, then pass."""
    verdicts = {c.verdict for c in checks if c.level == "error"}
    return next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")  # type: ignore[return-value]


def exit_code(verdicts: Iterable[Verdict], inconclusive: Literal["fail", "warn"] = "fail") -> int:
    """1 where anything failed, 3 where anything is inconclusive (0 with `warn`), else 0."""
    verdicts = set(verdicts)
    if "fail" in verdicts:
        return FAILED
    return INCONCLUSIVE if "inconclusive" in verdicts and inconclusive == "fail" else PASSED


def verdict_of(check: Check) -> str:
    """The verdict that a check's own figures come to; "" where it has none."""
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
    """How far a check's value (of a predicted one: its bad end) is beyond the limit, in the check's unit; negative:
    what is left."""
    bound = limit(check)
    if bound is None or check.value is None:
        return None
    least = check.rule.startswith("min")
    value = (check.low if least else check.high) if check.origin == "predicted" else check.value
    return None if value is None else bound - value if least else value - bound


# ---------------------------------------------------------------- figures


def _figure(
    rule: Rule,
    candidate: Candidate,
    target: str,
    split: str,
    records: Records,
    reference: Reference | None,
    metrics: Mapping[str, Metric],
) -> Figure:
    ours, reason = _measurement(rule, candidate.measurements, target, split)
    if ours is None:
        return Figure(reason=reason)
    if ours.note.startswith(NOT_COUNTED):
        return Figure(origin=ours.origin, reason=f"{rule.name} is counted in part: {ours.note}")
    if rule.kind in ("min", "max"):
        return Figure(ours.value, ours.low, ours.high, ours.unit, ours.origin)
    if reference is None:
        return Figure(origin=ours.origin, reason=f"there is no {rule.versus} to compare with")
    unit = "%" if rule.kind == "regress" else "pt" if ours.unit == "%" else ours.unit
    if rule.name in records and rule.name in reference.records:
        return _paired(rule, ours, records[rule.name], reference.records[rule.name], metrics.get(rule.name), unit)
    theirs, reason = _measurement(rule, reference.measurements, target, split)
    if theirs is None:
        missing = "the candidate" if rule.name not in records else f"the {rule.versus}"
        return Figure(
            origin=ours.origin,
            reason=f"{missing} has no {rule.name} per sample" if ours.split else f"the {rule.versus}: {reason}",
        )
    if ours.split is not None and rule.kind == "drop":
        return Figure(
            origin=ours.origin, reason=f"{rule.name} is not kept per sample, and a drop is judged on the same samples"
        )
    return (
        _side_by_side(rule, ours, theirs, unit)
        if intervals.side_by_side(ours, theirs)
        else _unpaired(rule, ours, theirs, unit)
    )


def _measurement(
    rule: Rule, measurements: Iterable[Measurement], target: str, split: str
) -> tuple[Measurement | None, str]:
    """The figure that a rule is on, of an origin that it accepts; or the reason why there is none."""
    every = list(measurements)
    named = [m for m in every if m.name == rule.name and m.target in (None, target) and m.split in (None, split)]
    finite = [m for m in named if all(map(math.isfinite, (m.value, m.low, m.high)))]
    # the budget doesn't say: of a target that nothing runs, a reference's answers are what there is
    open_ = rule.accept == accepted(rule.name)
    for origin in ("counted", "measured", "emulated", "predicted"):
        of_kind = [
            m
            for m in finite
            if m.origin == origin and (origin in rule.accept or open_ and m.note.startswith(REFERENCE))
        ]
        if of_kind:
            return max(of_kind, key=lambda m: m.target is not None), ""
    if finite:
        kinds = " and ".join(sorted({m.origin for m in finite}))
        taken = '", "'.join(dict.fromkeys([*(o for o in rule.accept if o != "counted"), kinds]))
        way = (
            f'; to take it: {rule.name} = {{ is = "{rule.text}", accept = ["{taken}"] }}'
            if acceptable(rule.name, kinds)
            else ""
        )
        return None, f"{rule.name} is only {kinds} for {target}; the budget accepts {', '.join(rule.accept)}{way}"
    if named:
        return None, f"{rule.name} is not a finite number"
    uncounted = next((m.note for m in every if m.note.startswith(f"{rule.name} are {NOT_COUNTED}")), "")
    if uncounted:
        return None, uncounted
    elsewhere = sorted({m.target for m in every if m.name == rule.name and m.target})
    return None, f"{rule.name} was not measured for {target}" + (
        f", only for {', '.join(elsewhere)}" if elsewhere else ""
    )


def _paired(rule: Rule, ours: Measurement, a: np.ndarray, b: np.ndarray, metric: Metric | None, unit: str) -> Figure:
    """How much worse than the reference, from records of the same samples; limits are one-sided bounds at 95 %."""
    metric = metric or as_mean(ours, a)
    if metric is None:
        return Figure(origin=ours.origin, reason=f"how {rule.name} is made of its records is known to the task alone")
    try:
        worse, low, high = intervals.paired_of(metric, b, a, 0.90)  # 5 % on each side
        if metric.better == "lower":
            worse, low, high = -worse, -high, -low
        if rule.kind == "regress":
            base = abs(intervals.figure(metric.value, np.asarray(b)))
            if base == 0:
                return Figure(
                    origin=ours.origin, reason=f"{rule.name} of the {rule.versus} is 0: nothing is relative to it"
                )
            worse, low, high = (100 * x / base for x in (worse, low, high))
    except ValueError as error:
        return Figure(origin=ours.origin, reason=str(error))
    if not all(map(math.isfinite, (worse, low, high))):
        return Figure(origin=ours.origin, reason=f"{rule.name} is not a finite number on some sample")
    return Figure(worse, low, high, unit, ours.origin)


def as_mean(measurement: Measurement, records: np.ndarray) -> Metric | None:
    """A metric that is the mean of its records (in percent where its unit says so), if the figure and the records agree
    that it is one."""
    times = 100.0 if measurement.unit == "%" else 1.0
    if not len(records) or not math.isclose(
        times * float(np.mean(records)), measurement.value, rel_tol=1e-6, abs_tol=1e-9
    ):
        return None
    direction: Literal["higher", "lower"] = "lower" if quantities.lower(measurement.name) else "higher"
    return Metric(
        measurement.name,
        measurement.unit,
        direction,
        lambda outputs, labels: outputs,
        lambda rows: times * float(np.mean(rows)),
    )


def _side_by_side(rule: Rule, ours: Measurement, theirs: Measurement, unit: str) -> Figure:
    """How much worse than the reference, from figures of the same inputs or turns: the median of the pairs, with
    one-sided bounds at 95 %."""
    sign, pairs = 1.0 if quantities.lower(rule.name) else -1.0, zip(ours.each, theirs.each, strict=True)
    worse = [sign * (100 * (a - b) / b if rule.kind == "regress" else a - b) for a, b in pairs]
    return Figure(*intervals.median(worse, 0.90), unit, ours.origin)


def _unpaired(rule: Rule, ours: Measurement, theirs: Measurement, unit: str) -> Figure:
    """How much worse than the reference, from two figures with their intervals: the widest difference that both
    allow."""
    if ours.unit != theirs.unit:
        return Figure(
            origin=ours.origin, reason=f"the {rule.versus} has {rule.name} in {theirs.unit}, not in {ours.unit}"
        )
    machine = (ours.environment, ours.threads) == (theirs.environment, theirs.threads)
    if ours.split is None and ours.origin == "measured" and not machine:
        return Figure(
            origin=ours.origin, reason=f"the {rule.versus} was measured on another machine or with other threads"
        )
    sign = 1.0 if quantities.lower(rule.name) else -1.0
    worse, low, high = sign * (ours.value - theirs.value), ours.low - theirs.high, ours.high - theirs.low
    low, high = (low, high) if sign > 0 else (-high, -low)
    if rule.kind == "drop":
        return Figure(worse, low, high, unit, ours.origin)
    if ours.origin == "counted" and theirs.value == ours.value:
        return Figure(0.0, 0.0, 0.0, unit, ours.origin)
    alone = (
        f"the {rule.versus} keeps no counts of the same inputs to pair with: bundle it again"
        if quantities.repeats(rule.name) == "inferences"
        else ""
    )
    least, most = sorted((theirs.low, theirs.high))
    if least <= 0:
        return Figure(
            origin=ours.origin, reason=f"{rule.name} of the {rule.versus} is not above 0: nothing is relative to it"
        )
    pairs = ((ours.value, theirs.value), (ours.low, most if ours.low > 0 else least), (ours.high, least))
    # in this order: 1030 over 1000 is 3 % to the last digit
    worse, low, high = (sign * 100 * (a - b) / b for a, b in pairs)
    return Figure(worse, *sorted((low, high)), unit, ours.origin, alone)


def _verdict(rule: Rule, figure: Figure, point_estimate: bool) -> tuple[Verdict, str]:
    """(verdict, why it is inconclusive, or fails beside a value that is within the limit)."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "inconclusive", figure.reason
    fit = fitted(rule, figure.unit)
    if fit is None:
        return (
            "inconclusive",
            f"`{rule.text}` is in {rule.unit or 'no unit'}, but {rule.name} in {figure.unit or 'no unit'}",
        )
    sign = -1.0 if rule.kind == "min" else 1.0  # from here on, less is better
    limit = sign * fit.limit
    slack = 0.0 if figure.origin == "counted" else SLACK * max(1.0, abs(limit))
    best, worst = sorted((sign * figure.low, sign * figure.high))
    said = ""
    if figure.origin == "predicted":
        best, said = (
            worst,
            f"predicted: judged by the bad end of its interval, {sign * worst:.4g} {figure.unit}".rstrip(),
        )
    elif point_estimate or figure.origin == "counted":
        best = worst = sign * figure.value
    if worst <= limit + slack:
        return "pass", ""
    if best > limit + slack:
        return "fail", said
    more = figure.reason or f"more {quantities.repeats(rule.name)} would decide"
    return "inconclusive", f"the limit lies inside of the interval: {more}"
