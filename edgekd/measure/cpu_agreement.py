"""What a file answers as other CPUs, held against what it answers on this machine: metrics, equal answers, spread."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekd import intervals, probes
from edgekd.measure.emulation import Answers
from edgekd.outputs import Output
from edgekd.probes import other_cpus, quality
from edgekd.records import Measurement, Metric


def figures(
    found: Sequence[Answers],
    labels: np.ndarray | None,
    metrics: Sequence[Metric],
    teacher: np.ndarray | None = None,
    boards: Sequence[Answers] = (),
    output: Output | None = None,
) -> dict[str, tuple[Measurement, ...]]:
    """{target: measurements}, all `emulated`: the metrics, with a `teacher`'s outputs also fidelity; host_agreement,
    the share of answers that are this machine's (equal_outputs, the share of numbers, where the answers are no
    classes); and target_spread, the greatest difference in the first metric between this machine and all targets, those
    that answered on their `boards` among them, on the samples that all of them saw (under "" as well).

    Agreement and spread are exact for their samples; the spread's note has the 95 % interval, simultaneous over the
    pairs, of the difference on all data."""
    spread, made = _spread([*found, *boards] if found else (), labels, metrics), {}
    for a in found:
        same = float((a.here == a.there).mean())
        cpu = f"{a.cpu} ({a.kernels})" if a.kernels else a.cpu
        note = (
            f"as {cpu}: {'all outputs equal' if same == 1 else f'{100 * same:.2f} % of the outputs equal'} to this "
            "machine's"
        )
        note += "" if same == 1 else f", the others within {_apart(a):.2g}"
        truth, names = None if labels is None else labels[a.rows], {metric.name for metric in metrics}
        there = probes.Subject(outputs=a.there, labels=truth, metrics=metrics, split="test", output=output)
        told = probes.measure(replace(there, teacher=None if teacher is None else teacher[a.rows]))
        same_answers = quality.agreement(replace(there, teacher=a.here))
        taken = [m for m in told if teacher is not None or m.name in names]
        share = 100 * same if same_answers is None else same_answers.value
        # answers that nobody said to be classes: how many of the numbers are the same
        own = other_cpus.EQUAL if same_answers is None else other_cpus.HOST_AGREEMENT
        taken.append(probes.figure(own, share, n=len(a.there), split="test"))
        made[a.target] = (*(replace(m, target=a.target, origin="emulated", note=note) for m in taken), *spread)
    return {"": spread, **made} if made else {}


def _apart(a: Answers) -> float:
    """The greatest difference between an output here and there."""
    return float(np.abs(np.asarray(a.there, np.float64) - a.here).max())


def _spread(found: Sequence[Answers], labels: np.ndarray | None, metrics: Sequence[Metric]) -> tuple[Measurement, ...]:
    if not found or labels is None or not metrics:
        return ()
    one = {a.cpu: a for a in reversed(found)}  # targets with one CPU have one answer
    found = [a for a in found if one[a.cpu] is a]
    metric, n = metrics[0], min(len(a.rows) for a in found)
    rows = found[0].rows[:n]  # all go through the samples in one order
    records: dict[str, Any] = {"here": metric.records(found[0].here[:n], labels[rows])}
    records |= {a.target: metric.records(a.there[:n], labels[rows]) for a in found}
    values = {name: intervals.figure(metric.value, np.asarray(r, np.float64)) for name, r in records.items()}
    if not np.isfinite(list(values.values())).all():  # so few samples may have none of a class
        return ()
    pairs = list(itertools.combinations(records.values(), 2))
    limits = [intervals.paired_of(metric, a, b, 1 - 0.05 / len(pairs)) for a, b in pairs]
    widest = max(max(abs(low), abs(high)) for _, low, high in limits)
    spread = max(values.values()) - min(values.values())
    unit = "pt" if metric.unit == "%" else metric.unit
    text = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    note = f"{metric.name} {text}; on all data at most {widest:.2g} {unit} (95 %)"
    return (probes.figure(other_cpus.SPREAD, spread, n=n, unit=unit, split="test", note=note),)
