"""The one training loop: `fit`. A mode of training is a value given to it (a teacher, a source, terms), not a class.

Training resumes exactly: modules, optimizer, random state, epoch and position are saved; order and augmentation are functions of the seed.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from edgekd import components
from edgekd.errors import RunFailed
from edgekd.records import Batch, Run, Signals, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

CHECKPOINT_SECONDS = 10.0
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Term:
    """One loss of a recipe: the part `use`, its weight, and its own settings."""

    use: str
    weight: float
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def function(self) -> Callable:
        return components.find("losses", self.use)

    def needs_teacher(self) -> bool:
        """Whether the part's `teacher` is not optional (one that is not annotated is taken to be needed)."""
        parameter = inspect.signature(self.function()).parameters.get("teacher")
        if parameter is None:
            return False
        return not any(word in str(parameter.annotation) for word in ("None", "Optional"))


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings that every stage which trains shares. Stages extend it with their own fields; it has no behaviour to inherit.

    `batch` rows, `lr` peak learning rate, `warmup` share of the steps; `views` None: the task's own number.
    `augment_seed` is filled in by the plan, so that the teacher's cache and its students see the same views. `precision` bfloat16: the
    student's convolutions and matrix products in bfloat16 (weights, norms and losses stay float32), channels last; `teacher_precision`: the
    same for the teacher."""

    epochs: Annotated[int, Ge(1)] = 30
    batch: Annotated[int, Ge(1)] = 64
    lr: Annotated[float, Gt(0)] = 2e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Ge(0), Le(1)] = 0.9
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    clip: Annotated[float, Gt(0)] | None = None
    views: Annotated[int, Ge(1)] | None = None
    augment_seed: int = 0
    precision: Precision = "float32"
    teacher_precision: Precision = "float32"
    losses: tuple[dict[str, Any], ...] = ({"use": "cross_entropy"},)


def terms(losses: Sequence[Mapping[str, Any]]) -> tuple[Term, ...]:
    """Recipe tables {use, weight, ...hyper} as terms."""
    return tuple(Term(t["use"], float(t.get("weight", 1.0)), {k: v for k, v in t.items() if k not in ("use", "weight")}) for t in losses)


def learn(
    module: nn.Module,
    run: Run,
    settings: Training,
    *,
    teacher: Sequence = (),
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Trains `module` in place by `settings` on the task's train split; `teacher`: artifacts, `logits` (cached) or `torch` (live);
    `forward`: how the module is called, by default as the task says.

    Returns facts: epochs, steps, seconds, the last epoch's mean of every term."""
    from edgekd.sources.epochs import epochs, spans

    columns, views = run.data("train"), views_of(settings, run.task)
    source = epochs(columns, run.task, batch=settings.batch, seed=run.seed, augment_seed=settings.augment_seed, views=views)
    teach = teacher_of(teacher, run.task, len(columns), views, settings.teacher_precision)
    return fit(
        module,
        source,
        terms(settings.losses),
        settings=settings,
        steps_per_epoch=len(spans(len(columns), settings.batch)),
        run=run,
        teacher=teach,
        forward=forward,
        on_epoch=on_epoch,
    )


def views_of(settings: Training, task: Task) -> int:
    """How many views the stage sees: none but one where nothing is augmented, and never more than its epochs."""
    return 1 if task.augment is None else min(settings.views or task.views, settings.epochs)


def teacher_of(teacher: Sequence, task: Task, rows: int, views: int, precision: Precision = "float32") -> Callable[[Batch], Signals] | None:
    """The callable for a stage's teacher artifact: its cached logits, or the model itself."""
    if not teacher:
        return None
    (artifact,) = teacher
    if artifact.form == "logits":
        from edgekd.teachers.cached import cached

        return cached(artifact, rows, views)
    from edgekd import models
    from edgekd.teachers.live import live

    return live(models.load(artifact, task), task, precision)


