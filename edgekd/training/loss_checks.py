"""Loss terms tried before training: each is called on a few samples with fresh models, and on random outputs, where
value and gradient must react."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import THEIRS, UsageError
from edgekd.models import taps
from edgekd.records import Signals, Task
from edgekd.training.loss_reaction import inert, shares
from edgekd.training.terms import Bound, Term, bind, is_module

if TYPE_CHECKING:
    from torch import nn

    from edgekd.data.columns import Columns
    from edgekd.records import Batch

SINGLE_VALUE = "one value per sample, or one in all"


def rehearse(
    losses: Sequence[Term],
    student: nn.Module,
    guides: Mapping[str, nn.Module],
    task: Task,
    columns: Columns,
    shows: Mapping[str, str] | None = None,
    told: list[str] | None = None,
) -> Iterator[tuple[int, str, str]]:
    """Calls every term on a few samples, goes one step back, and tries it on random outputs: (number, what is wrong,
    hint) of those that can't work.

    `guides`: {teacher's name: module}, "" for the one of terms that name none; `shows`: {teacher's name: what others
    see of it}; `told` gets a line for every term that works: its weight, what it looks at, what it learns."""
    import torch

    from edgekd.data.columns import take

    batch = take(columns, telling(columns.labels, len(columns)))
    if losses and not any(term.at(share, {term.teacher or "": share})[0] for term in losses for share in shares(term)):
        yield 0, "the weights of all losses are 0: nothing would be learned", "give one a weight above 0"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, term in enumerate(losses):
            guide = guides.get(term.teacher or "") if term.needs_teacher() else None
            trial = _Trial(term, student, guide, task.call, batch, (shows or {}).get(term.teacher or "", "logits"))
            yield from ((number, *found) for found in trial.problems(columns.labels, told))
            student.zero_grad(set_to_none=True)


class _Trial:
    """One term on a few samples; `shapes` of what it was given, for messages."""

    def __init__(
        self, term: Term, student: nn.Module, guide: nn.Module | None, forward: Callable, batch: Batch, shown: str
    ):
        self.term, self.student, self.guide, self.forward = term, student, guide, forward
        self.batch, self.shown, self.shapes = batch, shown, ""

    def problems(self, labels: np.ndarray | None, told: list[str] | None) -> list[tuple[str, str]]:
        """[(what is wrong, hint)]; a line to `told` where nothing is."""
        term, guide = self.term, self.guide
        if term.on and guide is not None and self.shown != "logits":
            return [(f"`{term.use}` looks inside a teacher that shows its {self.shown} only", 'shows = "logits"')]
        wrong = taps.unknown(self.student, (path for path, _ in term.on))
        wrong += taps.unknown(guide, (path for _, path in term.on)) if guide is not None else []
        if wrong:
            return [(f"`{term.use}`: {p.place}: {p.message}", p.hint) for p in wrong]
        try:
            seen, taught = self.signals()
            self.shapes = self.described(seen, taught)
            dry = (seen, {term.teacher or "": taught}, self.batch)
            (bound,) = bind((term,), lambda: dry)
            found = self.inspected(bound, seen, taught, labels)
            if not found and told is not None:
                told.append(_line(term, bound, seen, taught))
            return found
        except THEIRS as error:
            return [self.raised(error)]

    def signals(self) -> tuple[Signals, Signals | None]:
        """What student and teacher show of the batch, as far as the term may see it."""
        import torch

        look = taps.watch(self.student, [path for path, _ in self.term.on])
        seen = Signals(self.forward(self.student.eval(), self.batch.inputs), look())
        if self.guide is None:
            return seen, None
        look = taps.watch(self.guide, [path for _, path in self.term.on])
        with torch.no_grad():
            taught = Signals(self.forward(self.guide.eval(), self.batch.inputs), look())
        return seen, Signals(None, label=taught.output.argmax(-1)) if self.shown == "label" else taught

    def described(self, seen: Signals, taught: Signals | None) -> str:
        if not self.term.on:
            return f"outputs {_shape(seen.output)}, labels {_shape(self.batch.labels)}"
        tapped = lambda signals: ", ".join(f"{path} {_shape(value)}" for path, value in signals.taps.items())
        return tapped(seen) + (f"; teacher's {tapped(taught)}" if taught is not None else "")

    def inspected(
        self, bound: Bound, seen: Signals, taught: Signals | None, labels: np.ndarray | None
    ) -> list[tuple[str, str]]:
        """What is wrong with the values and gradients."""
        use, count = self.term.use, len(self.batch.index)
        _, rows = bound.rows(seen, taught, self.batch, 0.0)
        if rows.ndim and tuple(rows.shape) != (count,):
            return [(f"`{use}` gives shape {list(rows.shape)} for {count} samples", SINGLE_VALUE)]
        if not rows.requires_grad:
            text = f"`{use}` has no gradient with respect to the student"
            return [(text, "don't detach the student's output")]
        if not bool(rows.isfinite().all()):
            value = rows[~rows.isfinite()][0].item() if rows.ndim else rows.item()
            text = f"`{use}` gives {value} before any training ({self.shapes})"
            return [(text, unfinite(labels) or "look for logarithms, roots and divisions of 0")]
        rows.sum().backward(retain_graph=True)
        still = inert(bound, seen, taught, self.batch)
        return [(f"`{use}` would teach nothing ({self.shapes}): on random outputs {still}", self.fits)] if still else []

    @property
    def fits(self) -> str:
        return "tap values that fit each other" if self.term.on else "name a loss that fits outputs and labels"

    def raised(self, error: BaseException) -> tuple[str, str]:
        """What a term that raised is told by."""
        text = str(error).strip()
        kind, reason, hint = f"{type(error).__name__}: ", text.splitlines()[0] if text else "", self.fits
        if isinstance(error, UsageError):
            kind, hint = "", error.problems[0].hint or hint
        elif self.shown == "label":
            kind, reason = "", "the teacher shows labels only (a black box), the term needs more"
            hint = 'use = "hard" learns from its labels'
        elif ":" in self.term.use:
            count = len(self.batch.index)
            hint = f"it was tried on {count} samples: a loss takes batches of any size, as (student, teacher, batch)"
        return f"`{self.term.use}` can't work on this task ({self.shapes}): {kind}{reason}", hint


def telling(labels: np.ndarray | None, count: int) -> np.ndarray:
    """Rows to try losses on: the first four, and those of the least, the greatest and the first label that is not
    finite."""
    rows = list(range(min(4, count)))
    if labels is not None and labels.size and labels.dtype.kind in "biuf":
        each = labels.reshape(count, -1)
        whole = np.isfinite(each).all(1)
        rows += [
            int(at[pick])
            for at in [np.flatnonzero(whole)]
            if len(at)
            for pick in (each[at].min(1).argmin(), each[at].max(1).argmax())
        ]
        rows += np.flatnonzero(~whole)[:1].tolist()
    return np.array(list(dict.fromkeys(rows)), np.int64)


def unfinite(labels: np.ndarray | None) -> str:
    """What of the labels is not finite, for a hint; empty if all are."""
    if labels is None or labels.dtype.kind != "f":
        return ""
    bad = ~np.isfinite(labels.reshape(len(labels), -1)).all(1)
    return (
        f"{bad.sum()} of {len(labels)} labels are NaN or infinite, the first at {bad.argmax()}: leave these samples out"
        if bad.any()
        else ""
    )


def _line(term: Term, bound: Bound, seen: Signals, taught: Signals | None) -> str:
    """What a term does, for people: `hint: weight 0.5; layer2 [4, 16, 8, 8] -> layer3 [4, 64, 8, 8]; learns 1,088
    parameters`."""
    ends = [term.at(share, {term.teacher or "": share}) for share in (0.0, 1.0)]
    weight = " to ".join(dict.fromkeys(f"{w:g}" for w, _ in ends))
    found = [f"{term.use}: weight {weight}"]
    found[0] += "".join(
        f", {name} {ends[0][1][name]:g} to {ends[1][1][name]:g}" for name in term.schedule if name != "weight"
    )
    found[0] += f" over the {term.by}" if term.schedule else ""
    if term.teacher:
        found[0] += f", hears {term.teacher}"
    for ours, theirs in term.on:
        right = f" -> {theirs} {_shape(taught.taps[theirs])}" if taught is not None and theirs in taught.taps else ""
        found.append(f"{ours} {_shape(seen.taps[ours])}{right}")
    if is_module(bound.call):
        count = sum(p.numel() for p in bound.call.parameters())  # type: ignore[attr-defined]
        found.append(f"learns {count:,} parameters" if count else "nothing to learn, shapes are equal")
    return "; ".join(found)


def _shape(value: Any) -> str:
    return "none" if value is None else str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
