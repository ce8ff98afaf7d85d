"""The figure that a rule of a budget is judged on: a candidate's own, or how much worse it is than the teacher's or a
baseline's.

A comparison is paired if possible: per sample from records, else from figures that were measured interleaved. Otherwise
it is the widest difference that both intervals allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgekd import intervals
from edgekd.decisions import quantities
from edgekd.decisions.rules import Rule, acceptable, accepted
from edgekd.records import NOT_COUNTED, Candidate, Measurement, Metric
from edgekd.targets import REFERENCE

Records = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """The reference of a comparison: measurements, and records {metric: [n, ...]} of the same samples in the same
    order."""

    measurements: tuple[Measurement, ...] = ()
    records: Records = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """The figure of a rule: a value with its interval, or the reason why there is none, or why it is wide."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    origin: Any = None
    reason: str = ""


def figure(
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
        return Figure(origin=ours.origin, reason=f"the count of {rule.name} is incomplete: {ours.note}")
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
        return Figure(origin=ours.origin, reason=f"{rule.name} has no records per sample, which a drop is judged on")
    return (
        _side_by_side(rule, ours, theirs, unit)
        if intervals.side_by_side(ours, theirs)
        else _unpaired(rule, ours, theirs, unit)
    )


def _measurement(
    rule: Rule, measurements: Iterable[Measurement], target: str, split: str
) -> tuple[Measurement | None, str]:
    """(the measurement of a rule, of an origin that it accepts; the reason if there is none)."""
    every = list(measurements)
    named = [m for m in every if m.name == rule.name and m.target in (None, target) and m.split in (None, split)]
    finite = [m for m in named if all(map(math.isfinite, (m.value, m.low, m.high)))]
    # origins by default: a target without a runtime has only the reference runtime's outputs
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
            f'; to accept it: {rule.name} = {{ is = "{rule.text}", accept = ["{taken}"] }}'
            if acceptable(rule.name, kinds)
            else ""
        )
        return None, f"{rule.name} is only {kinds} for {target}, but the budget accepts {', '.join(rule.accept)}{way}"
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
    """How much worse than the reference, from records of the same samples; the bounds are one-sided at 95 %."""
    metric = metric or as_mean(ours, a)
    if metric is None:
        return Figure(origin=ours.origin, reason=f"only the task's code can compute {rule.name} from its records")
    try:
        worse, low, high = intervals.paired_of(metric, b, a, 0.90)  # 5 % on each side
        if metric.better == "lower":
            worse, low, high = -worse, -high, -low
        if rule.kind == "regress":
            base = abs(intervals.figure(metric.value, np.asarray(b)))
            if base == 0:
                return Figure(
                    origin=ours.origin,
                    reason=f"{rule.name} of the {rule.versus} is 0, so a relative change is not defined",
                )
            worse, low, high = (100 * x / base for x in (worse, low, high))
    except ValueError as error:
        return Figure(origin=ours.origin, reason=str(error))
    if not all(map(math.isfinite, (worse, low, high))):
        return Figure(origin=ours.origin, reason=f"{rule.name} is not finite for some samples")
    return Figure(worse, low, high, unit, ours.origin)


def as_mean(measurement: Measurement, records: np.ndarray) -> Metric | None:
    """The metric as the mean of its records (in percent if its unit is %); None if its figure is not their mean."""
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
    """How much worse than the reference, from figures of the same inputs or interleaved processes: the median of the
    pairs, with one-sided bounds at 95 %."""
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
        f"the {rule.versus} has no counts of the same inputs to pair with: bundle it again"
        if quantities.repeats(rule.name) == "inferences"
        else ""
    )
    least, most = sorted((theirs.low, theirs.high))
    if least <= 0:
        return Figure(
            origin=ours.origin,
            reason=f"{rule.name} of the {rule.versus} is not above 0, so a relative change is not defined",
        )
    pairs = ((ours.value, theirs.value), (ours.low, most if ours.low > 0 else least), (ours.high, least))
    # in this order, 1030 over 1000 is exactly 3 %
    worse, low, high = (sign * 100 * (a - b) / b for a, b in pairs)
    return Figure(worse, *sorted((low, high)), unit, ours.origin, alone)
