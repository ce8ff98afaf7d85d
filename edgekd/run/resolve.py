"""A recipe with what it refers to: its task, data, targets and budgets found and checked, all problems told at once;
and written out again."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgekd import components, environment, signatures
from edgekd.errors import THEIRS, EdgekdError, Problem, UsageError, exits
from edgekd.records import Metric, Task
from edgekd.run.recipe import Read, Recipe, Select
from edgekd.run.settings import FILLED_IN
from edgekd.run.target_settings import OPEN


@dataclass(frozen=True)
class Resolved:
    """A recipe with what it refers to: ready to be planned. `data(split)` gives loaded columns, read once."""

    read: Read
    task: Task
    data: Callable[[str], Any]
    targets: tuple[Any, ...]
    threads: int
    select: Select
    gate: Mapping[str, Mapping[str, Any]]


@exits(UsageError)
def resolve(recipe: Read) -> Resolved:
    """Finds task and targets, fills the defaults that depend on them. Raises UsageError with every problem of all of
    them."""
    resolved, problems = find(recipe)
    if problems:
        raise UsageError(*dict.fromkeys(problems))  # data that can't be read is told by every split
    return resolved


@environment.threads()
def find(recipe: Read) -> tuple[Resolved, list[Problem]]:
    """What a recipe refers to, as far as it can be found, and every problem with it."""
    from edgekd import targets
    from edgekd.data import columns
    from edgekd.decisions import budget, capacity

    problems: list[Problem] = []
    task = _gather(lambda: find_task(recipe.recipe.task, recipe.folder), f"{recipe.place}: task", problems)
    found = [
        _gather(lambda name=name: targets.load(_beside(name, recipe.folder)), f"{recipe.place}: targets", problems)
        for name in dict.fromkeys(recipe.recipe.targets)
    ]
    load = cache(environment.threads()(lambda split: columns.load(task, split)))
    select, gate = recipe.recipe.select, {name: dict(lines) for name, lines in recipe.recipe.gate.items()}
    if isinstance(task, Task) and task.metrics:
        taken = metric_problems(task)
        problems += [*taken, *_task_problems(task, recipe, load)]
        first = task.metrics[0]
        if not select.maximize and first.better == "higher":
            select = select.model_copy(update={"maximize": (first.name,)})
        elif first.better == "lower" and first.name not in select.minimize:
            select = select.model_copy(update={"minimize": (*select.minimize, first.name)})
        if not taken:
            gate = budget.with_default(gate, first.name, first.unit, [t.name for t in found if t is not None])
    gate = capacity.added(gate, [t for t in found if t is not None])
    names = [t.name for t in found if t is not None]
    metrics = {m.name: m.unit for m in task.metrics} if isinstance(task, Task) else None
    whole = None if None in found else names  # a target that was not found is told, not also as unknown to the gate
    problems += budget.problems(gate, place=f"{recipe.place}: gate", targets=whole, metrics=metrics)
    problems += _select_problems(select, metrics, f"{recipe.place}: select")
    problems += _unmeasured(gate, metrics, f"{recipe.place}: gate")
    return Resolved(
        recipe, task, load, tuple(found), recipe.recipe.threads or environment.THREADS, select, gate
    ), problems


def _unmeasured(gate: Mapping[str, Any], metrics: Mapping[str, str] | None, place: str) -> list[Problem]:
    """Budgets on the metrics of other tasks: nothing would ever measure them."""
    from edgekd.decisions.quantities import METRICS

    tables = [(t, table) for t, table in gate.items() if isinstance(table, Mapping)] if metrics is not None else []
    others = {m.name for m in METRICS} - set(metrics or ())
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
    """Keys that nothing is measured by."""
    from edgekd.decisions.quantities import units

    known, problems = [*units(), *(metrics or {})], []
    for key, names in (("maximize", select.maximize), ("minimize", select.minimize)):
        for name in (n for n in names if metrics is not None and n not in known):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            problems.append(Problem(f"{place}.{key}", f"nothing is measured by the name `{name}`", hint))
    return problems


def _beside(name: str, folder: Path) -> str:
    path = folder / name
    return str(path) if name.endswith(".toml") and not Path(name).is_absolute() and path.is_file() else name


def _gather(make: Any, where: str, problems: list[Problem]) -> Any:
    try:
        return make()
    except UsageError as error:
        problems += [Problem(f"{where}: {p.place}" if p.place else where, p.message, p.hint) for p in error.problems]
        return None


def find_task(spec: str | Mapping[str, Any], folder: Path) -> Task:
    """A task: a built-in name, `package.module:name`, or {use = one of these, ...settings of its function}; paths are
    beside the recipe."""
    table = {"use": spec} if isinstance(spec, str) else dict(spec)
    use = table.pop("use", None)
    if not isinstance(use, str):
        raise UsageError(Problem("", "`use` is missing", 'task = "digits", or { use = "image_folder", path = "..." }'))
    task = components.imported(use) if ":" in use else _built_in_task(use)
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
    except THEIRS as error:  # the task is the user's own code
        raise UsageError(Problem("", f"`{use}` failed: {type(error).__name__}: {error}")) from error
    if not isinstance(made, Task):
        raise UsageError(Problem("", f"`{use}` returned {type(made).__name__}, not an edgekd.Task"))
    return made


def _built_in_task(use: str) -> Any:
    import importlib

    known = components.names("tasks")
    if use not in known:
        near = difflib.get_close_matches(use, known, 1)
        hint = (
            f"did you mean `{near[0]}`?" if near else f"built in: {', '.join(known)}; your own: `package.module:name`"
        )
        raise UsageError(Problem("", f"no task is named `{use}`", hint))
    module = importlib.import_module(f"edgekd.tasks.{use}")
    return module.task if hasattr(module, "task") else getattr(module, use)


def metric_problems(task: Task) -> list[Problem]:
    """Metrics named like what is measured of every candidate: one couldn't be told from the other."""
    from edgekd import probes

    own = probes.declared()
    names = dict.fromkeys(m.name for m in task.metrics if isinstance(m, Metric) and isinstance(m.name, str))
    text, where = "is a figure that edgekd takes by itself", f"task {task.name}: metrics"
    return [Problem(where, f"{name!r} {text}", f"another name, such as my_{name}") for name in names if name in own]


