"""Checks of loss terms before training: each is called on a few samples with untrained models, and on random outputs,
where its value and gradient must change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import THEIRS, UsageError
from edgekd.inputs import positional
from edgekd.models import taps
from edgekd.models.scores import shown
from edgekd.records import Signals, Task
from edgekd.training.loss_reaction import inert, shares
from edgekd.training.positions import head, rows_of
from edgekd.training.terms import Bound, Term, bind, is_module

if TYPE_CHECKING:
    from torch import nn

    from edgekd.data.columns import Columns
    from edgekd.records import Batch

SINGLE_VALUE = "one value per sample, or one in all"


def check_terms(
    losses: Sequence[Term],
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    task: Task,
    columns: Columns,
    shows: Mapping[str, str] | None = None,
    told: list[str] | None = None,
) -> Iterator[tuple[int, str, str]]:
    """Calls every term on a few samples, runs one backward pass, and calls it on random outputs. Yields (number of the
    term, problem, hint) of the terms that can't work.

    `teachers`: {teacher's name: module}, "" for the teacher of terms that name none; `shows`: {teacher's name: what it
    shows of its outputs}; `told` gets a line for each term that works: its weight, its taps, its parameters."""
    import torch

    from edgekd.data.columns import take

    rows = [telling(labels, len(columns)) for labels in positional(columns.labels)]
    batch = take(columns, np.unique(np.concatenate(rows)) if len(rows) > 1 else rows[0])
    if losses and not any(term.at(share, {term.teacher or "": share})[0] for term in losses for share in shares(term)):
        yield 0, "the weights of all losses are 0: nothing would be trained", "give one a weight above 0"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, term in enumerate(losses):
            wrong = _of_output(term, task)
            if wrong:
                yield number, *wrong
                continue
            teacher = teachers.get(term.teacher or "") if term.needs_teacher() else None
            shown = (shows or {}).get(term.teacher or "", "logits")
            trial = _Trial(term, student, teacher, task, batch, shown)
            labels = columns.labels.get(term.output) if isinstance(columns.labels, Mapping) else columns.labels
            yield from ((number, *found) for found in trial.problems(labels, told))
            student.zero_grad(set_to_none=True)
        unsaid = [name for name, o in task.heads.items() if o.kind not in ("embeddings", "raw")]
        learned = {term.output for term in losses}
        if told is not None and learned - {""}:
            told += [f"no loss is on the output {name}" for name in unsaid if name not in learned]


def _of_output(term: Term, task: Task) -> tuple[str, str] | None:
    """(problem, hint) of the output that a term names, or has to name."""
    names = tuple(task.heads) or tuple(task.outputs)
    if task.heads and not term.output and not term.on:
        text = f"`{term.use}` has to say which output it is on: the task has {', '.join(names)}"
        return text, f'output = "{names[0]}" in the term, and a term for each output'
    if term.output and term.output not in names:
        return f"`{term.use}` is on the output {term.output}, which the task doesn't have", f"one of {', '.join(names)}"
    return None


class _Trial:
    """One term on a few samples; `shapes`: the shapes of its inputs, for messages."""

    def __init__(self, term: Term, student: nn.Module, teacher: nn.Module | None, task: Task, batch: Batch, shown: str):
        self.term, self.student, self.teacher, self.task = term, student, teacher, task
        self.batch, self.shown, self.shapes = batch, shown, ""

    def problems(self, labels: np.ndarray | None, told: list[str] | None) -> list[tuple[str, str]]:
        """[(problem, hint)]; `told` gets a line if there is none."""
        term, teacher = self.term, self.teacher
        if term.on and teacher is not None and self.shown != "logits":
            return [(f"`{term.use}` taps layers of a teacher that shows its {self.shown} only", 'shows = "logits"')]
        wrong = taps.unknown(self.student, (path for path, _ in term.on))
        wrong += taps.unknown(teacher, (path for _, path in term.on)) if teacher is not None else []
        if wrong:
            return [(f"`{term.use}`: {p.place}: {p.message}", p.hint) for p in wrong]
        try:
            seen, taught = self.signals()
            self.shapes = self.described(seen, taught)
            rows = rows_of(self.task.declared, self.batch, seen)
            own = rows.head(term.output)
            self.batch = own.batch if term.on else own.flat
            seen, taught = (None if s is None else head(rows.of(s), term.output) for s in (seen, taught))
            assert seen is not None
            dry = (seen, {term.teacher or "": taught}, self.batch)
            (bound,) = bind((term,), lambda: dry)
            found = self.inspected(bound, seen, taught, labels)
            if not found and told is not None:
                told.append(_line(term, bound, seen, taught))
            return found
        except THEIRS as error:
            return [self.raised(error)]

    def signals(self) -> tuple[Signals, Signals | None]:
        """(the student's signals, the teacher's or None) for the batch, as the term gets them."""
        import torch

        look = taps.watch(self.student, [path for path, _ in self.term.on])
        seen = Signals(self.task.call(self.student.eval(), self.batch.inputs), look())
        if self.teacher is None:
            return seen, None
        look = taps.watch(self.teacher, [path for _, path in self.term.on])
        with torch.no_grad():
            taught = Signals(self.task.call(self.teacher.eval(), self.batch.inputs), look())
        if self.shown != "label":
            return seen, taught
        labels = shown(self.task.declared, taught.output)
        return seen, Signals(None, label=labels if self.task.heads else labels[""])

    def described(self, seen: Signals, taught: Signals | None) -> str:
        if not self.term.on:
            return f"outputs {_shape(seen.output, self.term)}, labels {_shape(self.batch.labels, self.term)}"
        tapped = lambda signals: ", ".join(f"{path} {_shape(value)}" for path, value in signals.taps.items())
        return tapped(seen) + (f"; teacher's {tapped(taught)}" if taught is not None else "")

    def inspected(
        self, bound: Bound, seen: Signals, taught: Signals | None, labels: np.ndarray | None
    ) -> list[tuple[str, str]]:
        """[(problem, hint)] of the values and gradients."""
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
        return (
            [(f"`{use}` would not train the student ({self.shapes}): on random outputs {still}", self.fits)]
            if still
            else []
        )

    @property
    def fits(self) -> str:
        return (
            "tap layers whose values have shapes that fit"
            if self.term.on
            else "choose a loss that fits outputs and labels"
        )

    def raised(self, error: BaseException) -> tuple[str, str]:
        """(problem, hint) of a term that raised `error`."""
        text = str(error).strip()
        kind, reason, hint = f"{type(error).__name__}: ", text.splitlines()[0] if text else "", self.fits
        if self.task.heads and not self.term.output:
            hint = f"a term that reads outputs or labels says which: output = one of {', '.join(self.task.heads)}"
        elif isinstance(error, UsageError):
            kind, hint = "", error.problems[0].hint or hint
        elif self.shown == "label":
            kind, reason = "", "the teacher shows labels only (a black box), the term needs more"
            hint = 'use = "hard" learns from its labels'
        elif ":" in self.term.use:
            count = len(self.batch.index)
            hint = f"it was called with {count} samples: a loss takes (student, teacher, batch) of any batch size"
        return f"`{self.term.use}` can't work on this task ({self.shapes}): {kind}{reason}", hint


def telling(labels: np.ndarray | None, count: int) -> np.ndarray:
    """Rows to check losses with: the first four, and those of the smallest label, the greatest, and the first that is
    not finite."""
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
    """A hint on labels that are not finite; "" if all are finite."""
    if labels is None or labels.dtype.kind != "f":
        return ""
    bad = ~np.isfinite(labels.reshape(len(labels), -1)).all(1)
    return (
        f"{bad.sum()} of {len(labels)} labels are NaN or infinite, the first at {bad.argmax()}: leave these samples out"
        if bad.any()
        else ""
    )


def _line(term: Term, bound: Bound, seen: Signals, taught: Signals | None) -> str:
    """A description of a term: `hint: weight 0.5; layer2 [4, 16, 8, 8] -> layer3 [4, 64, 8, 8]; learns 1,088
    parameters`."""
    ends = [term.at(share, {term.teacher or "": share}) for share in (0.0, 1.0)]
    weight = " to ".join(dict.fromkeys(f"{w:g}" for w, _ in ends))
    found = [f"{term.use}{f' on {term.output}' if term.output else ''}: weight {weight}"]
    found[0] += "".join(
        f", {name} {ends[0][1][name]:g} to {ends[1][1][name]:g}" for name in term.schedule if name != "weight"
    )
    found[0] += f" over the {term.by}" if term.schedule else ""
    if term.teacher:
        found[0] += f", supervised by {term.teacher}"
    for ours, theirs in term.on:
        right = f" -> {theirs} {_shape(taught.taps[theirs])}" if taught is not None and theirs in taught.taps else ""
        found.append(f"{ours} {_shape(seen.taps[ours])}{right}")
    if is_module(bound.call):
        count = sum(p.numel() for p in bound.call.parameters())  # type: ignore[attr-defined]
        found.append(f"learns {count:,} parameters" if count else "learns no parameters, shapes are equal")
    return "; ".join(found)


def _shape(value: Any, term: Term | None = None) -> str:
    """The shape of a tensor, of several that of the term's output."""
    value = value.get(term.output) if term is not None and isinstance(value, Mapping) else value
    return "none" if value is None else str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
