"""Loss terms as a recipe names them: which part, its weight and schedule, where in the models it looks and which teacher it hears."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekd import components, taps
from edgekd.records import Batch, Signals, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

KEYS = ("use", "weight", "on", "teacher", "schedule")  # what a term says beside its part's settings
PEERS, EMA = "peers", "ema"  # teachers that a training makes by itself
BY = ("training", "agreement")  # what schedules follow: the share of the training that is done, or agreement with the teacher
Curve = Sequence[Sequence[float]]  # [[share, value], ...]: straight lines between, flat outside


@dataclass(frozen=True)
class Term:
    """One loss of a recipe: the part `use`, its weight, its own settings (`hyper`). `on`: paths in student and teacher; `teacher`: which of
    the stage's teachers, "peers", or "ema" (None: all that the stage has); `schedule`: {"weight" or a setting: curve}, over the training; or,
    with `by` "agreement", over the share of validation samples that the student answers as the teacher does (see `agreement`)."""

    use: str
    weight: float
    hyper: Mapping[str, Any] = field(default_factory=dict)
    on: tuple[tuple[str, str], ...] = ()
    teacher: str | None = None
    schedule: Mapping[str, Curve] = field(default_factory=dict)
    by: str = "training"

    def function(self) -> Callable:
        return components.find("losses", self.use)

    def needs_teacher(self) -> bool:
        """Whether the part's `teacher` is not optional (one that is not annotated is taken to be needed)."""
        parameter = inspect.signature(self.function()).parameters.get("teacher")
        if parameter is None:
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


def terms(losses: Sequence[Mapping[str, Any]]) -> tuple[Term, ...]:
    """Recipe tables {use, weight, on, teacher, schedule, ...hyper} as terms."""
    return tuple(
        Term(
            t["use"],
            float(t.get("weight", 1.0)),
            {k: v for k, v in t.items() if k not in KEYS},
            taps.pairs(t.get("on") or ()),
            t.get("teacher"),
            {k: v for k, v in (t.get("schedule") or {}).items() if k != "by"},
            (t.get("schedule") or {}).get("by", "training"),
        )
        for t in losses
    )


