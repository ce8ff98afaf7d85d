"""The supervision of a student: given teachers, an ensemble of them, the moving average of its own weights, its
peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.components import Use
from edgekd.errors import THEIRS
from edgekd.models import device, taps
from edgekd.models.scores import predicted
from edgekd.records import Batch, Signals
from edgekd.training.loss_checks import telling
from edgekd.training.positions import Rows, rows_of
from edgekd.training.terms import EMA, PEERS, Term, is_module, tapped

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.data.columns import Columns
    from edgekd.outputs import Output
    from edgekd.training.settings import Training


class Supervision:
    """What supervises the students of one training: given teachers, their ensemble, the moving average of the student's
    weights, and the other students."""

    def __init__(
        self,
        students: Sequence[nn.Module],
        terms: Sequence[Term],
        settings: Training,
        teachers: dict,
        forward: Callable,
        autocast: Callable,
        names: Sequence[str] = (),
    ):
        from edgekd.teachers.ema import Ema

        self.given, self.peers, self.names = teachers, len(students) > 1, names
        named = [term.teacher or "" for term in terms if term.needs_teacher()]
        self.single = next(iter(teachers)) if len(teachers) == 1 else None
        self.combine = None
        if "" in named and len(teachers) > 1:
            self.combine = ensemble(settings.combine, tuple(teachers))
        self.ema = None
        if EMA in named:

            def see(module: nn.Module, batch: Batch) -> Signals:
                with autocast():
                    return Signals(forward(module, batch.inputs), look())

            self.ema = Ema(students[0], settings.ema, see)
            look = taps.watch(self.ema.average, tapped([t for t in terms if t.teacher == EMA], EMA))

    def modules(self) -> list[nn.Module]:
        """The modules whose state a checkpoint must hold."""
        return [part for part in (self.combine, self.ema) if part is not None and is_module(part)]

    def before(self, rows: Rows) -> dict[str, Signals]:
        """{teacher: its signals for a batch}, the same for every student; "" is the only teacher, or the ensemble."""
        batch = rows.batch
        signals = {name: rows.of(teach(batch)) for name, teach in self.given.items()}
        if self.single is not None:
            signals[""] = signals[self.single]
        elif self.combine is not None:
            signals[""] = self._combined({name: signals[name] for name in self.given}, rows.flat)
        if self.ema is not None:
            signals[EMA] = rows.of(self.ema(batch))
        return signals

    def _combined(self, signals: Mapping[str, Signals], batch: Batch) -> Signals:
        if len(batch.index):
            return self.combine(signals, batch)
        if is_module(self.combine):  # its own loss is that of the batch before
            self.combine.own = None
        return next(iter(signals.values()))

    def of(self, number: int, seen: Sequence[Signals], signals: Mapping[str, Signals]) -> dict[str, Any]:
        """{teacher: its signals} for student `number`, with those of its peers, detached from their gradients, and by
        name where they have names."""
        if not self.peers:
            return dict(signals)
        found = {
            i: Signals(s.output.detach(), {k: t.detach() for k, t in s.taps.items()}, kind=s.kind)
            for i, s in enumerate(seen)
            if i != number
        }
        others, named = list(found.values()), {self.names[i]: s for i, s in found.items() if self.names}
        return {"": others, **signals, PEERS: others, **named}

    def after(self, student: nn.Module) -> None:
        """Updates the moving average after an optimizer step."""
        if self.ema is not None:
            self.ema.update(student)


def ensemble(combine: Use | None, names: Sequence[str]) -> Callable[[Mapping[str, Signals], Batch], Signals]:
    """The part that a recipe's `combine` names, ready to be called; None: the mean of probabilities."""
    combine = combine or Use("ensembles", "mean")
    return combine(tuple(names), 0) if is_module(combine.part()) else combine


def check_ensemble(
    combine: Use | None,
    shows: Mapping[str, str],
    outputs: Sequence[int],
    columns: Columns,
    output: Output | None = None,
) -> list[tuple[str, str]]:
    """[(problem, hint)] of an ensemble of teachers with outputs [B, *outputs]. `shows`: {teacher's name: what it shows
    of them}. It is called once on random outputs, with a sample of every label and tag; where a sample has several
    labels, with some samples."""
    import numpy as np
    import torch

    from edgekd.data.columns import take

    labels = (
        columns.labels.tolist() if columns.labels is not None and columns.labels.ndim == 1 else [None] * len(columns)
    )
    kinds = dict(zip(zip(labels, columns.tags or [()] * len(columns), strict=True), range(len(columns)), strict=True))
    chosen = set(kinds.values())
    if output is not None and columns.labels is not None and columns.labels.ndim > 1:
        chosen |= set(telling(columns.labels, len(columns)).tolist())
    batch = take(columns, np.array(sorted(chosen), dtype=np.int64))
    drawn = torch.randn(len(batch.index), *outputs, generator=torch.Generator().manual_seed(0))
    rows = rows_of(output, batch, Signals(drawn))
    try:
        ensemble(combine, tuple(shows))(
            {name: rows.of(_shown(drawn, how, output)) for name, how in shows.items()}, rows.flat
        )
    except THEIRS as error:
        known = isinstance(error, ValueError)
        return [
            (
                str(error) if known else f"can't work on this task: {type(error).__name__}: {error}",
                "`edgekd list ensembles` shows what each needs",
            )
        ]
    return []


def _shown(drawn: torch.Tensor, how: str, output: Output | None) -> Signals:
    return Signals(None, label=predicted(output, drawn)) if how == "label" else Signals(drawn)


def dry(
    number: int,
    students: Sequence[nn.Module],
    see: Callable,
    supervision: Supervision,
    source: Callable,
    output: Output | None = None,
) -> tuple[Signals, dict, Batch]:
    """(a student's signals, its teachers' signals, the batch) for the first batch, in evaluation mode and with no side
    effects: for parts that need shapes."""
    import torch

    batch = next(iter(source(0, 0)))
    with torch.no_grad(), device.forked(device.of(students[0])):
        for one in students:
            one.eval()
        raw = [see(i, batch) for i in range(len(students))]
        rows = rows_of(output, batch, raw[0])
        seen = [rows.of(s) for s in raw]
        signals = supervision.of(number, seen, supervision.before(rows))
        for one in students:
            one.train()
    return seen[number], {name: g[0] if isinstance(g, list) else g for name, g in signals.items()}, rows.flat
