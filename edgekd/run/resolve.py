"""Resolves a recipe: finds and checks its task, data, targets and budgets, and reports all problems at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from edgekd import components, environment, signatures
from edgekd.decisions.quantities import of_outputs
from edgekd.errors import THEIRS, EdgekdError, Problem, UsageError, exits, gathered, near
from edgekd.records import Metric, Task
from edgekd.run import given_models, passed
from edgekd.run import recipe as recipes
from edgekd.run.default_losses import fitted
from edgekd.run.device import chosen
from edgekd.run.recipe import Recipe
from edgekd.run.recipe.form import Select
from edgekd.run.recipe.stages import partners
from edgekd.store.store import Store


@dataclass(frozen=True)
class Resolved:
    """A recipe with its task, data and targets, ready to plan. `data(split)` returns loaded columns, read once;
    `identity()` all that the task's behaviour depends on (`passed.of_task`), computed once. `devices`: those of the
    run; models are trained on the last, and what is finished on the others is kept."""

    recipe: Recipe
    task: Task
    data: Callable[[str], Any]
    targets: tuple[Any, ...]
    threads: int
    select: Select
    gate: Mapping[str, Mapping[str, Any]]
    identity: Callable[[], tuple[Any, ...]]
    devices: tuple[str, ...] = ("cpu",)

    @property
    def processes(self) -> int:
        """How many processes train a model together."""
        return self.recipe.processes

    @property
    def device(self) -> str:
        return self.devices[-1]


@exits(UsageError)
def resolved(
    source: Path | str | Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    targets: Iterable[str] = (),
    threads: int | None = None,
    store: Store | None = None,
    device: str | None = None,
    processes: int | None = None,
) -> Resolved:
    """Reads a recipe (None: the built-in one), applies settings, targets, threads, device and processes, and finds its
    task, data and targets. The check of a task is not repeated if `store` has its result. Raises UsageError with every
    problem."""
    recipe, problems = recipes.parsed(source, sets, targets, threads, device, processes)
    found, more = find(recipe, store)
    if problems or more:
        raise UsageError(*dict.fromkeys([*problems, *more]))  # every split reports data that can't be read
    return found


@environment.threads()
def find(recipe: Recipe, store: Store | None = None) -> tuple[Resolved, list[Problem]]:
    """(the recipe with its task, data and targets, as far as these are found; every problem)."""
    from edgekd import targets
    from edgekd.data import columns
    from edgekd.decisions import budget, capacity

    problems: list[Problem] = []
    task = gathered(lambda: find_task(recipe.task, recipe.folder), problems, f"{recipe.place}: task")
    found = [
        gathered(partial(targets.load, _beside(name, recipe.folder)), problems, f"{recipe.place}: targets")
        for name in dict.fromkeys(recipe.targets)
    ]
    kept = partial(passed.kept, store, "digest")
    load = cache(environment.threads()(lambda split: columns.load(task, split, kept)))
    identity = cache(lambda: passed.of_task(task, load))
    select, gate = recipe.select, {name: dict(lines) for name, lines in recipe.gate.items()}
    if isinstance(task, Task):
        recipe, task = given_models.placed(recipe, task, problems)
        recipe = fitted(recipe, task, partial(_labels, load))
    if isinstance(task, Task) and task.metrics:
        taken = metric_problems(task)
        problems += [*taken, *_task_problems(task, recipe, load, identity, store)]
        first = task.metrics[0]
        if not select.maximize and first.better == "higher":
            select = select.model_copy(update={"maximize": (first.name,)})
        elif first.better == "lower" and first.name not in select.minimize:
            select = select.model_copy(update={"minimize": (*select.minimize, first.name)})
        if not taken:
            gate = budget.with_default(gate, first.name, first.unit, [t.name for t in found if t is not None])
    gate = capacity.added(gate, [t for t in found if t is not None])
    names = [t.name for t in found if t is not None]
    metrics = {m.name: m.unit for m in task.metrics} | of_outputs(task.heads) if isinstance(task, Task) else None
    whole = None if None in found else names  # a target that was not found is reported once, not again by the gate
    problems += budget.problems(gate, place=f"{recipe.place}: gate", targets=whole, metrics=metrics)
    problems += _select_problems(select, metrics, f"{recipe.place}: select")
    problems += _unmeasured(gate, metrics, f"{recipe.place}: gate", isinstance(task, Task) and bool(task.heads))
    threads = recipe.threads or environment.THREADS
    devices = chosen(recipe.device, problems)
    return Resolved(recipe, task, load, tuple(found), threads, select, gate, identity, devices), problems


def _labels(load: Callable[[str], Any]) -> Any:
    """The labels of the training split; None where it can't be read, which is reported with the other splits."""
    try:
        return load("train").labels
    except (EdgekdError, *THEIRS):
        return None


