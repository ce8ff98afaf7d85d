"""Loss terms tried before training: each is called on a few samples with fresh models, and on random outputs, where
value and gradient must react."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import THEIRS, UsageError
from edgekd.models import taps
from edgekd.records import Signals, Task
from edgekd.training.terms import Bound, Term, bind, is_module, terms

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.data.columns import Columns
    from edgekd.records import Batch

# outputs of models that end in a softmax or sigmoid are shares
DRAWS = (("scores", 1.0), ("scores", 10.0), ("shares", 1.0)) * 2
ROUNDING = 1e-6  # a gradient that is this share of what the value changes by is float32's rounding


def rehearse(
    losses: Sequence[Mapping[str, Any]],
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

    forward = task.forward or (lambda model, inputs: model(inputs))
    batch = take(columns, telling(columns.labels, len(columns)))
    every = terms(losses)
    if every and not any(term.at(share, {term.teacher or "": share})[0] for term in every for share in shares(term)):
        yield 0, "the weights of all losses are 0: nothing would be learned", "give one a weight above 0"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
            shapes, hint = (
                "",
                "name a loss that fits outputs and labels" if not term.on else "tap values that fit each other",
            )
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
                        f"; teacher's {', '.join(f'{p} {_shape(t)}' for p, t in taught.taps.items())}"
                        if taught is not None
                        else ""
                    )
                dry = (seen, {term.teacher or "": taught}, batch)
                (bound,) = bind((term,), lambda dry=dry: dry)
                _, rows = bound.rows(seen, taught, batch, 0.0)
                if rows.ndim and tuple(rows.shape) != (len(batch.index),):
                    yield (
                        number,
                        f"`{term.use}` gives shape {list(rows.shape)} for {len(batch.index)} samples",
                        "one value per sample, or one in all",
                    )
                elif not rows.requires_grad:
                    yield (
                        number,
                        f"`{term.use}` has no gradient with respect to the student",
                        "don't detach the student's output",
                    )
                elif not bool(rows.isfinite().all()):
                    text = (
                        f"`{term.use}` gives {rows[~rows.isfinite()][0].item() if rows.ndim else rows.item()} "
                        f"before any training ({shapes})"
                    )
                    yield number, text, unfinite(columns.labels) or "look for logarithms, roots and divisions of 0"
                else:
                    rows.sum().backward(retain_graph=True)
                    still = inert(bound, seen, taught, batch)
                    if still:
                        yield number, f"`{term.use}` would teach nothing ({shapes}): on random outputs {still}", hint
                    elif told is not None:
                        told.append(_line(term, bound, seen, taught))
            except THEIRS as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
                if isinstance(error, UsageError):
                    hint = error.problems[0].hint or hint
                elif ":" in term.use:
                    hint = (
                        f"it was tried on {len(batch.index)} samples: a loss takes batches of any size, as "
                        "(student, teacher, batch)"
                    )
                if shown == "label" and not isinstance(error, UsageError):
                    kind, reason, hint = (
                        "",
                        "the teacher shows labels only (a black box), the term needs more",
                        'use = "hard" learns from its labels',
                    )
                yield number, f"`{term.use}` can't work on this task ({shapes}): {kind}{reason}", hint
            student.zero_grad(set_to_none=True)


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


def shares(term: Term) -> list[float]:
    """The shares of a training at which a term is tried: the points of its schedule, and between them."""
    points = sorted({0.0, 1.0, *(float(share) for curve in term.schedule.values() for share, _ in curve)})
    return (
        sorted({*points, *((a + b) / 2 for a, b in zip(points, points[1:], strict=False))}) if term.schedule else [0.0]
    )


def inert(bound: Bound, seen: Signals, taught: Signals | None, batch: Batch) -> str:
    """Why a term can't react to the student's output or taps, on random ones and on `seen`; empty if it does at any
    share at which it weighs something. What raises on random outputs is left out: a loss of one's own may take no
    others than its model gives."""
    term, values, drawn, steepest = bound.term, [], [], 0.0
    weighed = [s for s in shares(term) if term.at(s, {term.teacher or "": s})[0]]
    for share in weighed:
        for number, kind in enumerate((None, *DRAWS)):
            ours = seen if kind is None else _drawn(seen, kind, 2 * number, True)
            theirs = taught if kind is None else _drawn(taught, kind, 2 * number + 1, False)
            found = _pull(bound, ours, theirs, batch, share, {term.teacher or "": share})
            if found is not None:
                values.append(found[0])
                drawn += [found[0]] if kind is not None else []
                steepest = max(steepest, found[1])
    if not weighed:
        return ""  # it is switched off
    if not values:
        return "and on those of fresh models its value or gradient is never finite"
    told = drawn if len(drawn) > 1 else values  # a model's own outputs may be of any size, and the gradient is not
    spread = max(told) - min(told)
    if len(told) == 1 and steepest:
        return ""  # one value tells nothing of others
    if not steepest > ROUNDING * spread:
        return "its gradient is always 0" + ("" if spread else f", its value always {values[0]:g}")
    return "" if spread else f"its value is always {values[0]:g}"


def _pull(
    bound: Bound, ours: Signals, theirs: Signals | None, batch: Batch, share: float, agreement: Mapping[str, float]
) -> tuple[float, float] | None:
    """(value, greatest entry of the gradient by the student's output and taps); None where that can't be had, or is not
    finite."""
    import torch

    leaves = [t for t in _tensors(ours) if t.requires_grad]
    try:
        value = bound.rows(ours, theirs, batch, share, agreement)[1].sum()
        gradients = (
            torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) if value.requires_grad else ()
        )
    except THEIRS:  # (a loss of one's own; what it says of outputs that a model gives was told already)
        return None
    steepest = max((g.abs().max().item() for g in gradients if g is not None and g.numel()), default=0.0)
    return (value.item(), steepest) if np.isfinite([value.item(), steepest]).all() else None


def _drawn(like: Signals | None, kind: tuple[str, float], seed: int, learns: bool) -> Signals | None:
    """Random signals of the same shapes and types."""
    import torch

    if like is None:
        return None
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: draw(value) for name, value in x.items()}
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        made = kind[1] * torch.randn(x.shape, generator=generator)
        if kind[0] == "shares":
            made = made.softmax(-1) if made.ndim > 1 and made.shape[-1] > 1 else made.sigmoid()
        return made.to(x.dtype).requires_grad_(learns)

    label = None if like.label is None else like.label[torch.randperm(len(like.label), generator=generator)]
    return Signals(draw(like.output), {path: draw(tap) for path, tap in like.taps.items()}, label)


def _tensors(signals: Signals) -> list[torch.Tensor]:
    import torch

    outputs = list(signals.output.values()) if isinstance(signals.output, Mapping) else [signals.output]
    return [x for x in (*outputs, *signals.taps.values()) if isinstance(x, torch.Tensor)]


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