def _task_problems(task: Task, recipe: Read, load: Callable[[str], Any]) -> list[Problem]:
    from edgekd import data

    way = lambda m: next((m[w] for w in ("train", "distill") if w in m), {})
    made = {name: way(m).get("model", name) for name, m in recipe.models.items()}
    roles = tuple(
        dict.fromkeys(
            (
                made["teacher"],
                "student",
                *(model for name, model in made.items() if model == name or model in task.models),
            )
        )
    )
    files = [
        Problem(
            f"{recipe.place}: model.{name}: weights",
            f"there is no file `{m['weights']}`",
            "paths are looked for beside the recipe",
        )
        for name, m in recipe.models.items()
        if m.get("weights") and not os.path.isfile(recipe.folder / m["weights"])
    ]
    unknown = [
        Problem(
            f"{recipe.place}: {where}: model", f"the task has no model `{name}`", f"models: {', '.join(task.models)}"
        )
        for where, name in [
            *((f"stage {s.number} ({s.name})", s.settings.get("model")) for s in recipe.stages),
            *((f"model.{n}", way(m).get("model")) for n, m in recipe.models.items() if way(m).get("model") != n),
        ]
        if name is not None and name not in task.models
    ]
    return files + unknown + data.check(task, load, roles=roles)


def dump(resolved: Resolved, place: Path | None = None) -> str:
    """The recipe as resolved, with every default written out but those that targets fill in: reading it again gives the
    same keys. Paths are told from `place`, the folder that it is written to (None: as they were)."""
    import tomli_w

    form, home = resolved.read.recipe, resolved.read.folder

    def moved(value: Any) -> Any:
        """A path beside the recipe as seen from `place`; anything else as it is."""
        if place is None or not isinstance(value, str) or Path(value).is_absolute() or not (home / value).exists():
            return value
        return os.path.relpath(home / value, place.resolve())

    task = form.task if isinstance(form.task, str) else {k: v if k == "use" else moved(v) for k, v in form.task.items()}
    table: dict[str, Any] = {
        "task": task,
        "targets": [moved(name) if name.endswith(".toml") else name for name in form.targets],
        "seed": form.seed,
        "threads": resolved.threads,
        "control": form.control,
    }
    # the others are each target's own
    told = lambda s: {k: v for k, v in s.settings.items() if k in s.table or k not in OPEN}
    table["stage"] = [
        {"use": s.use, "name": s.name, **({"teacher": list(s.teacher)} if s.teacher else {}), **_plain(told(s))}
        for s in resolved.read.stages
    ]
    table["model"] = {name: _model(name, m, moved) for name, m in resolved.read.models.items()}
    if place is not None and _names_modules(form, resolved):
        table["modules"] = os.path.relpath(home / form.modules, place.resolve())
    if form.sweep:
        table["sweep"] = form.sweep
    if form.mixed:
        table["mixed"] = form.mixed
    table["select"] = resolved.select.model_dump()
    if resolved.gate:
        table["gate"] = resolved.gate
    return tomli_w.dumps(_plain(table))


def _model(name: str, table: Mapping[str, Any], moved: Callable[[Any], Any]) -> dict[str, Any]:
    """A `[model.NAME]` written out; what it shows only if that is not all."""
    found = {}
    for key, value in table.items():
        if key in ("train", "distill"):
            found[key] = _plain({n: x for n, x in value.items() if n != "model" or x != name})
            if table.get("teacher"):
                found[key]["teacher"] = list(table["teacher"])
        elif (
            value is not None and key != "teacher" and not (key in ("shows", "top") and table.get("shows") == "logits")
        ):
            found[key] = moved(value)
    return found


def _names_modules(form: Recipe, resolved: Resolved) -> bool:
    """Whether the recipe names code of one's own, as `package.module:name`."""
    lines = [{"use": s.use, **s.settings} for s in resolved.read.stages]
    return any(components.specs_in([form.task, lines, list(resolved.read.models.values())]))


def _plain(value: Any) -> Any:
    """What TOML can say: no None, tuples as lists, without what the plan fills in."""
    value = signatures.plain(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None and k not in FILLED_IN}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
