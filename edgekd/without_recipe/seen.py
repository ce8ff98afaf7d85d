"""What is known from the result so far, and what a rung bought."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekd.decisions import choose
from edgekd.decisions.rules import parse
from edgekd.decisions.tables import QUALITY, RELATIVE
from edgekd.probes import quantity
from edgekd.records import Candidate, Metric, Result
from edgekd.without_recipe.asked import Asked
from edgekd.without_recipe.rungs import is_of

HARDLY = 0.1  # of the way from chance to 100 %


@dataclass
class Seen:
    """`made`: the names of stages that were made; `result`: the newest; `allowed`: what may be lost of `metric`, as a
    number in its unit, or as a share of the given model's figure (`relative`)."""

    metric: Metric
    allowed: float
    relative: bool = False
    made: set[str] = field(default_factory=set)
    result: Result | None = None

    @classmethod
    def of(cls, asked: Asked, metric: Metric) -> Seen:
        """What may be lost as asked, or as recipes have it by default."""
        rule = asked.rule or (QUALITY if metric.unit == "%" else RELATIVE)
        found = parse(metric.name, rule, units={metric.name: metric.unit})
        return cls(metric, found.limit / 100 if found.kind == "regress" else found.limit, found.kind == "regress")

    def loses(self, stage: str) -> bool:
        """Whether a stage's files lose more than allowed on the validation split; True where there are none."""
        if self.result is None or stage not in self.made:
            return True
        return self._lost([c for c in self.result.candidates if is_of(c.point, stage)])

    def hardly_better_than_chance(self, classes: int | None) -> str:
        """A note on a given model that knows next to nothing of the validation split; "" on any other."""
        if self.result is None or self.metric.name != "top1" or not classes:
            return ""
        found = [c for c in self.result.candidates if c.id == self.result.references.get("teacher")]
        figure, chance = self._figure(found), 100 / classes
        if not figure <= chance + (100 - chance) * HARDLY:
            return ""
        told = f"the given model scores {figure:.3g} % on the validation split, and chance {chance:.3g} %"
        return f"{told}: are inputs and labels those that it was trained on?"

    def fitting(self) -> list[Candidate]:
        """The candidates that lose no more than allowed."""
        found = self.result.candidates if self.result is not None else ()
        return [c for c in found if c.id != "teacher" and not self._lost([c])]

    def _lost(self, candidates: list[Candidate]) -> bool:
        assert self.result is not None
        teacher = self._figure([c for c in self.result.candidates if c.id == self.result.references.get("teacher")])
        figure = self._figure(candidates)
        lost = teacher - figure if self.metric.better == "higher" else figure - teacher
        return not lost <= self.allowed * (abs(teacher) if self.relative else 1.0) + 1e-9

    def _figure(self, candidates: list[Candidate]) -> float:
        """The worst of the candidates; NaN where there are none."""
        values = [
            m.value
            for c in candidates
            for m in c.measurements
            if m.name == self.metric.name and m.split == "validation"
        ]
        return math.nan if not values else min(values) if self.metric.better == "higher" else max(values)


def bought(before: Result | None, after: Result, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(target, what a rung changed there), of the figures `names` {name: unit}."""
    for target, found in after.targets.items():
        old = before.targets.get(target) if before is not None else None
        was = _told(before, target, old.chosen, names) if before is not None and old is not None else ""
        now = _told(after, target, found.chosen, names)
        new = [point for point in found.front if old is None or point not in old.front]
        change = "nothing" if was == now and old is not None else f"{was} -> {now}" if old is not None else now
        more = f"; {len(new)} new on the front" if old is not None and new and was == now else ""
        yield target, f"{change}{more}"


def missing(result: Result, seen: Seen, limits: Iterable[str]) -> Iterator[str]:
    """Lines on the targets for which nothing fits: the nearest, and the least that was reached of each limit."""
    for target, found in result.targets.items():
        if found.chosen is not None:
            continue
        yield f"{target}: {found.reason}"
        for name in limits:
            fit = [(choose.figure([c], name, target)[0], c.id) for c in seen.fitting()]
            known = [pair for pair in fit if not math.isnan(pair[0])]
            unit: Any = quantity(name)
            least = (
                f"{_number(name, min(known)[0], unit.unit if unit else '')} ({min(known)[1]})" if known else "unknown"
            )
            yield f"  least {name} of those that lose no more than allowed: {least}"


def _told(result: Result, target: str, chosen: str | None, names: Mapping[str, str]) -> str:
    candidate = next((c for c in result.candidates if c.id == chosen), None)
    if candidate is None:
        return "nothing fits"
    figures = {name: choose.figure([candidate], name, target)[0] for name in names}
    told = ", ".join(_number(name, value, names[name]) for name, value in figures.items() if not math.isnan(value))
    return f"{candidate.id} ({told})"


def _number(name: str, value: float, unit: str) -> str:
    known: Any = quantity(name)
    scale, shown = (known.shown[1], known.shown[0]) if known is not None and known.shown else (1.0, unit)
    return f"{value / scale:.4g} {shown}".rstrip()
