"""The one training loop: `fit`. A mode of training is a value given to it (teachers, a source, terms), not a class.

Training resumes exactly: modules, optimizer, random state, epoch and position are saved; order and augmentation are
functions of the seed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekd import environment
from edgekd.models import device, taps
from edgekd.models.precision import laid_out
from edgekd.records import Batch, Run, Signals
from edgekd.training import ranks
from edgekd.training.checkpoints import restore, save
from edgekd.training.optimizer import make_optimizer, pace
from edgekd.training.positions import Rows, rows_of
from edgekd.training.settings import Training
from edgekd.training.shares import Share, shares
from edgekd.training.supervision import Supervision, dry
from edgekd.training.tally import Finite, Given, Tally
from edgekd.training.terms import Term, bind, gradient_norms, is_module, parts, settings_at, tapped, terms_for, total

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.training.agreement import Agreement

CHECKPOINT_SECONDS = 10.0
Found = list[tuple[str, float, "torch.Tensor"]]  # of each term: name, weight, mean over the batch


def fit(
    student: nn.Module | Sequence[nn.Module],
    source: Callable[[int, int], Iterator[Batch]],
    terms: Sequence[Term],
    *,
    settings: Training,
    steps_per_epoch: int,
    run: Run,
    teachers: Mapping[str, Callable[[Batch], Signals]] | None = None,
    agreement: Agreement | None = None,
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains `student` for `settings.epochs` over `source(epoch, start)`. The loss of a batch is
    sum over terms of weight x (sum of row losses x sample weights / sum of sample weights), and over students where
    several learn together; both sums are over all batches of a step (`settings.accumulate`) and all processes
    (`ranks`). `agreement`: computed before every epoch, for schedules that follow it. Batches are on
    `run.device`, where the students are meanwhile. `names`: of the students, where they are different models; each then
    has the terms that `terms_for` gives it."""
    students = list(student) if isinstance(student, Sequence) else [student]
    begun = time.monotonic()
    with seeded(run.seed, run.threads, run.device), contextlib.ExitStack() as stack:
        stack.enter_context(device.arithmetic(run.device, settings.tf32))
        loop = _Loop(students, source, terms, settings, steps_per_epoch, run, agreement, names)
        called = run.task.call if forward is None else lambda module, inputs: run.task.by_name(forward(module, inputs))
        loop.prepare(dict(teachers or {}), called, stack)
        loop.resume()
        while loop.epoch < settings.epochs:
            loop.run_epoch(on_epoch)
    for one in students:
        device.placed(one, device.CPU).eval()
    facts = {"epochs": settings.epochs, "steps": loop.total_steps, "seconds": round(time.monotonic() - begun, 3)}
    return {**facts, "losses": loop.means()}