def _unmeasured(
    gate: Mapping[str, Any], metrics: Mapping[str, str] | None, place: str, several: bool = False
) -> list[Problem]:
    """Budgets on the metrics of other tasks, and of `several` outputs on what is measured of each: nothing would ever
    measure them."""
    from edgekd.decisions.quantities import METRICS, of_each

    tables = [(t, table) for t, table in gate.items() if isinstance(table, Mapping)] if metrics is not None else []
    others = {*(m.name for m in METRICS), *(of_each() if several else ())} - set(metrics or ())
    return [
        Problem(
            f"{place}.{target}.{name}",
            f"the task does not measure `{name}`",
            f"its metrics: {', '.join(metrics or ())}",
        )
        for target, table in tables
        for name in table
        if name in others
    ]


def _select_problems(select: Select, metrics: Mapping[str, str] | None, place: str) -> list[Problem]:
    """Problems of names that no measurement has."""
    from edgekd.decisions.quantities import units

    known, problems = [*units(), *(metrics or {})], []
    for key, names in (("maximize", select.maximize), ("minimize", select.minimize)):
        for name in (n for n in names if metrics is not None and n not in known):
            problems.append(Problem(f"{place}.{key}", f"no measurement is named `{name}`", near(name, known)))
    return problems


def _beside(name: str, folder: Path) -> str:
    path = folder / name
    return str(path) if name.endswith(".toml") and not Path(name).is_absolute() and path.is_file() else name


def find_task(spec: str | Mapping[str, Any], folder: Path) -> Task:
    """A task: a built-in name, `package.module:name`, or {use = one of these, ...settings of its function}; paths are
    relative to the recipe."""
    table = {"use": spec} if isinstance(spec, str) else dict(spec)
    use = table.pop("use", None)
    if not isinstance(use, str):
        raise UsageError(Problem("", "`use` is missing", 'task = "digits", or { use = "image_folder", path = "..." }'))
    task = components.find("tasks", use)
    if isinstance(task, Task):
        if table:
            raise UsageError(Problem("", f"`{use}` takes no settings, but {', '.join(table)} is given"))
        return task
    if not callable(task):
        raise UsageError(
            Problem(
                "",
                f"`{use}` is {type(task).__name__}, not a task",
                "name an edgekd.Task, or a function that returns one",
            )
        )
    settings, problems = signatures.settings_of(task, table, use)
    if problems:
        raise UsageError(*problems)
    settings = {k: folder / v if isinstance(v, Path) and not v.is_absolute() else v for k, v in settings.items()}
    try:
        made = task(**settings)
    except EdgekdError:
        raise
    except THEIRS as error:  # the task is the user's code
        raise UsageError(Problem("", f"`{use}` failed: {type(error).__name__}: {error}")) from error
    if not isinstance(made, Task):
        raise UsageError(Problem("", f"`{use}` returned {type(made).__name__}, not an edgekd.Task"))
    return made


def metric_problems(task: Task) -> list[Problem]:
    """Problems of metrics with the name of a measurement of edgekd's own."""
    from edgekd import probes

    own = probes.declared()
    names = dict.fromkeys(m.name for m in task.metrics if isinstance(m, Metric) and isinstance(m.name, str))
    text, where = "is the name of a measurement of edgekd", f"task {task.name}: metrics"
    return [Problem(where, f"{name!r} {text}", f"another name, such as my_{name}") for name in names if name in own]


def _task_problems(
    task: Task, recipe: Recipe, load: Callable[[str], Any], identity: Callable[[], tuple[Any, ...]], store: Store | None
) -> list[Problem]:
    from edgekd import data

    models = recipe.models.values()
    made = [m.of for m in models if m.of == m.name or m.of in task.models]
    files = [
        Problem(
            f"{recipe.place}: model.{m.name}: weights",
            f"there is no file `{m.weights}`",
            "paths are relative to the recipe",
        )
        for m in models
        if m.weights and not os.path.isfile(recipe.folder / m.weights)
    ]
    named = [(f"stage {line.number} ({line.name})", getattr(line.stage, "model", None)) for line in recipe.stages]
    named += [(f"model.{m.name}", m.of) for m in models if m.of != m.name]
    known = f"models: {', '.join(task.models)}"
    together = [(f"stage {s.number} ({s.name})", n) for s in recipe.stages for n in partners(s.stage)]
    together += [(f"model.{m.name}", n) for m in models for n in partners(m.stage)]
    unknown = [
        Problem(f"{recipe.place}: {where}: model", f"the task has no model `{name}`", known)
        for where, name in named
        if name is not None and name not in task.models
    ]
    unknown += [
        Problem(f"{recipe.place}: {where}: learns_with", f"the task has no model `{name}`", known)
        for where, name in together
        if name not in task.models and not (name in recipe.models and recipe.models[name].given)
    ]
    made += [name for _, name in together if name in task.models]
    roles = tuple(dict.fromkeys((recipe.models["teacher"].of, "student", *made)))
    wrong: list[Problem] = []

    def check() -> dict[str, Any] | None:
        wrong.extend(data.check(task, load, roles=roles))
        return None if wrong else {}

    passed.kept(store, "task", lambda: (identity(), roles), check)
    return files + unknown + wrong
