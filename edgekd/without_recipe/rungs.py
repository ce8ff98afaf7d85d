"""What is tried, in order of cost: number formats first, then students pruned from the model with short recoveries,
then longer ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

UPDATES = 400  # of a short recovery; a long one has LONGER times as many
LONGER = 4
BATCH = 64
RATE = 1e-3  # the peak learning rate of recoveries: the weights are trained already


class Seen(Protocol):
    """What is known from the rungs before. `made`: the names of stages that were made."""

    made: set[str]

    def loses(self, stage: str) -> bool:
        """Whether a stage's model, as a file, is beyond what may be lost; True where it was not made."""


@dataclass(frozen=True)
class Rung:
    """Stages that are tried together. `worth`: whether it may move the front, from what is known; `needs`: stages that
    must have been made."""

    title: str
    stages: tuple[dict[str, Any], ...]
    worth: Callable[[Seen], bool] = lambda seen: True
    needs: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        return {stage["name"] for stage in self.stages}

    @property
    def deepest(self) -> bool:
        """Whether it cuts so deep that small models can't be cut so far, which ends a recipe that has it."""
        return any(name.startswith("eighth") for name in self.names)


def rungs(samples: int, taught: bool, labels: Sequence[dict[str, Any]]) -> list[Rung]:
    """All rungs. `samples` of the train split; `taught`: whether the task's outputs have losses to learn a teacher by;
    `labels`: the losses of a control that learns from labels alone, none where there are none."""
    found = [
        Rung("int8 by calibration", (_int8("int8", "student"),)),
        Rung(
            "int8 with equalized channels",
            (_int8("int8-equalized", "student", before=["equalize"], after=["bias_correction"]),),
            lambda seen: seen.loses("int8"),
        ),
    ]
    if not taught:
        return found
    short = max(2, math.ceil(UPDATES / math.ceil(samples / BATCH)))
    half, quarter, eighth = ("half", 0.5), ("quarter", 0.25), ("eighth", 0.125)
    both = lambda seen, name: seen.loses(name) and seen.loses(f"{name}-longer")
    found += [
        _pruned(*half, short, "student"),
        _pruned(*quarter, short, "half"),
        _tuned("int8", "student", short, lambda seen: seen.loses("int8") and seen.loses("int8-equalized")),
        _longer(*half, short),
        _longer(*quarter, short),
        _tuned("half", "half-longer", short),
        _tuned("quarter", "quarter-longer", short),
        _pruned(*eighth, short, "quarter", lambda seen: not both(seen, "quarter")),
        _longer(*eighth, short),
        _tuned("eighth", "eighth-longer", short),
        _pruned("three-quarters", 0.75, short, "student", lambda seen: both(seen, "half")),
        _longer("three-quarters", 0.75, short),
    ]
    if labels:
        stage = _prune("half-labels", 0.5, short, "student") | {"losses": list(labels)}
        found.append(Rung("control: half of the MACs, labels alone", (stage, _int8("half-labels-int8"))))
    return found


def is_of(label: str, name: str) -> bool:
    """Whether a step or a point is of this stage: its label is the stage's name, with suffixes where targets need other
    settings."""
    return re.fullmatch(rf"{re.escape(name)}(-m\d+|-w\d+|-per_tensor)*(\..*)?", label) is not None


def _prune(name: str, share: float, epochs: int, source: str) -> dict[str, Any]:
    settings = {"macs": f"max {share:g}", "epochs": epochs, "lr": RATE, "batch": BATCH}
    return {"use": "prune", "name": name, "source": source, **settings}


def _pruned(
    name: str, share: float, epochs: int, source: str, worth: Callable[[Seen], bool] = lambda seen: True
) -> Rung:
    """`share` of the given model's MACs, from a denser student."""
    needs = () if source == "student" else (source,)
    kept = share if source == "student" else 0.5
    stages = (_prune(name, kept, epochs, source), _int8(f"{name}-int8"))
    return Rung(f"{_words(name)} of the MACs, short recovery", stages, worth, needs)


def _longer(name: str, share: float, short: int) -> Rung:
    more = {"epochs": LONGER * short, "lr": RATE, "batch": BATCH}
    stage = {"use": "distill", "name": f"{name}-longer", "source": name, **more}
    worth = lambda seen: seen.loses(name) or seen.loses(f"{name}-int8")
    return Rung(f"{_words(name)} of the MACs, longer recovery", (stage, _int8(f"{name}-longer-int8")), worth, (name,))


def _tuned(name: str, source: str, short: int, worth: Callable[[Seen], bool] | None = None) -> Rung:
    """Fine-tuning with quantization, where calibration alone loses too much."""
    tuned = "int8-tuned" if name == "int8" else f"{name}-tuned"
    stage = {"use": "quantize", "name": tuned, "source": source, "epochs": max(2, short // 2), "batch": BATCH}
    needs = () if source == "student" else (source,)
    floats = lambda seen: seen.loses(f"{source}-int8") and not seen.loses(source)
    return Rung(f"int8 of {_words(source)} fine-tuned", (stage,), worth or floats, needs)


def _int8(name: str, source: str | None = None, **settings: Any) -> dict[str, Any]:
    begun = {} if source is None else {"source": source}
    return {"use": "quantize", "name": name, **begun, "mode": "ptq", **settings}


def _words(name: str) -> str:
    return {"student": "the model"}.get(name, name.replace("-", " "))