class _Loop:
    """The state of a training: the students, their supervision, the optimizer, epoch and position."""

    def __init__(
        self,
        students: Sequence[nn.Module],
        source: Callable[[int, int], Iterator[Batch]],
        terms: Sequence[Term],
        settings: Training,
        steps_per_epoch: int,
        run: Run,
        agreement: Agreement | None,
        names: Sequence[str],
    ):
        self.students, self.source, self.terms, self.settings, self.names = students, source, terms, settings, names
        self.each = [terms_for(terms, names, number) for number in range(len(students))]
        self.run, self.agreement, self.ranks = run, agreement, ranks.now()
        self.steps_per_epoch, self.total_steps = steps_per_epoch, settings.epochs * steps_per_epoch
        self.epoch, self.position, self.tally = 0, 0, Tally(device.kind(run.device) == device.CPU)

    def prepare(self, teachers: dict[str, Any], forward: Callable, stack: contextlib.ExitStack) -> None:
        """Builds supervision, taps, losses and the optimizer, on the device; modules keep the memory format of their
        precision until `stack` closes."""
        import torch
        from torch import nn

        self.forward, self.autocast, there = forward, contextlib.nullcontext, self.run.device
        for one in self.students:
            device.placed(one, there)
            self.autocast = stack.enter_context(laid_out(one, self.settings.precision))
        # before the taps: a copy of the student must not hold their hooks
        declared = self.run.task.declared
        self.supervision = Supervision(
            self.students, self.terms, self.settings, teachers, forward, self.autocast, self.names, declared
        )
        for part in self.supervision.modules():
            part.to(there)
        self.looks = [taps.watch(one, self._paths(number, teachers)) for number, one in enumerate(self.students)]
        self.bound = [bind(own, lambda number=number: self._dry(number)) for number, own in enumerate(self.each)]
        calls = [b.call for each in self.bound for b in each if is_module(b.call)]
        self.learners = nn.ModuleList([*calls, *self.supervision.modules()]).to(there)
        if self.ranks.count > 1:
            from edgekd.training.across import compares_rows

            looked = [self._dry(number) for number in range(len(self.students))]
            self.bound = [[replace(b, across=compares_rows(b, dry)) for b in each]
                          for each, dry in zip(self.bound, looked, strict=True)]  # fmt: skip
            if self.settings.batch_norm == "synchronized":
                stack.enter_context(self.ranks.synchronized(*self.students, self.learners))
        self.balances = []
        if self.settings.balance:
            from edgekd.training.balance import Balance

            self.balances = [Balance(len(own)) for own in (self.each if self.names else self.each[:1])]
            self.learners.extend(self.balances)
        if self.agreement is not None:
            self.learners.append(self.agreement)
        several = len(self.students) > 1 or len(self.learners)
        self.whole = nn.ModuleList([*self.students, self.learners]) if several else self.students[0]
        self.ranks.share(self.whole)
        self.learning = [p for p in self.whole.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.whole, self.settings)
        self.scaler = torch.amp.GradScaler(device.kind(there), enabled=self.settings.precision == "float16")
        self.called = list(self.students)
        if self.settings.compile:
            # gradients of single terms are taken before those of all
            stack.enter_context(torch._functorch.config.patch(donated_buffer=False))
            self.called = [torch.compile(one) for one in self.students]
        self.finite = Finite(self.students)
        self.weights = [[p for p in one.parameters() if p.requires_grad] for one in self.students]

    def resume(self) -> None:
        """Resumes from the checkpoint, if there is one."""
        given = self.run.scratch, self.whole, self.optimizer, self.scaler, self.run.device
        self.epoch, self.position, saved = restore(*given)
        if saved:
            self.run.log(event="resumed", epoch=self.epoch, position=self.position)
            self.tally.begin(saved)
        self.checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
        for one in (*self.students, self.learners):
            one.train()

    def run_epoch(self, on_epoch: Callable[[int], None] | None) -> None:
        """Trains on the remaining batches of the epoch and writes a line of the log."""
        if self.position == 0:
            self._begin_epoch(on_epoch)
        count = self.settings.accumulate
        batches = self.source(self.epoch, self.position * count)
        while several := list(itertools.islice(batches, count)):
            step = self.epoch * self.steps_per_epoch + self.position
            rate = self._step(several, step)
            done = f"epoch {self.epoch + 1}/{self.settings.epochs} loss {self.tally.loss:.3f}"
            self.run.progress(step + 1, self.total_steps, done)
            if time.monotonic() > self.checkpoint_at and self.position < self.steps_per_epoch:
                self._save()
        self.run.log(event="epoch", epoch=self.epoch + 1, lr=rate, **self.means())
        self.epoch, self.position = self.epoch + 1, 0
        if time.monotonic() > self.checkpoint_at or self.epoch == self.settings.epochs:
            self._save()

    def means(self) -> dict[str, float]:
        """{term: its mean over the rows of the epoch so far}."""
        return self.tally.means()

    def _begin_epoch(self, on_epoch: Callable[[int], None] | None) -> None:
        self.tally.begin()
        if on_epoch is not None:
            on_epoch(self.epoch)
        if self.agreement is not None:
            with self.autocast():
                self.agreement.look(self.students[0], self.forward, output=self.run.task.declared)
            self.run.log(event="agreement", epoch=self.epoch + 1, **self.agreement.now())

    def _step(self, batches: Sequence[Batch], step: int) -> float:
        """One step of the optimizer on one batch, or on several; returns its learning rate."""
        import torch

        rate, share = self.settings.lr * pace(step, self.total_steps, self.settings), step / self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for part in self.learners:
            part.__dict__["share"] = share  # a part that learns may depend on the share of the training done
        self.optimizer.zero_grad(set_to_none=True)
        self.ranks.seed(self.run.seed, step)
        told: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        for number, part in enumerate(shares(self.run.task.declared, batches, self.ranks)):
            each = self._terms(batches[number], step, share, part, first=number == 0)
            loss = sum((total(found) for found in each[1:]), total(each[0]))
            own = self.supervision.own_losses(part)
            named = [(f"{who}: {name}" if who else name, v) for who, one in self._told(each) for name, _, v in one]
            told.append((loss.detach(), [value.detach() for _, value in named]))
            if len(batches) == 1:
                self._tell(told, [name for name, _ in named], batches, rate)
            self.scaler.scale(sum(own, loss)).backward()
        if len(batches) > 1:
            self._tell(told, [name for name, _ in named], batches, rate)
        self.ranks.add_gradients(self.learning)
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            for one in self.students:
                torch.nn.utils.clip_grad_norm_(one.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ranks.share(self.whole, buffers_only=True)
        self.supervision.after(self.students[0])
        self.position += 1
        return rate

    def _tell(self, told: Any, names: Sequence[str], batches: Sequence[Batch], rate: float) -> None:
        """Gives the tally the losses of a step: sums over its batches and all processes."""
        import torch

        sums = [torch.stack(values).sum() if len(told) > 1 else values[0]
                for values in zip(*((loss, *values) for loss, values in told), strict=True)]  # fmt: skip
        rows = sum(len(batch.index) for batch in batches)
        if self.ranks.count > 1:
            *sums, rows_of_all = self.ranks.summed([*sums, sums[0].new_tensor(rows)])
            rows = int(rows_of_all)
        terms = list(zip(names, sums[1:], strict=True))
        self.tally.add(Given(sums[0], terms, rows, self.epoch, self.position, rate))

    def _terms(
        self, batch: Batch, step: int, share: float, part: Share | None = None, first: bool = True
    ) -> list[Found]:
        """The terms of each student on the batch, balanced if the settings say so; a `part` of them by its shares."""
        each = self._weighed(batch, step, share, part, first)
        if part is None:
            return each
        return [
            [(name, weight, mean * part.of_step(b)) for (name, weight, mean), b in zip(found, bound, strict=True)]
            for found, bound in zip(each, self.bound, strict=True)
        ]

    def _weighed(self, batch: Batch, step: int, share: float, part: Share | None, first: bool) -> list[Found]:
        """The terms of each student on a batch, of which norms of gradients are taken on the first of a step."""
        agreed = self.agreement.now() if self.agreement is not None else None
        raw = [self._see(number, batch) for number in range(len(self.students))]
        rows = rows_of(self.run.task.declared, batch, raw[0])
        shared, seen = self.supervision.before(rows), [rows.of(s) for s in raw]
        each = [
            parts(bound, seen[i], self.supervision.of(i, seen, shared), rows, share, agreed, part)
            for i, bound in enumerate(self.bound)
        ]
        if self.position == 0 and first:
            self.run.log(event="gradients", epoch=self.epoch + 1, **gradient_norms(each[0], self.weights[0]))
            if any(b.term.schedule for b in self.bound[0]):
                self.run.log(event="settings", epoch=self.epoch + 1, **settings_at(self.bound[0], share, agreed))
        if not self.balances:
            return each
        step = step if first else -1
        if self.names:
            return [b.weigh(*given, step) for b, *given in zip(self.balances, each, self.weights, strict=True)]
        (balance,) = self.balances
        return [balance.weigh(each[0], self.weights[0], step), *(balance.weigh(found) for found in each[1:])]

    def _told(self, each: Sequence[Found]) -> list[tuple[str, Found]]:
        """[(whose, terms)] for the log: the student's, and those of models with names."""
        return [("", each[0]), *zip(self.names[1:], each[1:], strict=False)]

    def _paths(self, number: int, teachers: Mapping[str, Any]) -> tuple[str, ...]:
        """The paths that terms tap in a student."""
        if not self.names or number == 0:
            return tapped(self.each[number])
        return tapped([term for term in self.terms if term.teacher or not teachers], self.names[number])

    def _see(self, number: int, batch: Batch) -> Signals:
        return self._seen(self.called, number, batch)

    def _seen(self, models: Sequence[nn.Module], number: int, batch: Batch) -> Signals:
        with self.autocast():
            return Signals(self.forward(models[number], batch.inputs), self.looks[number]())

    def _dry(self, number: int) -> tuple[Signals, dict, Rows]:
        see = functools.partial(self._seen, self.students)
        return dry(number, self.students, see, self.supervision, self.source, self.run.task.declared)

    def _save(self) -> None:
        """Writes a checkpoint, on rank 0: what the others hold is equal, and their random numbers follow the step."""
        self.tally.read()
        self.finite.check(self.epoch * self.steps_per_epoch + self.position, self.total_steps)
        given = self.whole, self.optimizer, self.epoch, self.position, self.tally.sums
        if self.ranks.number == 0:
            save(self.run.scratch, *given, self.scaler, self.run.device)
        self.checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS


@contextlib.contextmanager
def seeded(seed: int, threads: int, on: str = device.CPU) -> Iterator[None]:
    """Sets the random generators and thread count of a training on the device `on`; the caller's are restored."""
    import torch

    with environment.threads(threads), device.forked(on):
        torch.manual_seed(seed)
        yield
