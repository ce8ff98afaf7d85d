"""The records of a plan: steps with keys, and the candidates that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgekd.records import Deployment


def trains(stage: Any) -> bool:
    """Whether a model learns in a stage with these settings."""
    from edgekd.training.settings import Training

    return isinstance(stage, Training) and getattr(stage, "mode", "qat") == "qat"


@dataclass(frozen=True)
class Step:
    """A stage, its inputs by role, and a seed. `stage`: its name; `part`: the stage with its settings, a callable;
    `device`: the kind of device that it is made on."""

    key: str
    stage: str
    label: str
    part: Any
    seed: int
    source: str | None
    teacher: tuple[str, ...]
    device: str = "cpu"

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        roles = {"source": (self.source,) if self.source else (), "teacher": self.teacher}
        return {role: keys for role, keys in roles.items() if keys}


@dataclass(frozen=True)
class Point:
    """A planned candidate: the step that makes its model, the step that exports it, and the targets that it competes
    for. `reference`: `teacher` or `alone` for those; `beside`: the point that the gain of the last stage is measured
    against, the student trained on labels alone if there is one of the same widths, else the source of a further
    distillation. `deployment`: the format of its file and the runtime that opens it; `way`: the suffix of its name for
    that, "" if all targets have the same."""

    id: str
    point: str
    seed: int
    parents: tuple[str, ...]
    stages: tuple[str, ...]
    step: str
    export: str
    targets: tuple[str, ...]
    reference: str | None = None
    beside: str | None = None
    deployment: Deployment = Deployment()
    way: str = ""


@dataclass
class Plan:
    """`steps` by key, in an order that can be run; `points` in the order of the table; `losses` {stage: lines on its
    loss terms}; `notes` {target: note on the recipe's settings}."""

    steps: dict[str, Step] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    losses: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