def fit(
    student: nn.Module,
    source: Callable[[int, int], Iterator[Batch]],
    terms: Sequence[Term],
    *,
    settings: Training,
    steps_per_epoch: int,
    run: Run,
    teacher: Callable[[Batch], Signals] | None = None,
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Trains `student` for `settings.epochs` over `source(epoch, start)`. The loss of a batch is
    sum over terms of weight x (sum of row losses x sample weights / sum of sample weights)."""
    import torch

    functions = [(term, term.function()) for term in terms]
    forward = forward or run.task.forward or (lambda model, inputs: model(inputs))
    optimizer = make_optimizer(student, settings)
    total = settings.epochs * steps_per_epoch
    sums, begun = {}, time.monotonic()
    with seeded(run.seed, run.threads), laid_out(student, settings.precision) as autocast:
        epoch, position, saved = restore(run.scratch, student, optimizer)
        if saved:
            run.log(event="resumed", epoch=epoch, position=position)
            sums = saved
        checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
        student.train()
        while epoch < settings.epochs:
            if position == 0:
                sums = {"rows": 0.0}
                if on_epoch is not None:
                    on_epoch(epoch)
            for batch in source(epoch, position):
                step = epoch * steps_per_epoch + position
                rate = settings.lr * pace(step, total, settings)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                taught = None if teacher is None else teacher(batch)
                with autocast():
                    seen = Signals(forward(student, batch.inputs))
                loss, parts = combine(functions, seen, taught, batch)
                _finite(loss, parts, epoch, position, rate)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
                optimizer.step()
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(batch.index)
                sums["rows"] += len(batch.index)
                position += 1
                run.progress(step + 1, total, f"epoch {epoch + 1}/{settings.epochs} loss {loss.item():.3f}")
                if time.monotonic() > checkpoint_at and position < steps_per_epoch:
                    save(run.scratch, student, optimizer, epoch, position, sums)
                    checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
            means = {name: value / sums["rows"] for name, value in sums.items() if name != "rows"}
            run.log(event="epoch", epoch=epoch + 1, lr=rate, **means)
            epoch, position = epoch + 1, 0
            if time.monotonic() > checkpoint_at or epoch == settings.epochs:
                save(run.scratch, student, optimizer, epoch, 0, sums)
                checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
    student.eval()
    means = {name: value / sums["rows"] for name, value in sums.items() if name != "rows"}
    return {"epochs": settings.epochs, "steps": total, "seconds": round(time.monotonic() - begun, 3), "losses": means}


def combine(functions: Sequence[tuple[Term, Callable]], student: Signals, teacher: Signals | None, batch: Batch) -> tuple[torch.Tensor, dict]:
    """(total, {term: its unweighted mean}) of a batch. Weighted mean over rows, divided once."""
    total, parts = None, {}
    for term, function in functions:
        rows = function(student, teacher, batch, **term.hyper)
        mean = rows if rows.ndim == 0 else (rows * batch.weight).sum() / batch.weight.sum()
        parts[term.use if term.use not in parts else f"{term.use}.{len(parts)}"] = mean.detach()
        total = term.weight * mean if total is None else total + term.weight * mean
    return total, parts


def rehearse(
    losses: Sequence[Mapping[str, Any]], student: nn.Module, teacher: nn.Module | None, task: Task, columns: Any
) -> Iterator[tuple[int, str, str]]:
    """Calls every term once on a few samples and goes one step back: (number, what is wrong, hint) of those that can't work."""
    import numpy as np
    import torch

    from edgekd.sources.columns import take

    forward = task.forward or (lambda model, inputs: model(inputs))
    batch = take(columns, np.arange(min(4, len(columns)), dtype=np.int64))
    with torch.random.fork_rng(devices=[]):
        seen = Signals(forward(student.eval(), batch.inputs))
        with torch.no_grad():
            taught = None if teacher is None else Signals(forward(teacher.eval(), batch.inputs))
        shapes = f"outputs {_shape(seen.output)}, labels {_shape(batch.labels)}"
        for number, term in enumerate(terms(losses)):
            try:
                rows = term.function()(seen, taught, batch, **term.hyper)
                if rows.ndim and tuple(rows.shape) != (len(batch.index),):
                    yield number, f"`{term.use}` gives shape {list(rows.shape)} for {len(batch.index)} samples", "one value per sample, or one in all"
                elif not rows.requires_grad:
                    yield number, f"`{term.use}` has no gradient with respect to the student", "don't detach the student's output"
                else:
                    rows.sum().backward(retain_graph=True)
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                yield (
                    number,
                    f"`{term.use}` can't work on this task ({shapes}): {type(error).__name__}: {reason}",
                    "name a loss that fits outputs and labels",
                )
            student.zero_grad(set_to_none=True)


def _shape(value: Any) -> str:
    return "none" if value is None else str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__


def make_optimizer(module: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only: norms, biases and learned ranges stay free."""
    import torch

    wanted = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in wanted if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr)


def pace(step: int, total: int, settings: Training) -> float:
    """The share of the peak learning rate at `step` of `total`: linear warm-up, then the schedule down to 0."""
    warm = max(1, round(settings.warmup * total)) if settings.warmup else 0
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]


@contextlib.contextmanager
def seeded(seed: int, threads: int) -> Iterator[None]:
    """The random generator and thread count of a training; the caller's are put back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def laid_out(module: nn.Module, precision: Precision) -> Iterator[Callable[[], Any]]:
    """Gives the context that the forward pass runs in. For bfloat16 the weights are laid out channels last meanwhile, as its kernels want."""
    import torch

    if precision == "float32":
        yield contextlib.nullcontext
        return
    module.to(memory_format=torch.channels_last)
    try:
        yield lambda: torch.autocast("cpu", torch.bfloat16)
    finally:
        module.to(memory_format=torch.contiguous_format)


def _finite(loss: torch.Tensor, parts: Mapping[str, torch.Tensor], epoch: int, position: int, rate: float) -> None:
    if not math.isfinite(loss.item()):
        bad = ", ".join(f"{name} = {value.item():.3g}" for name, value in parts.items())
        raise RunFailed(f"training diverged: the loss is {loss.item()} at epoch {epoch + 1}, step {position + 1}, learning rate {rate:.3g} ({bad})"
                        "\n  hint: lower `lr`, lengthen `warmup` or set `clip`; look for inputs that are not finite")  # fmt: skip


# ---------------------------------------------------------------- checkpoints


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, position: int, sums: Mapping[str, float]) -> None:
    """One safetensors file, put in place by rename: a kill leaves the old checkpoint or the new one."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"module.{name}": t.detach().clone() for name, t in module.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.detach().clone()
            else:
                numbers[f"{index}.{name}"] = value
    tensors["random"] = torch.get_rng_state()
    header = {"epoch": epoch, "position": position, "sums": dict(sums), "optimizer": numbers}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "checkpoint.part"
    save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata={"edgekd": json.dumps(header)})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, folder / "checkpoint.safetensors")


def restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int, dict[str, float]]:
    """(epoch, position, sums) of the checkpoint, its state loaded; (0, 0, {}) where there is none that can be read."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0, 0, {}
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["edgekd"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return 0, 0, {}
    module.load_state_dict({n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            state.setdefault(int(index), {})[slot] = value
    for name, value in header["optimizer"].items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])
    return header["epoch"], header["position"], header["sums"]
