"""Loss terms as a recipe names them: which part, its weight and schedule, where in the models it looks and which
teacher it hears."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekd import components
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch

KEYS = ("use", "weight", "on", "teacher", "schedule")  # what a term says beside its part's settings
PEERS, EMA = "peers", "ema"  # teachers that a training makes by itself
# what schedules follow: the share of the training that is done, or agreement with the teacher
BY = ("training", "agreement")
Curve = Sequence[Sequence[float]]  # [[share, value], ...]: straight lines between, flat outside


@dataclass(frozen=True)
class Term:
    """One loss of a recipe: the part `use`, its weight, its own settings (`hyper`). `on`: paths in student and teacher;
    `teacher`: which of the stage's teachers, "peers", or "ema" (None: all that the stage has); `schedule`: {"weight" or
    a setting: curve}, over the training; or, with `by` "agreement", over the share of validation samples that the
    student answers as the teacher does (see `agreement`)."""

    use: str
    weight: float = 1.0
    hyper: Mapping[str, Any] = field(default_factory=dict)
    on: tuple[tuple[str, str], ...] = ()
    teacher: str | None = None
    schedule: Mapping[str, Curve] = field(default_factory=dict)
    by: str = "training"

    def function(self) -> Callable:
        return components.find("losses", self.use)

    def table(self) -> dict[str, Any]:
        """The term as a recipe says it."""
        on = [ours if ours == theirs else f"{ours} -> {theirs}" for ours, theirs in self.on]
        by = {"by": self.by} if self.by != BY[0] else {}
        said = {"on": on, "teacher": self.teacher, "schedule": {**by, **self.schedule} if self.schedule else None}
        return {"use": self.use, "weight": self.weight, **{k: v for k, v in said.items() if v}, **self.hyper}

    def needs_teacher(self) -> bool:
        """Whether the part's second argument, the teacher, is not optional: annotated as such, None by default, or
        named `_...` as unused."""
        parameter = next(itertools.islice(inspect.signature(self.function()).parameters.values(), 1, None), None)
        if parameter is None or parameter.name.startswith("_") or parameter.default is None:
            return False
        return not any(word in str(parameter.annotation) for word in ("None", "Optional"))

    def at(self, share: float, agreement: Mapping[str, float] | None = None) -> tuple[float, Mapping[str, Any]]:
        """(weight, settings) once `share` of the training is done, at this `agreement` by teacher."""
        if not self.schedule:
            return self.weight, self.hyper
        share = share if self.by == "training" else (agreement or {}).get(self.teacher or "", 0.0)
        now = {name: curve_at(curve, share) for name, curve in self.schedule.items()}
        return now.pop("weight", self.weight), {**self.hyper, **now}


def curve_at(curve: Curve, share: float) -> float:
    """The value of [[share, value], ...] at `share`."""
    before = curve[0]
    for point in curve:
        if share <= point[0]:
            width = point[0] - before[0]
            return point[1] if width <= 0 else before[1] + (point[1] - before[1]) * (share - before[0]) / width
        before = point
    return before[1]


@dataclass(frozen=True)
class Bound:
    """A term ready to be called: its name in logs, and its part, built from the shapes of a dry run if it learns."""

    name: str
    term: Term
    call: Callable

    def rows(
        self,
        seen: Signals,
        guide: Signals | None,
        batch: Batch,
        share: float,
        agreement: Mapping[str, float] | None = None,
    ) -> tuple[float, torch.Tensor]:
        """(weight, losses [B] or []) at `share` of the training. A part that learns has its settings as attributes."""
        weight, hyper = self.term.at(share, agreement)
        if is_module(self.call):
            for name in self.term.schedule.keys() - {"weight"}:
                setattr(self.call, name, hyper[name])
            hyper = {}
        return weight, self.call(*looked_at(self.term, seen, guide), batch, **hyper)


def looked_at(term: Term, seen: Signals, guide: Signals | None) -> tuple[Signals, Signals | None]:
    """The signals as the term sees them: of the tapped values its own, in the order of `on`."""
    if not term.on:
        return seen, guide
    ours = Signals(seen.output, {path: seen.taps[path] for path, _ in term.on})
    if guide is None or not guide.taps:
        return ours, guide
    return ours, Signals(
        guide.output, {path: guide.taps[path] for _, path in term.on if path in guide.taps}, guide.label
    )


def is_module(part: Any) -> bool:
    from torch import nn

    return isinstance(part, nn.Module) or (isinstance(part, type) and issubclass(part, nn.Module))


def bind(terms: Sequence[Term], signals: Callable[[], tuple[Signals, Mapping[str, Signals], Batch]]) -> list[Bound]:
    """Every term with its part. `signals()` gives the student's, the teachers' and the batch of a dry run, for parts
    that learn."""
    bound, names, dry = [], {}, None
    for term in terms:
        part = term.function()
        if is_module(part):
            dry = dry or signals()
            seen, guides, batch = dry
            part = part(*looked_at(term, seen, guide_of(term, guides)), batch, **term.hyper)
        count = names[term.use] = names.get(term.use, 0) + 1
        bound.append(Bound(term.use if count == 1 else f"{term.use}.{count - 1}", term, part))
    return bound


def guide_of(term: Term, guides: Mapping[str, Any]) -> Any:
    """The teacher's signals that the term hears; None where there is no teacher."""
    return guides.get(term.teacher or "")


