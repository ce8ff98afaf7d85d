"""What the stages that learn from a teacher brought: each beside the student that learned from labels alone, or beside
what it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgekd import intervals
from edgekd.probes import figure
from edgekd.probes.gain import GAIN
from edgekd.records import Candidate, Measurement, Metric

OVER = "over "  # the note says over whom
# of benchmarks/distillation/RESULTS.md: KD + attention against KD, of cifar and of built-in
TRY = (
    "attention on top of KL brought +4.9 [+2.5, +7.2] points on 5,000 images of CIFAR-10, and -0.6 [-0.8, -0.3] on "
    "digits, where labels alone reach 99 % (benchmarks/distillation/RESULTS.md): "
    '{ use = "attention", weight = 1000, on = ["layer2 -> layer3"] } with layers of your models'
)
ELSE = (
    "a better teacher, more epochs or augmentation, or `dkd` in place of `kl`; or leave the teacher out: labels "
    "alone take less time"
)


def gain(
    metric: Metric, ours: np.ndarray, theirs: np.ndarray, over: str, environment: str | None = None
) -> Measurement:
    """How much better the first of two candidates is, from records of the same samples of test: paired, with its 95 %
    interval."""
    value, low, high = intervals.paired_of(metric, ours, theirs)
    if metric.better == "lower":
        value, low, high = -value, -high, -low
    unit = "pt" if metric.unit == "%" else metric.unit
    given = {"unit": unit, "split": "test", "threads": 1, "environment": environment, "note": f"{OVER}{over}"}
    return figure(GAIN, value, low, high, len(ours), **given)


def of(candidate: Candidate) -> tuple[Measurement, str] | None:
    """(a candidate's gain, over whom); None where it has none."""
    found = next((m for m in candidate.measurements if m.name == GAIN.name and m.note.startswith(OVER)), None)
    return None if found is None else (found, found.note.removeprefix(OVER))


def labels_did_better(candidates: Iterable[Candidate], alone: Sequence[str]) -> str:
    """The first candidate that the student which learned alone is better than, in words; empty if there is none."""
    for c in candidates:
        found = of(c)
        if found is not None and found[1] in alone and found[0].value < 0:
            m, over = found
            told = "" if m.high < 0 else ", a difference that may be chance"
            return (
                f"labels alone did better: {over} is {-m.value:.2f} [{-m.high:.2f}, {-m.low:.2f}] {m.unit} above "
                f"{c.id} on test{told}"
            )
    return ""


def nothing_bought(line: Iterable[Candidate], tapped: bool) -> list[str]:
    """Lines on the candidates that are not shown to be better than what they are held against, and on what to try; []
    if there are none. `tapped`: whether the recipe's losses look inside the models already."""
    lines = []
    for c in line:
        found = of(c)
        if found is not None and found[0].low <= 0:
            m, over = found
            what = "cost accuracy" if m.high < 0 else "bought nothing that can be shown"
            lines.append(
                f"{c.id} {what} over {over}: {m.value:+.2f} [{m.low:+.2f}, {m.high:+.2f}] {m.unit} on test, paired"
            )
    return [*lines, f"to try: {ELSE if tapped else TRY}"] if lines else []


def looks_inside(recipe: Mapping) -> bool:
    """Whether a loss of a resolved recipe's stages is on inner layers."""
    return any(term.get("on") for stage in recipe.get("stage", ()) for term in stage.get("losses", ()))
