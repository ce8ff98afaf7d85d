"""How long a rung takes: from the time of a training step of the given model at first, then from the steps made."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekd import environment
from edgekd.run.resolve import Resolved
from edgekd.without_recipe.rungs import BATCH, Rung, is_of

FIRST = {"prune": 1.2, "distill": 1.2, "quantize": 3.0}  # seconds per epoch over those of the given model, before any
TRIES = 3
AROUND = 5.0  # s of export, measuring and reports, before any were made


@dataclass
class Cost:
    """`epoch`: seconds of an epoch of the given model; `groups`: of targets that train their own; `ratios` {use of a
    stage: seconds of its epochs over `epoch`, the longest seen}; `around`: what a rung takes besides training."""

    epoch: float
    groups: int = 1
    ratios: dict[str, float] = field(default_factory=dict)
    around: float = AROUND

    def of(self, rung: Rung) -> float:
        """The predicted seconds of a rung."""
        return self.around + sum(self._trained(stage) for stage in rung.stages)

    def _trained(self, stage: Mapping[str, Any]) -> float:
        ratio = self.ratios.get(stage["use"], FIRST[stage["use"]])
        return self.groups * stage.get("epochs", 0) * self.epoch * ratio

    def seen(self, rung: Rung, steps: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Learns from a rung that took `seconds`, by the records of its steps."""
        trained = 0.0
        for stage in rung.stages:
            took = [s for s in steps if is_of(s["step"], stage["name"]) and s["stage"] == stage["use"]]
            if took and "epochs" in stage and self.epoch > 0:
                longest = max(s["seconds"] for s in took)
                ratio = longest / (stage["epochs"] * self.epoch)
                self.ratios[stage["use"]] = max(ratio, self.ratios.get(stage["use"], 0.0))
            trained += sum(s["seconds"] for s in took if not s["reused"])
        if not any(s["reused"] for s in steps if any(is_of(s["step"], stage["name"]) for stage in rung.stages)):
            self.around = max(1.0, seconds - trained)


def epoch_of(resolved: Resolved) -> float:
    """Seconds of an epoch of training the given model, by a few steps."""
    import numpy as np
    import torch

    from edgekd.data.columns import take
    from edgekd.inputs import named
    from edgekd.models import device, saved

    columns, task = resolved.data("train"), resolved.task
    rows = np.arange(min(BATCH, len(columns)), dtype=np.int64)
    with environment.threads(resolved.threads):
        module = device.placed(saved.create(task, "teacher", 0).train(), resolved.device)
        inputs = device.moved(take(columns, rows).inputs, resolved.device)
        times = []
        for _ in range(TRIES):
            begun = time.monotonic()
            answer = task.call(module, inputs)
            loss = torch.stack([t.float().square().mean() for t in named(answer).values()]).sum()
            if loss.requires_grad:  # a given model may be frozen
                loss.backward()
            times.append(time.monotonic() - begun)
    return min(times) * math.ceil(len(columns) / BATCH)
