"""A stage's training: gives its data, losses and teachers to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import RunFailed
from edgekd.models.precision import Precision
from edgekd.records import Batch, Run, Signals, Task
from edgekd.training import ranks
from edgekd.training.loop import fit
from edgekd.training.settings import Training
from edgekd.training.terms import tapped

if TYPE_CHECKING:
    import torch
    from torch import nn


def learn(
    module: nn.Module | Sequence[nn.Module],
    run: Run,
    settings: Training,
    *,
    teacher: Sequence = (),
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains `module` in place by `settings` on the task's train split; several modules learn together, each from the
    others (Zhang et al. 2018, "Deep Mutual Learning"). `teacher`: artifacts, `logits` (cached) or `torch` (live);
    `forward`: how a module is called, by default as the task says; `names`: of several modules that are different
    models.

    Returns facts: epochs, steps, seconds, the last epoch's mean of every term."""
    from edgekd.data.epochs import epochs, spans

    columns, views, group = run.data("train"), views_of(settings, run.task), ranks.now()
    rows, fewest = settings.batch * group.count, group.count * (2 if settings.batch_norm == "per_rank" else 1)
    fewest = max(2, fewest)
    if len(columns) < fewest and group.count > 1:
        raise RunFailed(f"{len(columns)} samples are too few for {group.count} processes")
    source = epochs(
        columns,
        run.task,
        batch=rows,
        seed=run.seed,
        augment_seed=settings.augment_seed,
        views=views,
        on=run.device,
        part=(group.number, group.count),
        fewest=fewest,
    )
    losses = settings.losses
    fixed = settings.teachers or tuple("" for _ in teacher)
    # the plan adds their predictions on the validation split if a schedule needs them
    given, judged = teacher[: len(fixed)], teacher[len(fixed) :]
    teach = {
        name: teacher_of(artifact, run, len(columns), views, settings.teacher_precision, tapped(losses, name))
        for name, artifact in zip(fixed, given, strict=True)
    }
    agreement = None
    if judged:
        from edgekd.training.agreement import Agreement

        agreement = Agreement(dict(zip(fixed, judged, strict=True)), run.data("validation"), run.task.heads)
    return fit(
        module,
        source,
        losses,
        settings=settings,
        steps_per_epoch=-(-len(spans(len(columns), rows, fewest)) // settings.accumulate),
        run=run,
        teachers=teach,
        agreement=agreement,
        forward=forward,
        on_epoch=on_epoch,
        names=names,
    )


def views_of(settings: Training, task: Task) -> int:
    """The number of views of each sample that the stage sees: 1 without augmentation, and at most its epochs."""
    return 1 if task.augment is None else min(settings.views or task.views, settings.epochs)


def teacher_of(
    artifact: Any, run: Run, rows: int, views: int, precision: Precision = "float32", paths: Sequence[str] = ()
) -> Callable[[Batch], Signals]:
    """The callable for a stage's teacher artifact: its cached answers, or the model itself, tapped at `paths`."""
    if artifact.form == "logits":
        from edgekd.teachers.cached import cached

        return cached(artifact, rows, views, run.task.declared)
    from edgekd.models import device
    from edgekd.models import saved as models
    from edgekd.teachers.live import live

    return live(device.placed(models.load(artifact, run.task), run.device), run.task, precision, paths)
