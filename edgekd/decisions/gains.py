"""The gain of stages that learn from a teacher: each compared with the student trained on labels alone, or with the
model that the stage started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgekd import intervals
from edgekd.probes import figure
from edgekd.probes.gain import GAIN
from edgekd.records import Candidate, Measurement, Metric

OVER = "over "  # starts the note, which names the other candidate
# of benchmarks/distillation/RESULTS.md: KD + attention against KD, of cifar and of built-in
TRY = (
    "attention added to KL gained +4.9 [+2.5, +7.2] points on 5,000 images of CIFAR-10, and -0.6 [-0.8, -0.3] on "
    "digits, where labels alone reach 99 % (benchmarks/distillation/RESULTS.md): "
    '{ use = "attention", weight = 1000, on = ["layer2 -> layer3"] } with layers of your models'
)
ELSE = (
    "a better teacher, more epochs or augmentation, or `dkd` in place of `kl`; or no teacher: training on labels "
    "alone takes less time"
)


def gain(
    metric: Metric, ours: np.ndarray, theirs: np.ndarray, over: str, environment: str | None = None
) -> Measurement:
    """The gain of the first of two candidates over the second, from records of the same test samples: paired, with its
    95 % interval."""
    value, low, high = intervals.paired_of(metric, ours, theirs)
    if metric.better == "lower":
        value, low, high = -value, -high, -low
    unit = "pt" if metric.unit == "%" else metric.unit
    given = {"unit": unit, "split": "test", "threads": 1, "environment": environment, "note": f"{OVER}{over}"}
    return figure(GAIN, value, low, high, len(ours), **given)


def of(candidate: Candidate) -> tuple[Measurement, str] | None:
    """(a candidate's gain, the candidate that it is over); None if it has no gain."""
    found = next((m for m in candidate.measurements if m.name == GAIN.name and m.note.startswith(OVER)), None)
    return None if found is None else (found, found.note.removeprefix(OVER))


def labels_did_better(candidates: Iterable[Candidate], alone: Sequence[str]) -> str:
    """The first candidate that the control is better than, as text; "" if there is none."""
    for c in candidates:
        found = of(c)
        if found is not None and found[1] in alone and found[0].value < 0:
            m, over = found
            told = "" if m.high < 0 else ", a difference that may be chance"
            return (
                f"training on labels alone is better: {over} is {-m.value:.2f} [{-m.high:.2f}, {-m.low:.2f}] "
                f"{m.unit} above {c.id} on test{told}"
            )
    return ""


def without_gain(line: Iterable[Candidate], tapped: bool) -> list[str]:
    """Lines on the candidates that are not significantly better than those they are compared with, and on what to try;
    [] if there are none. `tapped`: whether the recipe's losses tap layers already."""
    lines = []
    for c in line:
        found = of(c)
        if found is not None and found[0].low <= 0:
            m, over = found
            what = "is worse than" if m.high < 0 else "has no significant gain over"
            lines.append(f"{c.id} {what} {over}: {m.value:+.2f} [{m.low:+.2f}, {m.high:+.2f}] {m.unit} on test, paired")
    return [*lines, f"to try: {ELSE if tapped else TRY}"] if lines else []


def taps_layers(recipe: Mapping) -> bool:
    """Whether a loss of a resolved recipe's stages taps layers."""
    return any(term.get("on") for stage in recipe.get("stage", ()) for term in stage.get("losses", ()))
