"""What a fix brings: the states of an int8 file before and after, and which of them are better."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.explain.inputs import Samples, Subject
from edgekd.inputs import bare
from edgekd.measure import rolled
from edgekd.quantization.diagnosis.fixes import Fix
from edgekd.quantization.diagnosis.signal_to_noise import decibel, noise

# points, or a thousandth of a metric that is not in percent, that int8 may cost: that much is not looked for
SOUND = 0.1
LEFT = 0.25  # share of what was lost that may stay lost
QUIETER = 3.0  # dB that the output's noise must fall by
HELPS = 1.0  # dB from which a fix helps at all


@dataclass(frozen=True)
class State:
    """A file on the samples that fixes are chosen by: `lost` of the metric to the float file, in its unit and above 0
    where it is worse (None: no labels); `noise` of the outputs as a share of the signal; `changed`: layers whose
    outputs come out otherwise on AVX2 without VNNI."""

    lost: float | None
    noise: float
    changed: int = 0


@dataclass(frozen=True)
class Tried:
    """A fix (`remedy`) and what came of it: the file's state, or why there is none."""

    remedy: Fix
    state: State | None
    verdict: str


def recovers(before: State, after: State, *, sound: float = SOUND, trained: bool = False) -> bool:
    """Whether a fix gives back what was lost: at most a quarter of it is missing, or no more than nobody looks for; and
    the outputs have less noise.

    Of trained weights the difference to the float file is no noise, so the metric alone decides. What saturates must no
    longer."""
    if before.changed:
        return not after.changed and (after.lost is None or after.lost <= max(sound, before.lost))
    enough = after.lost is None or before.lost is None or after.lost <= max(sound, LEFT * before.lost)
    if trained and before.lost is not None:
        return enough and after.lost < before.lost
    return enough and decibel(before.noise / after.noise) >= QUIETER


def helps(before: State, after: State, *, sound: float = SOUND, trained: bool = False) -> bool:
    """Whether a file is better than before, if not good."""
    no_worse = after.lost is None or before.lost is None or after.lost <= before.lost + sound / 2
    if before.changed:
        return no_worse and after.changed < before.changed
    if trained and before.lost is not None:
        return after.lost < before.lost
    return no_worse and decibel(before.noise / after.noise) >= HELPS


def best(tried: list[Tried]) -> Tried | None:
    """Of what helps that which loses least, then that with the least noise."""
    return min(
        (t for t in tried if t.verdict == "helps"),
        key=lambda t: (t.state.changed, t.state.lost or 0, t.state.noise),
        default=None,
    )


class Bench:
    """Where the files of one subject are tried; holds what the float file answers, and the files made so far."""

    def __init__(self, subject: Subject, place: Path, trained: bool):
        self.subject, self.place, self.trained = subject, place, trained
        self.files: dict[str, tuple[Path, str]] = {}
        self.numbers = itertools.count()
        self.plain = self.answers(subject.float_file, subject.looked)
        self.value = self.metric(self.plain, subject.looked)
        percent = subject.metric is not None and subject.metric.unit == "%"
        self.sound = SOUND if percent or self.value is None else abs(self.value) / 1000

    def answers(self, file: Path, samples: Samples) -> dict[str, np.ndarray]:
        return rolled.score(file, samples.inputs, self.place / f"score-{next(self.numbers)}")

    def metric(self, answers: Mapping[str, np.ndarray], samples: Samples) -> float | None:
        metric = self.subject.metric
        if metric is None or samples.labels is None:
            return None
        return float(metric.value(metric.records(bare(answers), samples.labels)))

    def state(self, file: Path) -> State:
        found = self.answers(file, self.subject.looked)
        value = self.metric(found, self.subject.looked)
        lost = None if value is None else (self.value - value) * (1 if self.subject.metric.better == "higher" else -1)
        changed = saturating(file, self.subject.looked) if self.subject.saturates else 0
        return State(lost, noise_of(self.plain, found), changed)

    def verdict(self, before: State, after: State) -> str:
        how: dict[str, Any] = {"sound": self.sound, "trained": self.trained}
        if recovers(before, after, **how):
            return "recovers"
        return "helps" if helps(before, after, **how) else "does not help"


def saturating(file: Path, samples: Samples) -> int:
    """Layers whose outputs some samples change where products saturate in 16 bits."""
    import onnx

    from edgekd.quantization.qdq.saturation import audit

    return sum(bool(layer.changed) for layer in audit(onnx.load(file), samples.inputs.some(64).feed()))


def noise_of(plain: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Of all outputs but integers, on average."""
    return float(np.mean([noise(plain[n], found[n]) for n in plain if plain[n].dtype.kind == "f"] or [1e-12]))
