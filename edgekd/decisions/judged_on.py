"""The basis of a check as text: samples or processes, split, machine, and the distance to the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekd import intervals
from edgekd.decisions import quantities
from edgekd.decisions.budget import Records, Reference, excess
from edgekd.decisions.rules import Rule
from edgekd.records import Candidate, Check


def of(
    check: Check,
    rule: Rule,
    candidate: Candidate,
    records: Records,
    reference: Reference | None,
    facts: Mapping[str, Mapping[str, Any]],
) -> str:
    """`899 samples of the test split, paired: the teacher is right alone on 12, the candidate on 7, ..., 0.6 pt left`.
    "" if it has no figure."""
    named = [
        m
        for m in candidate.measurements
        if m.name == check.name and m.target in (None, check.target) and m.split in (None, "test")
    ]
    m = next((m for m in named if m.origin == check.origin), None)
    if m is None:
        return ""
    if m.origin == "counted":
        parts = ["exact, read from the file"]
    else:
        parts = (
            [f"{m.n} samples of the {m.split} split"]
            if m.split
            else []
            if m.origin == "predicted"
            else [f"{m.n} {quantities.repeats(m.name)}"]
        )
    ours, theirs = records.get(check.name), None if reference is None else reference.records.get(check.name)
    if ours is not None and theirs is not None:
        parts += [_pairs(ours, theirs, rule.versus), "one-sided at 95 %"]
    if any(
        t.name == m.name and intervals.side_by_side(m, t) for t in (() if reference is None else reference.measurements)
    ):
        parts += [
            "paired by input" if quantities.repeats(m.name) == "inferences" else "paired by process",
            "one-sided at 95 %",
        ]
    if m.origin != "counted":
        parts += [f"{m.threads} thread{'s' if m.threads > 1 else ''}"] if m.threads else []
        parts += [f"on {facts.get(m.environment, {}).get('cpu', 'machine')} ({m.environment})"] if m.environment else []
    beyond = excess(check)
    if beyond is not None:
        far = abs(beyond)
        parts.append(
            f"{f'{far:,.0f}' if far >= 10_000 else f'{far:.4g}'} {check.unit}".rstrip()
            + (" beyond the limit" if beyond > 0 else " left")
        )
    return ", ".join([*parts, *([m.note] if m.note else [])])


def _pairs(ours: np.ndarray, theirs: np.ndarray, versus: str | None) -> str:
    if ours.shape != theirs.shape or not np.isin(np.concatenate([ours, theirs]), (0, 1)).all():
        return "paired by sample"
    return (
        f"paired: the {versus} is right alone on {int((theirs > ours).sum())}, the candidate on "
        f"{int((ours > theirs).sum())}"
    )
