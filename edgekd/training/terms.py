"""Loss terms as a recipe gives them: the loss, its weight and schedule, the layers that it taps, and the teacher that
supervises it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekd import components
from edgekd.records import Batch, Signals
from edgekd.training import ranks
from edgekd.training.positions import Rows, head

if TYPE_CHECKING:
    import torch

    from edgekd.training.shares import Share

KEYS = ("use", "weight", "on", "teacher", "schedule")  # keys of a term besides its loss's settings
PEERS, EMA = "peers", "ema"  # teachers that the training itself makes
# what schedules follow: the share of the training that is done, or the agreement with the teacher
BY = ("training", "agreement")
Curve = Sequence[Sequence[float]]  # [[share, value], ...]: straight lines between, flat outside


@dataclass(frozen=True)
class Term:
    """One loss of a recipe: the loss `use`, its weight, its own settings (`hyper`). `output`: which of several outputs
    it is on, "" for the only one, and for inner layers; `on`: paths of layers in student and teacher; `teacher`: one of
    the stage's teachers, "peers", or "ema" (None: all teachers of the stage); `schedule`: {"weight" or a setting:
    curve}. A curve runs over the training; with `by` "agreement", over the share of validation samples on which student
    and teacher predict the same class (see `agreement`)."""

    use: str
    weight: float = 1.0
    hyper: Mapping[str, Any] = field(default_factory=dict)
    on: tuple[tuple[str, str], ...] = ()
    teacher: str | None = None
    schedule: Mapping[str, Curve] = field(default_factory=dict)
    by: str = "training"
    output: str = ""

    def function(self) -> Callable:
        return components.find("losses", self.use)

    def table(self) -> dict[str, Any]:
        """The term as a table of a recipe."""
        on = [ours if ours == theirs else f"{ours} -> {theirs}" for ours, theirs in self.on]
        by = {"by": self.by} if self.by != BY[0] else {}
        said = {
            "output": self.output,
            "on": on,
            "teacher": self.teacher,
            "schedule": {**by, **self.schedule} if self.schedule else None,
        }
        return {"use": self.use, "weight": self.weight, **{k: v for k, v in said.items() if v}, **self.hyper}

    def needs_teacher(self) -> bool:
        """Whether the loss requires its second argument, the teacher. It is optional if its annotation says so, if None
        is its default, or if its name starts with `_` (unused)."""
        parameter = next(itertools.islice(inspect.signature(self.function()).parameters.values(), 1, None), None)
        if parameter is None or parameter.name.startswith("_") or parameter.default is None:
            return False
        return not any(word in str(parameter.annotation) for word in ("None", "Optional"))

    def at(self, share: float, agreement: Mapping[str, float] | None = None) -> tuple[float, Mapping[str, Any]]:
        """(weight, settings) once `share` of the training is done, at this `agreement` by teacher."""
        if not self.schedule:
            return self.weight, self.hyper
        if self.by != "training":
            name = self.teacher or ""
            share = (agreement or {}).get(agreement_on(name, self.output), (agreement or {}).get(name, 0.0))
        now = {name: curve_at(curve, share) for name, curve in self.schedule.items()}
        return now.pop("weight", self.weight), {**self.hyper, **now}


def agreement_on(teacher: str, output: str) -> str:
    """The name of the agreement with a teacher on one of several outputs, in schedules and logs."""
    return f"{teacher} on {output}".strip() if output else teacher


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
    """A term ready to be called: its name in logs, and its loss. A loss that learns is built from the shapes of a dry
    run. `across`: with several processes it compares the rows of all."""

    name: str
    term: Term
    call: Callable
    across: bool = False

    def rows(
        self,
        seen: Signals,
        teacher: Signals | None,
        batch: Batch,
        share: float,
        agreement: Mapping[str, float] | None = None,
    ) -> tuple[float, torch.Tensor]:
        """(weight, losses [B] or []) at `share` of the training. A loss that learns has its settings as attributes."""
        weight, hyper = self.term.at(share, agreement)
        if is_module(self.call):
            for name in self.term.schedule.keys() - {"weight"}:
                setattr(self.call, name, hyper[name])
            hyper = {}
        return weight, self.call(*looked_at(self.term, seen, teacher), batch, **hyper)


def looked_at(term: Term, seen: Signals, teacher: Signals | None) -> tuple[Signals, Signals | None]:
    """(the student's signals, the teacher's) with the values that the term taps, in the order of `on`."""
    if not term.on:
        return seen, teacher
    ours = Signals(seen.output, {path: seen.taps[path] for path, _ in term.on}, kind=seen.kind)
    if teacher is None or not teacher.taps:
        return ours, teacher
    return ours, Signals(
        teacher.output, {path: teacher.taps[path] for _, path in term.on if path in teacher.taps}, teacher.label
    )


def is_module(part: Any) -> bool:
    from torch import nn

    return isinstance(part, nn.Module) or (isinstance(part, type) and issubclass(part, nn.Module))


def bind(
    terms: Sequence[Term], dry_run: Callable[[], tuple[Signals, Mapping[str, Signals], Batch | Rows]]
) -> list[Bound]:
    """Every term with its loss. `dry_run()` gives the student's signals, the teachers' and the batch, or its rows, for
    losses that learn."""
    bound, names, dry = [], {}, None
    for term in terms:
        part = term.function()
        if is_module(part):
            dry = dry or dry_run()
            seen, signals, batch = dry
            given, taught = head(seen, term.output), teacher_signals(term, signals)
            batch = batch.head(term.output).flat if isinstance(batch, Rows) else batch
            part = part(*looked_at(term, given, taught), batch, **term.hyper)
        name = f"{term.use} on {term.output}" if term.output else term.use
        count = names[name] = names.get(name, 0) + 1
        bound.append(Bound(name if count == 1 else f"{name}.{count - 1}", term, part))
    return bound


def teacher_signals(term: Term, signals: Mapping[str, Any]) -> Any:
    """The signals of the term's teacher for the term's output, of each of several peers; None where there is no
    teacher."""
    found = signals.get(term.teacher or "")
    if isinstance(found, list):
        return [head(one, term.output) for one in found]
    return found if found is None else head(found, term.output)


def parts(
    bound: Sequence[Bound],
    seen: Signals,
    signals: Mapping[str, Any],
    rows: Rows,
    share: float = 0.0,
    agreement: Mapping[str, float] | None = None,
    part: Share | None = None,
) -> list[tuple[str, float, torch.Tensor]]:
    """(name, weight, mean) of every term; of several processes this one's part of it, by its share `part`. The mean is
    over rows, by sample weight; with several teachers (peers), over them too. Terms that tap layers get the batch as it
    is, the others one row per position that counts, and are 0 where none does."""
    found = []
    for b in bound:
        teacher = teacher_signals(b.term, signals)
        own, ours = rows.head(b.term.output), head(seen, b.term.output)
        means, batch = [], own.batch if b.term.on else own.flat
        given = [(ours, one, batch) for one in (teacher if isinstance(teacher, list) else [teacher])]
        if b.across:
            from edgekd.training.across import joined

            given = [joined(b, *one) for one in given]
        if not len(given[0][2].index):
            found.append((b.name, b.term.at(share, agreement)[0], ours.output.sum()))
            continue
        for seen_now, one, batch in given:
            weight, losses = b.rows(seen_now, one, batch, share, agreement)
            means.append(losses if losses.ndim == 0 else (losses * batch.weight).sum() / batch.weight.sum())
        mean = means[0] if len(means) == 1 else sum(means) / len(means)
        found.append((b.name, weight, mean if part is None else mean * part.within(b)))
    return found


def settings_at(bound: Sequence[Bound], share: float, agreement: Mapping[str, float] | None) -> dict[str, float]:
    """{term.setting: value} of all settings with a schedule, for the log."""
    found = {}
    for b in bound:
        weight, hyper = b.term.at(share, agreement)
        found |= {f"{b.name}.{name}": weight if name == "weight" else hyper[name] for name in b.term.schedule}
    return found


def terms_for(terms: Sequence[Term], names: Sequence[str], number: int) -> tuple[Term, ...]:
    """The terms of one of the models `names` that learn together, the student first. A term that names one of them is
    for the others; one that taps layers or names "ema" is for the student. Without names every model has all terms."""
    chosen = [term for term in terms if not names or term.teacher != names[number]]
    return tuple(term for term in chosen if not names or number == 0 or not (term.on or term.teacher == EMA))


def total(parts: Sequence[tuple[str, float, torch.Tensor]]) -> torch.Tensor:
    """The sum of weight x mean."""
    whole = None
    for _, weight, mean in parts:
        whole = weight * mean if whole is None else whole + weight * mean
    return whole


def gradient_norms(
    parts: Sequence[tuple[str, float, torch.Tensor]], parameters: Sequence[torch.Tensor]
) -> dict[str, float]:
    """{term: Euclidean norm of the gradient of weight x mean with respect to `parameters`}."""
    import torch

    found = {}
    for name, weight, mean in parts:
        if not mean.requires_grad:
            found[name] = 0.0
            continue
        gradients = torch.autograd.grad(weight * mean, parameters, retain_graph=True, allow_unused=True)
        gradients = ranks.now().added(gradients, parameters)
        found[name] = (
            torch.stack([g.float().norm() for g in gradients if g is not None] or [torch.zeros(())]).norm().item()
        )
    return found


def tapped(terms: Sequence[Term], teacher: str | None = None) -> tuple[str, ...]:
    """The paths that terms tap: in the student, or in the teacher of this name ("": the teacher of terms that name
    none)."""
    if teacher is None:
        return tuple(dict.fromkeys(path for term in terms for path, _ in term.on))
    chosen = [t for t in terms if t.needs_teacher() and (t.teacher or "") in ("", teacher)]
    return tuple(dict.fromkeys(path for term in chosen for _, path in term.on))