def parts(
    bound: Sequence[Bound],
    seen: Signals,
    guides: Mapping[str, Any],
    batch: Batch,
    share: float = 0.0,
    agreement: Mapping[str, float] | None = None,
) -> list[tuple[str, float, torch.Tensor]]:
    """(name, weight, mean) of every term. A mean is over rows by sample weight, divided once; of several teachers
    (peers), over them too."""
    found = []
    for b in bound:
        guide = guide_of(b.term, guides)
        means = []
        for one in guide if isinstance(guide, list) else [guide]:
            weight, rows = b.rows(seen, one, batch, share, agreement)
            means.append(rows if rows.ndim == 0 else (rows * batch.weight).sum() / batch.weight.sum())
        found.append((b.name, weight, means[0] if len(means) == 1 else sum(means) / len(means)))
    return found


def settings_at(bound: Sequence[Bound], share: float, agreement: Mapping[str, float] | None) -> dict[str, float]:
    """{term.setting: value} of all that schedules change, for the log."""
    found = {}
    for b in bound:
        weight, hyper = b.term.at(share, agreement)
        found |= {f"{b.name}.{name}": weight if name == "weight" else hyper[name] for name in b.term.schedule}
    return found


def total(parts: Sequence[tuple[str, float, torch.Tensor]]) -> torch.Tensor:
    """The sum of weight x mean."""
    whole = None
    for _, weight, mean in parts:
        whole = weight * mean if whole is None else whole + weight * mean
    return whole


def gradient_norms(
    parts: Sequence[tuple[str, float, torch.Tensor]], parameters: Sequence[torch.Tensor]
) -> dict[str, float]:
    """{term: Euclidean norm of the gradient of weight x mean by the student's parameters}."""
    import torch

    found = {}
    for name, weight, mean in parts:
        if not mean.requires_grad:
            found[name] = 0.0
            continue
        gradients = torch.autograd.grad(weight * mean, parameters, retain_graph=True, allow_unused=True)
        found[name] = (
            torch.stack([g.float().norm() for g in gradients if g is not None] or [torch.zeros(())]).norm().item()
        )
    return found


def tapped(terms: Sequence[Term], teacher: str | None = None) -> tuple[str, ...]:
    """The paths that terms look at: in the student, or in the teacher of this name ("": that of terms which name
    none)."""
    if teacher is None:
        return tuple(dict.fromkeys(path for term in terms for path, _ in term.on))
    chosen = [t for t in terms if t.needs_teacher() and (t.teacher or "") in ("", teacher)]
    return tuple(dict.fromkeys(path for term in chosen for _, path in term.on))
