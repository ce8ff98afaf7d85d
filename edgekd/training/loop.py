"""The one training loop: `fit`. A mode of training is a value given to it (teachers, a source, terms), not a class.

Training resumes exactly: modules, optimizer, random state, epoch and position are saved; order and augmentation are
functions of the seed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd import environment
from edgekd.errors import Problem, RunFailed
from edgekd.models import taps
from edgekd.models.precision import Precision, laid_out
from edgekd.records import Batch, Run, Signals, Task
from edgekd.training.checkpoints import restore, save
from edgekd.training.optimizer import make_optimizer, pace
from edgekd.training.settings import Training
from edgekd.training.supervision import Guides, dry
from edgekd.training.terms import Term, bind, gradient_norms, is_module, parts, settings_at, tapped, total

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.training.agreement import Agreement

CHECKPOINT_SECONDS = 10.0


def learn(
    module: nn.Module | Sequence[nn.Module],
    run: Run,
    settings: Training,
    *,
    teacher: Sequence = (),
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Trains `module` in place by `settings` on the task's train split; several modules learn together, each from the
    others (Zhang et al. 2018, "Deep Mutual Learning"). `teacher`: artifacts, `logits` (cached) or `torch` (live);
    `forward`: how a module is called, by default as the task says.

    Returns facts: epochs, steps, seconds, the last epoch's mean of every term."""
    from edgekd.data.epochs import epochs, spans

    columns, views = run.data("train"), views_of(settings, run.task)
    source = epochs(
        columns, run.task, batch=settings.batch, seed=run.seed, augment_seed=settings.augment_seed, views=views
    )
    losses = settings.losses
    names = settings.teachers or tuple("" for _ in teacher)
    # the plan adds their answers to the validation split where a schedule asks
    given, judged = teacher[: len(names)], teacher[len(names) :]
    teach = {
        name: teacher_of(artifact, run.task, len(columns), views, settings.teacher_precision, tapped(losses, name))
        for name, artifact in zip(names, given, strict=True)
    }
    agreement = None
    if judged:
        from edgekd.training.agreement import Agreement

        agreement = Agreement(dict(zip(names, judged, strict=True)), run.data("validation"))
    return fit(
        module,
        source,
        losses,
        settings=settings,
        steps_per_epoch=len(spans(len(columns), settings.batch)),
        run=run,
        teachers=teach,
        agreement=agreement,
        forward=forward,
        on_epoch=on_epoch,
    )


def views_of(settings: Training, task: Task) -> int:
    """How many views the stage sees: none but one where nothing is augmented, and never more than its epochs."""
    return 1 if task.augment is None else min(settings.views or task.views, settings.epochs)


