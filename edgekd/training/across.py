"""Terms that compare rows: with several processes they see the rows of all. Whether a term does is found by calling it
on a whole batch and on half of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from edgekd.errors import THEIRS
from edgekd.inputs import each
from edgekd.models import device
from edgekd.records import Batch, Signals
from edgekd.training import ranks
from edgekd.training.positions import Rows, head
from edgekd.training.terms import Bound, is_module, looked_at, teacher_signals


def joined(bound: Bound, seen: Signals, teacher: Signals | None, batch: Batch) -> tuple[Any, ...]:
    """(the student's signals, the teacher's, the batch) of all processes. A built-in term does not look at inputs."""
    group, (seen, teacher) = ranks.now(), looked_at(bound.term, seen, teacher)
    of_all = lambda value: each(value, group.gathered)
    tags = None if batch.tags is None else group.gathered_objects(batch.tags)
    batch = _over(batch, of_all, tags)
    if ":" in bound.term.use:
        batch = dataclasses.replace(batch, inputs=of_all(batch.inputs))
    return _signals(seen, of_all), None if teacher is None else _signals(teacher, of_all), batch


def compares_rows(bound: Bound, dry: tuple[Signals, Mapping[str, Any], Any]) -> bool:
    """Whether a row's loss depends on other rows: one number for the batch, or other losses of the first half where the
    second is left out. `dry`: a dry run's signals, the teachers' and the rows; outputs and taps are made random."""
    seen, signals, rows = dry
    own = rows.head(bound.term.output) if isinstance(rows, Rows) else None
    batch = rows if own is None else own.batch if bound.term.on else own.flat
    teacher = teacher_signals(bound.term, signals)
    if len(batch.index) < 2:
        return True
    call: Any = bound.call
    was = call.training if is_module(call) else None
    try:
        with torch.no_grad(), device.forked(batch.index.device):
            torch.manual_seed(0)
            ours, theirs = (
                None if s is None else _signals(s, _noise) for s in (head(seen, bound.term.output), teacher)
            )
            call.eval() if was is not None else None
            whole, half = bound.rows(ours, theirs, batch, 0.5)[1], len(batch.index) // 2
            if whole.ndim == 0:
                return True
            first = lambda value: each(value, lambda t: t[:half] if t.ndim and len(t) == len(batch.index) else t)
            tags = None if batch.tags is None else list(batch.tags[:half])
            cut = dataclasses.replace(_over(batch, first, tags), inputs=first(batch.inputs))
            less = [None if s is None else _signals(s, first) for s in (ours, theirs)]
            alone = bound.rows(less[0], less[1], cut, 0.5)[1]
            return not torch.allclose(whole[:half], alone, rtol=1e-3, atol=1e-5)
    except THEIRS:
        return True
    finally:
        if was is not None:
            call.train(was)


def _noise(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor


def _over(batch: Batch, change: Callable[[Any], Any], tags: Any) -> Batch:
    """The batch with all but its inputs changed."""
    given = {name: getattr(batch, name) for name in ("labels", "index", "weight", "part", "lengths")}
    made = {name: None if value is None else change(value) for name, value in given.items()}
    return dataclasses.replace(batch, **made, tags=tags, rows=None)


def _signals(signals: Signals, change: Callable[[Any], Any]) -> Signals:
    return Signals(
        None if signals.output is None else each(signals.output, change),
        {path: change(tap) for path, tap in signals.taps.items()},
        None if signals.label is None else each(signals.label, change),
        signals.kind,
        {name: _signals(one, change) for name, one in signals.heads.items()},
    )
