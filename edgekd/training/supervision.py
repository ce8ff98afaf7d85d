"""The supervision of a student: given teachers, an ensemble of them, the moving average of its own weights, its
peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.components import Use
from edgekd.errors import THEIRS
from edgekd.inputs import each, named
from edgekd.models import device, taps
from edgekd.models.scores import shown, steps_of
from edgekd.records import Batch, Signals
from edgekd.training.loss_checks import telling
from edgekd.training.positions import Rows, head, rows_of
from edgekd.training.terms import EMA, PEERS, Term, is_module, tapped

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.data.columns import Columns
    from edgekd.outputs import Output
    from edgekd.training.settings import Training
    from edgekd.training.shares import Share


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
        declared: Output | Mapping[str, Output] | None = None,
    ):
        from edgekd.teachers.ema import Ema

        self.given, self.peers, self.names = teachers, len(students) > 1, names
        asked = [term.teacher or "" for term in terms if term.needs_teacher()]
        self.single = next(iter(teachers)) if len(teachers) == 1 else None
        self.combine: Combined | None = None
        if "" in asked and len(teachers) > 1:
            self.combine = Combined(settings.combine, tuple(teachers), declared)
        self.ema = None
        if EMA in asked:

            def see(module: nn.Module, batch: Batch) -> Signals:
                with autocast():
                    return Signals(forward(module, batch.inputs), look())

            self.ema = Ema(students[0], settings.ema, see)
            look = taps.watch(self.ema.average, tapped([t for t in terms if t.teacher == EMA], EMA))

    def modules(self) -> list[nn.Module]:
        """The modules whose state a checkpoint must hold."""
        parts = [*(() if self.combine is None else self.combine.each.values()), self.ema]
        return [part for part in parts if part is not None and is_module(part)]

    def own_losses(self, part: Share | None) -> list[torch.Tensor]:
        """What ensembles that learn lost on the batch; of several batches or processes, their `part` of it."""
        each = {} if self.combine is None else self.combine.each
        found = {name: getattr(one, "own", None) for name, one in each.items()}
        return [v if part is None else v * part.own(name) for name, v in found.items() if v is not None]

    def before(self, rows: Rows) -> dict[str, Signals]:
        """{teacher: its signals for a batch}, the same for every student; "" is the only teacher, or the ensemble."""
        batch = rows.batch
        signals = {name: rows.of(teach(batch)) for name, teach in self.given.items()}
        if self.single is not None:
            signals[""] = signals[self.single]
        elif self.combine is not None:
            signals[""] = self.combine({name: signals[name] for name in self.given}, rows)
        if self.ema is not None:
            signals[EMA] = rows.of(self.ema(batch))
        return signals

    def of(self, number: int, seen: Sequence[Signals], signals: Mapping[str, Signals]) -> dict[str, Any]:
        """{teacher: its signals} for student `number`, with those of its peers, detached from their gradients, and by
        name where they have names."""
        if not self.peers:
            return dict(signals)
        found = {i: _detached(s) for i, s in enumerate(seen) if i != number}
        others, named = list(found.values()), {self.names[i]: s for i, s in found.items() if self.names}
        return {"": others, **signals, PEERS: others, **named}

    def after(self, student: nn.Module) -> None:
        """Updates the moving average after an optimizer step."""
        if self.ema is not None:
            self.ema.update(student)


def _detached(signals: Signals) -> Signals:
    """The same without gradients."""
    return Signals(
        each(signals.output, lambda z: z.detach()),
        {path: tap.detach() for path, tap in signals.taps.items()},
        kind=signals.kind,
        heads={name: _detached(one) for name, one in signals.heads.items()},
    )


class Combined:
    """Several teachers as one: the part that a recipe's `combine` names, for each of several outputs its own (`each`,
    under "" for the only output). None: the mean of probabilities, and of those of several outputs that have none the
    mean."""

    def __init__(self, combine: Use | None, names: Sequence[str], declared: Output | Mapping[str, Output] | None):
        outputs = declared if isinstance(declared, Mapping) else {"": None}
        self.each = {name: self._of(combine, names, output) for name, output in outputs.items()}

    @staticmethod
    def _of(combine: Use | None, names: Sequence[str], output: Output | None) -> Callable:
        scored = output is None or output.scored
        combine = combine or Use("ensembles", "mean" if scored else "mean_logits")
        return combine(tuple(names), 0) if is_module(combine.part()) else combine

    @staticmethod
    def _one(combine: Callable, signals: Mapping[str, Signals], batch: Batch) -> Signals:
        if len(batch.index):
            return combine(signals, batch)
        if is_module(combine):  # its own loss is that of the batch before
            combine.own = None  # type: ignore[attr-defined]
        return next(iter(signals.values()))

    def __call__(self, signals: Mapping[str, Signals], rows: Rows) -> Signals:
        """The ensemble's signals of the teachers', which are rows."""
        of = lambda name: {teacher: head(s, name) for teacher, s in signals.items()}
        made = {name: self._one(combine, of(name), rows.head(name).flat) for name, combine in self.each.items()}
        return made[""] if "" in made else Signals({name: s.output for name, s in made.items()}, heads=made)


def check_ensemble(
    combine: Use | None,
    shows: Mapping[str, str],
    answer: Any,
    columns: Columns,
    declared: Output | Mapping[str, Output] | None = None,
) -> list[tuple[str, str]]:
    """[(problem, hint)] of an ensemble of teachers that answer as `answer`, one tensor or {output: tensor}. `shows`:
    {teacher's name: what it shows of them}. It is called once on random outputs, with a sample of every label and tag;
    where a sample has several labels, with some samples."""
    import numpy as np
    import torch

    from edgekd.data.columns import take

    labels = [array for array in named(columns.labels).values() if array is not None]
    known = [array.tolist() for array in labels if array.ndim == 1] or [[None] * len(columns)]
    told = zip(*known, columns.tags or [()] * len(columns), strict=True)
    chosen = set(dict(zip(told, range(len(columns)), strict=True)).values())
    for several in labels if declared is not None else ():
        chosen |= set(telling(several, len(columns)).tolist()) if several.ndim > 1 else set()
    batch = take(columns, np.array(sorted(chosen), dtype=np.int64))
    generator = torch.Generator().manual_seed(0)

    def random(z: Any) -> Any:
        shape = [len(batch.index), *z.shape[1:]]
        if batch.steps is not None and not isinstance(declared, Mapping):
            shape[steps_of(declared)] = batch.steps  # `answer` is of other samples
        return torch.randn(shape, generator=generator)

    drawn = each(answer, random)
    rows = rows_of(declared, batch, Signals(drawn))
    try:
        Combined(combine, tuple(shows), declared)(
            {name: rows.of(_shown(drawn, how, declared)) for name, how in shows.items()}, rows
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


def _shown(drawn: Any, how: str, declared: Output | Mapping[str, Output] | None) -> Signals:
    if how != "label":
        return Signals(drawn)
    labels = shown(declared, drawn)
    return Signals(None, label=labels if isinstance(declared, Mapping) else labels[""])


def dry(
    number: int,
    students: Sequence[nn.Module],
    see: Callable,
    supervision: Supervision,
    source: Callable,
    declared: Output | Mapping[str, Output] | None = None,
) -> tuple[Signals, dict, Rows]:
    """(a student's signals, its teachers' signals, the rows) for the first batch, in evaluation mode and with no side
    effects: for parts that need shapes."""
    import torch

    batch = next(iter(source(0, 0)))
    with torch.no_grad(), device.forked(device.of(students[0])):
        for one in students:
            one.eval()
        raw = [see(i, batch) for i in range(len(students))]
        rows = rows_of(declared, batch, raw[0])
        seen = [rows.of(s) for s in raw]
        signals = supervision.of(number, seen, supervision.before(rows))
        for one in students:
            one.train()
    return seen[number], {name: g[0] if isinstance(g, list) else g for name, g in signals.items()}, rows
