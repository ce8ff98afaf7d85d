"""The baseline of a gate: a bundle with the same test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekd import results
from edgekd.decisions.budget import Reference
from edgekd.delivery import bundle
from edgekd.errors import BaselineError, Problem, UsageError
from edgekd.run import evidence
from edgekd.run.evidence import Subject


@dataclass(frozen=True)
class Baseline:
    """A bundle to compare with: its measurements and predictions."""

    path: Path
    target: str
    reference: Reference
    predictions: results.Predictions | None


def read(folder: Path, names: list[str]) -> Baseline:
    """Reads a baseline for targets called `names`. Raises BaselineError with every problem."""
    try:
        manifest = bundle.read(folder)
        subject = evidence.of_bundle(folder, manifest)
    except (UsageError, BaselineError) as error:
        problems = (
            Problem(p.place.replace(str(folder), f"baseline {folder}", 1), p.message, p.hint) for p in error.problems
        )
        raise BaselineError(*problems) from None
    if manifest.target not in names:
        hint = f"give the bundle of {' or '.join(names)}"
        raise BaselineError(
            Problem(f"baseline {folder}", f"is for {manifest.target}, not for {', '.join(names)}", hint)
        )
    ours = subject.predictions
    return Baseline(folder, manifest.target, Reference(manifest.measurements, ours.records if ours else {}), ours)


def comparable(baseline: Baseline, subject: Subject) -> tuple[Baseline, Subject]:
    """(baseline, subject) with the same test samples. Raises BaselineError where their test sets differ. The baseline
    has no quality if the subject has no predictions. An emulator may have run more samples for one of them, in its own
    order: then both keep the common samples only."""
    ours = subject.predictions
    if baseline.predictions is None:
        raise BaselineError(Problem(f"baseline {baseline.path}", "has no predictions, so its test set is not known"))
    if ours is None:
        return replace(
            baseline, reference=Reference(tuple(m for m in baseline.reference.measurements if not m.split))
        ), subject
    theirs = baseline.predictions
    both = np.intersect1d(ours.ids, theirs.ids)
    if ours.digest == theirs.digest and len(both) and not np.array_equal(ours.ids, theirs.ids):
        mine, others = (results.of_samples(p, both) for p in (ours, theirs))
        teacher = subject.teacher
        if teacher is not None and teacher.records:
            rows = results.places(ours.ids, both)
            teacher = replace(teacher, records={name: r[rows] for name, r in teacher.records.items()})
        baseline = replace(baseline, reference=replace(baseline.reference, records=others.records), predictions=others)
        subject, ours = replace(subject, predictions=mine, teacher=teacher), mine
    wrong = evidence.unlike(ours, baseline.predictions, f"baseline {baseline.path}", "the model under test")
    if wrong:
        raise BaselineError(*wrong)
    return baseline, subject
