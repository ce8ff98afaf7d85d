"""What a file answers as other CPUs, held against what it answers on this machine: metrics, equal answers, spread."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekd import intervals, probes
from edgekd.inputs import each
from edgekd.measure.emulation import Answers
from edgekd.outputs import Output
from edgekd.probes import other_cpus, quality
from edgekd.records import Measurement, Metric


def figures(
    found: Sequence[Answers],
    labels: Any,
    metrics: Sequence[Metric],
    teacher: Any = None,
    boards: Sequence[Answers] = (),
    output: Output | Mapping[str, Output] | None = None,
) -> dict[str, tuple[Measurement, ...]]:
    """{target: measurements}, all `emulated`: the metrics, with a `teacher`'s outputs also fidelity; host_agreement,
    the share of answers that are this machine's (equal_outputs, the share of numbers, where the answers are no
    classes); and target_spread, the greatest difference in the first metric between this machine and all targets, those
    that answered on their `boards` among them, on the samples that all of them saw (under "" as well).

    Agreement and spread are exact for their samples; the spread's note has the 95 % interval, simultaneous over the
    pairs, of the difference on all data."""
    spread, made = _spread([*found, *boards] if found else (), labels, metrics), {}
    for a in found:
        same = float(np.concatenate([np.ravel(x == y) for _, x, y in a.pairs()]).mean())
        cpu = f"{a.cpu} ({a.kernels})" if a.kernels else a.cpu
        note = (
            f"as {cpu}: {'all outputs equal' if same == 1 else f'{100 * same:.2f} % of the outputs equal'} to this "
            "machine's"
        )
        note += "" if same == 1 else f", the others within {_apart(a):.2g}"
        of_rows = lambda values, rows=a.rows: None if values is None else each(values, lambda array: array[rows])
        truth, names = of_rows(labels), {metric.name for metric in metrics}
        there = probes.Subject(outputs=a.there, labels=truth, metrics=metrics, split="test", output=output)
        told = probes.measure(replace(there, teacher=of_rows(teacher)))
        taken = [m for m in told if teacher is not None or m.name in names]
        alike = replace(there, teacher=a.here)
        taken += [_equal(one, name) for name, one in (alike.heads() or {"": alike}).items()]
        made[a.target] = (*(replace(m, target=a.target, origin="emulated", note=note) for m in taken), *spread)
    return {"": spread, **made} if made else {}


def _equal(alike: probes.Subject, name: str) -> Measurement:
    """The share of answers there that are those here, the subject's `teacher`; of several outputs of the output
    `name`."""
    same = quality.agreement(alike)
    share = 100 * float((alike.outputs == alike.teacher).mean()) if same is None else same.value
    # answers that nobody said to be classes: how many of the numbers are the same
    own = other_cpus.EQUAL if same is None else other_cpus.HOST_AGREEMENT
    made = probes.figure(own, share, n=len(alike.outputs), split="test")
    return replace(made, name=probes.of_output(made.name, name))


def _apart(a: Answers) -> float:
    """The greatest difference between an output here and there."""
    return max(float(np.abs(np.asarray(there, np.float64) - here).max()) for _, here, there in a.pairs())


def _spread(found: Sequence[Answers], labels: Any, metrics: Sequence[Metric]) -> tuple[Measurement, ...]:
    if not found or labels is None or not metrics:
        return ()
    one = {a.cpu: a for a in reversed(found)}  # targets with one CPU have one answer
    found = [a for a in found if one[a.cpu] is a]
    metric, n = metrics[0], min(len(a.rows) for a in found)
    rows = found[0].rows[:n]  # all go through the samples in one order
    truth, first = each(labels, lambda array: array[rows]), lambda values: each(values, lambda array: array[:n])
    records: dict[str, Any] = {"here": metric.records(first(found[0].here), truth)}
    records |= {a.target: metric.records(first(a.there), truth) for a in found}
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