@dataclass(frozen=True)
class Bound:
    """A term ready to be called: its name in logs, and its part, built from the shapes of a dry run if it learns."""

    name: str
    term: Term
    call: Callable

    def rows(
        self, seen: Signals, guide: Signals | None, batch: Batch, share: float, agreement: Mapping[str, float] | None = None
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
    return ours, Signals(guide.output, {path: guide.taps[path] for _, path in term.on if path in guide.taps}, guide.label)


def is_module(part: Any) -> bool:
    from torch import nn

    return isinstance(part, nn.Module) or (isinstance(part, type) and issubclass(part, nn.Module))


def bind(terms: Sequence[Term], signals: Callable[[], tuple[Signals, Mapping[str, Signals], Batch]]) -> list[Bound]:
    """Every term with its part. `signals()` gives the student's, the teachers' and the batch of a dry run, for parts that learn."""
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
    """(name, weight, mean) of every term. A mean is over rows by sample weight, divided once; of several teachers (peers), over them too."""
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


def gradient_norms(parts: Sequence[tuple[str, float, torch.Tensor]], parameters: Sequence[torch.Tensor]) -> dict[str, float]:
    """{term: Euclidean norm of the gradient of weight x mean by the student's parameters}."""
    import torch

    found = {}
    for name, weight, mean in parts:
        if not mean.requires_grad:
            found[name] = 0.0
            continue
        gradients = torch.autograd.grad(weight * mean, parameters, retain_graph=True, allow_unused=True)
        found[name] = torch.stack([g.float().norm() for g in gradients if g is not None] or [torch.zeros(())]).norm().item()
    return found


def tapped(terms: Sequence[Term], teacher: str | None = None) -> tuple[str, ...]:
    """The paths that terms look at: in the student, or in the teacher of this name ("": that of terms which name none)."""
    if teacher is None:
        return tuple(dict.fromkeys(path for term in terms for path, _ in term.on))
    chosen = [t for t in terms if t.needs_teacher() and (t.teacher or "") in ("", teacher)]
    return tuple(dict.fromkeys(path for term in chosen for _, path in term.on))


def rehearse(
    losses: Sequence[Mapping[str, Any]],
    student: nn.Module,
    guides: Mapping[str, nn.Module],
    task: Task,
    columns: Any,
    shows: Mapping[str, str] | None = None,
    told: list[str] | None = None,
) -> Iterator[tuple[int, str, str]]:
    """Calls every term once on a few samples and goes one step back: (number, what is wrong, hint) of those that can't work.

    `guides`: {teacher's name: module}, "" for the one of terms that name none; `shows`: {teacher's name: what others see of it};
    `told` gets a line for every term that works: its weight, what it looks at, what it learns."""
    import numpy as np
    import torch

    from edgekd.errors import UsageError
    from edgekd.sources.columns import take

    forward = task.forward or (lambda model, inputs: model(inputs))
    batch = take(columns, np.arange(min(4, len(columns)), dtype=np.int64))
    every = terms(losses)
    with torch.random.fork_rng(devices=[]):
        for number, term in enumerate(every):
            guide = guides.get(term.teacher or "") if term.needs_teacher() else None
            shown = (shows or {}).get(term.teacher or "", "logits")
            wrong = taps.unknown(student, (path for path, _ in term.on))
            wrong += taps.unknown(guide, (path for _, path in term.on)) if guide is not None else []
            if term.on and guide is not None and shown != "logits":
                yield number, f"`{term.use}` looks inside a teacher that shows its {shown} only", 'shows = "logits"'
                continue
            if wrong:
                yield from ((number, f"`{term.use}`: {p.place}: {p.message}", p.hint) for p in wrong)
                continue
            shapes = ""
            try:
                see = taps.watch(student, [path for path, _ in term.on])
                seen = Signals(forward(student.eval(), batch.inputs), see())
                taught = None
                if guide is not None:
                    look = taps.watch(guide, [path for _, path in term.on])
                    with torch.no_grad():
                        taught = Signals(forward(guide.eval(), batch.inputs), look())
                    if shown == "label":
                        taught = Signals(None, label=taught.output.argmax(-1))
                shapes = f"outputs {_shape(seen.output)}, labels {_shape(batch.labels)}"
                if term.on:
                    shapes = f"{', '.join(f'{p} {_shape(t)}' for p, t in seen.taps.items())}" + (
                        f"; teacher's {', '.join(f'{p} {_shape(t)}' for p, t in taught.taps.items())}" if taught is not None else ""
                    )
                dry = (seen, {term.teacher or "": taught}, batch)
                (bound,) = bind((term,), lambda dry=dry: dry)
                _, rows = bound.rows(seen, taught, batch, 0.0)
                if rows.ndim and tuple(rows.shape) != (len(batch.index),):
                    yield number, f"`{term.use}` gives shape {list(rows.shape)} for {len(batch.index)} samples", "one value per sample, or one in all"
                elif not rows.requires_grad:
                    yield number, f"`{term.use}` has no gradient with respect to the student", "don't detach the student's output"
                else:
                    rows.sum().backward()
                    if told is not None:
                        told.append(_line(term, bound, seen, taught))
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
                hint = "name a loss that fits outputs and labels" if not term.on else "tap values that fit each other"
                if shown == "label":
                    kind, reason, hint = "", "the teacher shows labels only (a black box), the term needs more", 'use = "hard" learns from its labels'
                yield number, f"`{term.use}` can't work on this task ({shapes}): {kind}{reason}", hint
            student.zero_grad(set_to_none=True)


def _line(term: Term, bound: Bound, seen: Signals, taught: Signals | None) -> str:
    """What a term does, for people: `hint: weight 0.5; layer2 [4, 16, 8, 8] -> layer3 [4, 64, 8, 8]; learns 1,088 parameters`."""
    ends = [term.at(share, {term.teacher or "": share}) for share in (0.0, 1.0)]
    weight = " to ".join(dict.fromkeys(f"{w:g}" for w, _ in ends))
    found = [f"{term.use}: weight {weight}"]
    found[0] += "".join(f", {name} {ends[0][1][name]:g} to {ends[1][1][name]:g}" for name in term.schedule if name != "weight")
    found[0] += f" over the {term.by}" if term.schedule else ""
    if term.teacher:
        found[0] += f", hears {term.teacher}"
    for ours, theirs in term.on:
        right = f" -> {theirs} {_shape(taught.taps[theirs])}" if taught is not None and theirs in taught.taps else ""
        found.append(f"{ours} {_shape(seen.taps[ours])}{right}")
    if is_module(bound.call):
        count = sum(p.numel() for p in bound.call.parameters())
        found.append(f"learns {count:,} parameters" if count else "nothing to learn, shapes are equal")
    return "; ".join(found)


def _shape(value: Any) -> str:
    return "none" if value is None else str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
