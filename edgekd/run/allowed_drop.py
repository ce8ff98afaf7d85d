"""What an int8 file may lose: `1 pt` of accuracy, or of answers equal to float's; `30 dB` of signal to noise at least;
an amount of one's own metric."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd import components, metrics
from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.inputs import bare
from edgekd.records import Metric

if TYPE_CHECKING:
    from edgekd.quantization.diagnosis.signal_to_noise import Agreement

PLACE = "--max-drop"
FORM = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(pt|dB|[\w.]+:[\w.]+)\s*")


@dataclass(frozen=True)
class Allowed:
    """`limit`: in `unit` (pt, dB, or the metric's); `metric`: None of dB, and of points where there are no labels."""

    limit: float
    unit: str
    metric: Metric | None = None

    def met(self, figure: float) -> bool:
        """Of dB at least the limit, else at most. Never by a figure that is not a number."""
        return figure >= self.limit if self.unit == "dB" else figure <= self.limit

    def worse(self, figure: float) -> float:
        """A number that orders figures, the least bad first."""
        return math.inf if math.isnan(figure) else -figure if self.unit == "dB" else figure

    def figure(
        self, plain: Mapping[str, np.ndarray], int8: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> float:
        """dB of the worst output, or the points or units of the metric that are lost to the float outputs. Raises
        UsageError where the outputs don't have it."""
        if self.metric is not None:
            try:
                before, after = (self.metric.value(self.metric.records(bare(a), labels)) for a in (plain, int8))
            except THEIRS as error:
                raise UsageError(
                    Problem(PLACE, f"{self.metric.name} raised {type(error).__name__}: {error}")
                ) from error
            return float(before - after if self.metric.better == "higher" else after - before)
        told = agreements(plain, int8)
        if self.unit == "dB":
            found = [a.snr_db for a in told if a.snr_db is not None]
            return math.nan if not found or any(map(math.isnan, found)) else min(found)
        shares = [a.answers if a.answers is not None else a.equal for a in told]
        found = [s for s in shares if s is not None]
        if not found:
            raise UsageError(Problem(PLACE, "no output holds scores, whose answers could be equal", 'give "30 dB"'))
        return 100 * (1 - min(found))

    def shown(self, figure: float) -> str:
        if math.isinf(figure) or math.isnan(figure):
            return "-"
        if self.unit == "dB":
            return f"{figure:.1f} dB"
        return f"{figure:.2f} pt" if self.unit == "pt" else f"{figure:.4g} {self.unit}".rstrip()

    @property
    def kind(self) -> str:
        """What is compared, in words."""
        if self.unit == "dB":
            return "signal to noise"
        return f"{self.metric.name} lost" if self.metric is not None else "answers lost"


def agreements(plain: Mapping[str, np.ndarray], int8: Mapping[str, np.ndarray]) -> list[Agreement]:
    from edgekd.quantization.diagnosis.signal_to_noise import compare

    return [row for name in plain for row in compare(name, plain[name], int8[name])]


def form(text: str) -> tuple[float, str]:
    """(amount, unit). Raises UsageError for what is no such amount."""
    found = FORM.fullmatch(text)
    if found is None:
        hint = 'write "1 pt", "30 dB" or "0.02 package.module:metric"'
        raise UsageError(Problem(PLACE, f"`{text}` is not an amount with its unit", hint))
    return float(found[1]), found[2]


def parsed(text: str, labels: np.ndarray | None) -> Allowed:
    """Raises UsageError for what is no such amount, and for a metric without labels to compare with."""
    limit, unit = form(text)
    if unit == "dB":
        return Allowed(limit, unit)
    if unit == "pt":
        return Allowed(limit, unit, metrics.suiting(labels) if metrics.are_classes(labels) else None)
    components.look_beside(Path.cwd())
    try:
        metric = components.imported(unit)
        if callable(metric) and not isinstance(metric, Metric):
            metric = metric()
    except UsageError as error:
        raise UsageError(*(Problem(PLACE, p.message, p.hint) for p in error.problems)) from None
    except THEIRS as error:  # the metric is the user's code
        raise UsageError(Problem(PLACE, f"{unit} raised {type(error).__name__}: {error}")) from error
    if not isinstance(metric, Metric):
        raise UsageError(Problem(PLACE, f"{unit} is not an edgekd.Metric", "see docs/own-model.md"))
    if labels is None:
        raise UsageError(Problem(PLACE, f"{metric.name} needs labels", "give `labels` in the data"))
    return Allowed(limit, metric.unit, metric)
