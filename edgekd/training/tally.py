"""What the steps of an epoch gave. It is read from the device when the log, the bar or a checkpoint needs it, since
reading waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.errors import Problem, RunFailed

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST, SECONDS = 100, 0.25  # steps that are left unread at most, and for how long


@dataclass(frozen=True)
class Given:
    """One step: its loss, each term's mean over the batch, its number of rows, and where in the training it was."""

    loss: torch.Tensor
    terms: Sequence[tuple[str, torch.Tensor]]
    rows: int
    epoch: int
    position: int
    rate: float


class Tally:
    """`sums`: over the steps read of the epoch, each term's mean times the number of rows, and the number of rows;
    `loss`: of the last step read. On the CPU every step is read at once."""

    def __init__(self, at_once: bool):
        self.at_once, self.sums, self.loss = at_once, dict[str, float](), 0.0
        self.unread: list[Given] = []
        self.read_at = time.monotonic()

    def begin(self, sums: dict[str, float] | None = None) -> None:
        """Begins an epoch, or resumes one."""
        self.sums, self.unread = {"rows": 0.0} if sums is None else dict(sums), []

    def add(self, given: Given) -> None:
        """Takes a step before its gradient is computed. Raises RunFailed if a loss that is due to be read is not
        finite."""
        self.unread.append(given)
        if self.at_once or len(self.unread) >= MOST or time.monotonic() > self.read_at + SECONDS:
            self.read()

    def read(self) -> None:
        """Reads all steps. Raises RunFailed for the first whose loss is not finite."""
        steps, self.unread = self.unread, []
        values = iter(_numbers([t for s in steps for t in (s.loss, *(value for _, value in s.terms))]))
        for step in steps:
            self.loss = next(values)
            means = {name: next(values) for name, _ in step.terms}
            if not math.isfinite(self.loss):
                raise _diverged(step, self.loss, means)
            for name, mean in means.items():
                self.sums[name] = self.sums.get(name, 0.0) + mean * step.rows
            self.sums["rows"] += step.rows
        self.read_at = time.monotonic()

    def means(self) -> dict[str, float]:
        """{term: its mean over the rows of the epoch so far}."""
        self.read()
        return {name: value / self.sums["rows"] for name, value in self.sums.items() if name != "rows"}


def _numbers(values: Sequence[torch.Tensor]) -> list[float]:
    import torch

    if not values or values[0].device.type == "cpu":
        return [value.item() for value in values]
    return torch.stack([value.detach().float().reshape(()) for value in values]).tolist()  # one wait for all


def _diverged(step: Given, loss: float, means: dict[str, float]) -> RunFailed:
    bad = ", ".join(f"{name} = {value:.3g}" for name, value in means.items())
    text = (
        f"training diverged: the loss is {loss} at epoch {step.epoch + 1}, step {step.position + 1}, learning "
        f"rate {step.rate:.3g} ({bad})"
    )
    return RunFailed(Problem("", text, HINT))


HINT = "lower `lr`, lengthen `warmup` or set `clip`; look for inputs that are not finite"


class Finite:
    """Refuses to save what is not finite: of the modules those tensors count that were finite at the start."""

    def __init__(self, modules: Sequence[nn.Module]):
        self.modules = modules
        names = self._names()
        self.names = {name for name, whole in zip(names, self._whole(names), strict=True) if whole}

    def check(self, step: int, total: int) -> None:
        """After `step` of `total`. Raises RunFailed, with the names of the tensors that have become infinite or NaN."""
        names = sorted(self.names)
        bad = [name for name, whole in zip(names, self._whole(names), strict=True) if not whole]
        if bad:
            told = ", ".join(bad[:3]) + (" and others" if len(bad) > 3 else "")
            text = (
                f"training diverged: after step {step} of {total} {told} {'is' if len(bad) == 1 else 'are'} not finite"
            )
            raise RunFailed(Problem("", text, HINT))

    def _tensors(self) -> dict[str, torch.Tensor]:
        several = len(self.modules) > 1
        return {
            f"{number}.{name}" if several else name: tensor
            for number, module in enumerate(self.modules)
            for name, tensor in module.state_dict().items()
            if tensor.is_floating_point()
        }

    def _names(self) -> list[str]:
        return list(self._tensors())

    def _whole(self, names: Sequence[str]) -> list[bool]:
        import torch

        tensors = self._tensors()
        return torch.stack([tensors[name].isfinite().all() for name in names]).tolist() if names else []
