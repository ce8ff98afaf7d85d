"""Whom a student learns from: given teachers, an ensemble of them, the average of its own past, its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.components import Use
from edgekd.errors import THEIRS
from edgekd.models import taps
from edgekd.records import Batch, Signals
from edgekd.training.terms import EMA, PEERS, Term, is_module, tapped

if TYPE_CHECKING:
    from torch import nn

    from edgekd.data.columns import Columns
    from edgekd.training.settings import Training


class Guides:
    """All that the students of one training learn from: given teachers, their ensemble, the average of the student's
    past, one another."""

    def __init__(
        self,
        students: Sequence[nn.Module],
        terms: Sequence[Term],
        settings: Training,
        teachers: dict,
        forward: Callable,
        autocast: Callable,
    ):
        from edgekd.teachers.ema import Ema

        self.given, self.peers = teachers, len(students) > 1
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
        """Those with a state that a checkpoint has to hold."""
        return [part for part in (self.combine, self.ema) if part is not None and is_module(part)]

    def before(self, batch: Batch) -> dict[str, Signals]:
        """What every student hears of a batch, by teacher; "" is the one teacher, or the ensemble of several."""
        heard = {name: teach(batch) for name, teach in self.given.items()}
        if self.single is not None:
            heard[""] = heard[self.single]
        elif self.combine is not None:
            heard[""] = self.combine({name: heard[name] for name in self.given}, batch)
        if self.ema is not None:
            heard[EMA] = self.ema(batch)
        return heard

    def of(self, number: int, seen: Sequence[Signals], heard: Mapping[str, Signals]) -> dict[str, Any]:
        """What student `number` hears: of its peers as they are now, without a gradient."""
        if not self.peers:
            return dict(heard)
        others = [
            Signals(s.output.detach(), {k: t.detach() for k, t in s.taps.items()})
            for i, s in enumerate(seen)
            if i != number
        ]
        return {"": others, **heard, PEERS: others}

    def after(self, student: nn.Module) -> None:
        """Once the step is made."""
        if self.ema is not None:
            self.ema.update(student)


def ensemble(combine: Use | None, names: Sequence[str]) -> Callable[[Mapping[str, Signals], Batch], Signals]:
    """The part that a recipe's `combine` names, ready to be called; None: the mean of probabilities."""
    combine = combine or Use("ensembles", "mean")
    return combine(tuple(names), 0) if is_module(combine.part()) else combine


def rehearse(
    combine: Use | None, names: Sequence[str], outputs: Sequence[int], columns: Columns
) -> list[tuple[str, str]]:
    """[(what is wrong, hint)] with an ensemble of teachers whose outputs are [B, *outputs]: it is called on a sample of
    every kind."""
    import numpy as np
    import torch

    from edgekd.data.columns import take

    labels = (
        columns.labels.tolist() if columns.labels is not None and columns.labels.ndim == 1 else [None] * len(columns)
    )
    kinds = dict(zip(zip(labels, columns.tags or [()] * len(columns), strict=True), range(len(columns)), strict=True))
    batch = take(columns, np.array(sorted(kinds.values()), dtype=np.int64))
    signals = {
        name: Signals(torch.randn(len(batch.index), *outputs, generator=torch.Generator().manual_seed(0)))
        for name in names
    }
    try:
        ensemble(combine, names)(signals, batch)
    except THEIRS as error:
        known = isinstance(error, ValueError)
        return [
            (
                str(error) if known else f"can't work on this task: {type(error).__name__}: {error}",
                "`edgekd list ensembles` shows what each needs",
            )
        ]
    return []


def dry(
    number: int, students: Sequence[nn.Module], see: Callable, guides: Guides, source: Callable
) -> tuple[Signals, dict, Batch]:
    """What a student and its teachers show of the first batch, in evaluation mode and without a trace: for parts that
    ask for shapes."""
    import torch

    batch = next(iter(source(0, 0)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for one in students:
            one.eval()
        seen = [see(i, batch) for i in range(len(students))]
        heard = guides.of(number, seen, guides.before(batch))
        for one in students:
            one.train()
    return seen[number], {name: g[0] if isinstance(g, list) else g for name, g in heard.items()}, batch