def teacher_of(
    artifact: Any, task: Task, rows: int, views: int, precision: Precision = "float32", paths: Sequence[str] = ()
) -> Callable[[Batch], Signals]:
    """The callable for a stage's teacher artifact: its cached answers, or the model itself, tapped at `paths`."""
    if artifact.form == "logits":
        from edgekd.teachers.cached import cached

        return cached(artifact, rows, views)
    from edgekd.models import saved as models
    from edgekd.teachers.live import live

    return live(models.load(artifact, task), task, precision, paths)


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
) -> dict[str, Any]:
    """Trains `student` for `settings.epochs` over `source(epoch, start)`. The loss of a batch is sum over terms of
    weight x (sum of row losses x sample weights / sum of sample weights), and over students where several learn
    together. `agreement`: taken before every epoch, for schedules that follow it."""
    import torch
    from torch import nn

    students = list(student) if isinstance(student, Sequence) else [student]
    forward = forward or run.task.forward or (lambda model, inputs: model(inputs))
    total_steps = settings.epochs * steps_per_epoch
    sums, begun = {}, time.monotonic()
    with seeded(run.seed, run.threads), contextlib.ExitStack() as stack:
        autocast = contextlib.nullcontext
        for one in students:
            autocast = stack.enter_context(laid_out(one, settings.precision))
        # first: what it copies is not hooked yet
        guides = Guides(students, terms, settings, dict(teachers or {}), forward, autocast)
        looks = [taps.watch(one, tapped(terms)) for one in students]

        def see(number: int, batch: Batch) -> Signals:
            with autocast():
                return Signals(forward(students[number], batch.inputs), looks[number]())

        bound = [
            bind(terms, lambda number=number: dry(number, students, see, guides, source))
            for number in range(len(students))
        ]
        learners = nn.ModuleList([*(b.call for each in bound for b in each if is_module(b.call)), *guides.modules()])
        balance = None
        if settings.balance:
            from edgekd.training.balance import Balance

            learners.append(balance := Balance(len(terms)))
        if agreement is not None:
            learners.append(agreement)
        whole = nn.ModuleList([*students, learners]) if len(students) > 1 or len(learners) else students[0]
        optimizer = make_optimizer(whole, settings)
        weights = [p for p in students[0].parameters() if p.requires_grad]
        epoch, position, saved = restore(run.scratch, whole, optimizer)
        if saved:
            run.log(event="resumed", epoch=epoch, position=position)
            sums = saved
        checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
        for one in (*students, learners):
            one.train()
        while epoch < settings.epochs:
            if position == 0:
                sums = {"rows": 0.0}
                if on_epoch is not None:
                    on_epoch(epoch)
                if agreement is not None:
                    with autocast():
                        agreement.look(students[0], forward)
                    run.log(event="agreement", epoch=epoch + 1, **agreement.now())
            for batch in source(epoch, position):
                step = epoch * steps_per_epoch + position
                rate, share = settings.lr * pace(step, total_steps, settings), step / total_steps
                for group in optimizer.param_groups:
                    group["lr"] = rate
                for b in learners:
                    b.__dict__["share"] = share  # a part that learns may change its ways over the training
                agreed = agreement.now() if agreement is not None else None
                shared = guides.before(batch)
                seen = [see(number, batch) for number in range(len(students))]
                each = [
                    parts(bound[i], seen[i], guides.of(i, seen, shared), batch, share, agreed)
                    for i in range(len(students))
                ]
                if position == 0:
                    run.log(event="gradients", epoch=epoch + 1, **gradient_norms(each[0], weights))
                    if any(b.term.schedule for b in bound[0]):
                        run.log(event="settings", epoch=epoch + 1, **settings_at(bound[0], share, agreed))
                if balance is not None:
                    each = [
                        balance.weigh(found, weights, step) if i == 0 else balance.weigh(found)
                        for i, found in enumerate(each)
                    ]
                loss = sum((total(found) for found in each[1:]), total(each[0]))
                own = [guide.own for guide in guides.modules() if getattr(guide, "own", None) is not None]
                _finite(loss, each[0], epoch, position, rate)
                optimizer.zero_grad(set_to_none=True)
                sum(own, loss).backward()
                if settings.clip is not None:
                    for one in students:
                        torch.nn.utils.clip_grad_norm_(one.parameters(), settings.clip)
                optimizer.step()
                guides.after(students[0])
                for name, _, value in each[0]:
                    sums[name] = sums.get(name, 0.0) + value.item() * len(batch.index)
                sums["rows"] += len(batch.index)
                position += 1
                run.progress(step + 1, total_steps, f"epoch {epoch + 1}/{settings.epochs} loss {loss.item():.3f}")
                if time.monotonic() > checkpoint_at and position < steps_per_epoch:
                    save(run.scratch, whole, optimizer, epoch, position, sums)
                    checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
            means = {name: value / sums["rows"] for name, value in sums.items() if name != "rows"}
            run.log(event="epoch", epoch=epoch + 1, lr=rate, **means)
            epoch, position = epoch + 1, 0
            if time.monotonic() > checkpoint_at or epoch == settings.epochs:
                save(run.scratch, whole, optimizer, epoch, 0, sums)
                checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
    for one in students:
        one.eval()
    means = {name: value / sums["rows"] for name, value in sums.items() if name != "rows"}
    return {
        "epochs": settings.epochs,
        "steps": total_steps,
        "seconds": round(time.monotonic() - begun, 3),
        "losses": means,
    }


@contextlib.contextmanager
def seeded(seed: int, threads: int) -> Iterator[None]:
    """The random generator and thread count of a training; the caller's are put back."""
    import torch

    with environment.threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _finite(
    loss: torch.Tensor, parts: Sequence[tuple[str, float, torch.Tensor]], epoch: int, position: int, rate: float
) -> None:
    if not math.isfinite(loss.item()):
        bad = ", ".join(f"{name} = {value.item():.3g}" for name, _, value in parts)
        text = (
            f"training diverged: the loss is {loss.item()} at epoch {epoch + 1}, step {position + 1}, learning "
            f"rate {rate:.3g} ({bad})"
        )
        raise RunFailed(
            Problem("", text, "lower `lr`, lengthen `warmup` or set `clip`; look for inputs that are not finite")
        )
