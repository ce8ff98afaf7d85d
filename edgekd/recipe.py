"""Recipes: TOML read strictly, every problem told at once, before anything is computed.

`read` checks the form and every part's settings against its signature; `resolve` adds what the recipe refers to (task, targets, budgets).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from edgekd import components
from edgekd.errors import EdgekdError, Problem, UsageError
from edgekd.records import Task

if TYPE_CHECKING:
    from edgekd.train import Training

BUILT_IN = Path(__file__).parent / "tasks" / "digits.toml"
STAGE_KEYS = ("use", "name", "teacher")  # what a [[stage]] says beside its part's settings
FILLED_IN = ("augment_seed", "sha256")  # settings that the plan fills in


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelTable(Strict):
    """`[model.NAME]`: how a model that stages refer to is made. `train`: settings of the train stage; or `weights`: a file."""

    train: dict[str, Any] | None = None
    weights: str | None = None
    seed: int | None = None


class Select(Strict):
    maximize: tuple[str, ...] = ()
    minimize: tuple[str, ...] = ("latency_p50_ms", "file_bytes")


class Recipe(Strict):
    """The form of a recipe; what stands in `stage`, `model`, `sweep` and `gate` is checked against the parts it names."""

    task: str | dict[str, Any]
    targets: tuple[str, ...] = pydantic.Field(("host",), min_length=1)
    modules: str = "."  # where modules that the recipe names lie, seen from it
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    threads: Annotated[int, pydantic.Field(ge=1, le=1024)] | None = None
    control: bool = True
    stage: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)
    model: dict[str, ModelTable] = {}
    sweep: dict[str, list[Any]] = {}
    select: Select = Select()
    gate: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class StageLine:
    """One `[[stage]]`, read: its name, its part, its settings with defaults filled in, and the teacher it learns from."""

    number: int
    name: str
    use: str
    part: type
    settings: Mapping[str, Any]
    teacher: str | None
    table: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """A recipe that was read: the form, its stages, where it came from."""

    recipe: Recipe
    stages: tuple[StageLine, ...]
    models: Mapping[str, Mapping[str, Any]]
    place: str
    folder: Path
    raw: Mapping[str, Any] = field(default_factory=dict)


def read(source: Path | str | Mapping[str, Any] | None = None, sets: Iterable[str] = (), targets: Iterable[str] = ()) -> Read:
    """Reads a recipe (None: the built-in one), applies `STAGE.KEY=VALUE` settings and targets. Raises UsageError with every problem."""
    raw, place, folder = _open(source)
    problems: list[Problem] = []
    raw = _apply_sets(raw, sets, problems)
    if targets:
        raw["targets"] = list(targets)
    form, found = components.check(Recipe, raw, place)
    problems += found
    if form is None:  # go on with what is sound, so that all problems are told at once
        wrong = {p.place.removeprefix(f"{place}: ").partition(".")[0] for p in found}
        form, _ = components.check(Recipe, {"task": "digits", "stage": [{"use": "train"}]} | {k: v for k, v in raw.items() if k not in wrong}, place)
        if form is None:
            raise UsageError(*problems)
    look_beside(folder / form.modules)
    stages = _stages(form, place, problems)
    models = _models(form, place, problems)
    _references(form, stages, place, problems)
    _sweep(form, stages, place, problems)
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return Read(form, tuple(stages), models, place, folder, raw)


def look_beside(folder: Path) -> None:
    """Modules that a recipe names are looked for beside it and in the current folder: a recipe runs code, on purpose."""
    for path in (str(Path.cwd()), str(folder)):
        if path not in sys.path:
            sys.path.insert(0, path)


def _open(source: Path | str | Mapping[str, Any] | None) -> tuple[dict[str, Any], str, Path]:
    if isinstance(source, Mapping):
        return _copy(source), "recipe", Path.cwd()
    path, place = (BUILT_IN, "built-in recipe") if source is None else (Path(source), str(source))
    if path.is_dir() and (path / "recipe.toml").is_file():
        path = path / "recipe.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), place, Path.cwd() if source is None else path.resolve().parent
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else [], 1)
        hint = f"did you mean `{path.parent / near[0]}`?" if near else "`edgekd compress` without a recipe runs the built-in one"
        raise UsageError(Problem(place, "there is no such recipe", hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem(place, f"can't be read: {error}")) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(Problem(place, f"is not TOML: {error}")) from None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def _apply_sets(raw: dict[str, Any], sets: Iterable[str], problems: list[Problem]) -> dict[str, Any]:
    """`STAGE.KEY=VALUE` goes into that stage, `KEY=VALUE` to the top level, `model.teacher.seed=1` down the tables. A key that is set
    is no longer swept."""
    raw = _copy(raw)
    for text in sets:
        place, (path, equals, value_text) = f"--set {text}", text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(Problem(place, "is not of the form STAGE.KEY=VALUE", "for example --set distill.epochs=20"))
            continue
        value = _value(value_text.strip())
        tables = [s for s in raw["stage"] if isinstance(s, dict)] if isinstance(raw.get("stage"), list) else []
        stages = {str(s.get("name", s.get("use"))): s for s in tables}
        if keys[0] == "sweep" and len(keys) > 1 and isinstance(raw.setdefault("sweep", {}), dict):
            raw["sweep"][".".join(keys[1:])] = value
            continue
        if keys[0] in stages:
            where, keys = stages[keys[0]], keys[1:]
        elif len(keys) > 1 and keys[0] not in Recipe.model_fields:
            near = difflib.get_close_matches(keys[0], list(stages), 1)
            problems.append(
                Problem(place, f"no stage is named `{keys[0]}`", f"did you mean `{near[0]}`?" if near else f"stages: {', '.join(stages)}")
            )
            continue
        else:
            where = raw
        if not keys:
            problems.append(Problem(place, "names a stage but none of its keys", "STAGE.KEY=VALUE"))
            continue
        for key in keys[:-1]:
            where = where.setdefault(key, {}) if isinstance(where, dict) else None
        if not isinstance(where, dict):
            problems.append(Problem(place, f"`{'.'.join(path.strip().split('.')[:-1])}` is no table, it has no keys"))
            continue
        where[keys[-1]] = value
        if isinstance(raw.get("sweep"), dict):
            raw["sweep"].pop(path.strip(), None)
    return raw


def _value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _stages(form: Recipe, place: str, problems: list[Problem]) -> list[StageLine]:
    lines: list[StageLine] = []
    for number, table in enumerate(form.stage, 1):
        use = table.get("use")
        name = table.get("name", use)
        where = f"{place}: stage {number} ({name})"
        if not isinstance(use, str):
            problems.append(Problem(f"{place}: stage {number}", "`use` is missing", f"one of {', '.join(public_stages())}"))
            continue
        part = _find("stages", use, where, problems)
        if part is None:
            continue
        name = name if isinstance(name, str) else repr(name)
        if not name[:1].isalnum() or not name.replace("-", "").replace("_", "").isalnum():
            problems.append(Problem(where, f"`name` must be letters, digits, - and _, not {name!r}"))
        if any(line.name == name for line in lines) or name in form.model or name in ("teacher", "alone"):
            problems.append(Problem(where, f"the name `{name}` is taken", 'give this stage a `name = "..."` of its own'))
        settings = _settings(part, {k: v for k, v in table.items() if k not in STAGE_KEYS}, where, problems)
        lines.append(StageLine(number, name, use, part, settings, _teacher(table, part, settings, where, problems), table))
    return lines


def at(line: StageLine, own: Mapping[str, Any]) -> StageLine:
    """The stage at a point of the sweep: its settings read again with the point's `own`, and the teacher that they then need."""
    if not own:
        return line
    problems: list[Problem] = []
    table = {**line.table, **own}
    settings = _settings(line.part, {k: v for k, v in table.items() if k not in STAGE_KEYS}, line.name, problems)
    teacher = _teacher(table, line.part, settings, line.name, problems)
    if problems:
        raise UsageError(*problems)
    return StageLine(line.number, line.name, line.use, line.part, settings, teacher, table)


def public_stages() -> list[str]:
    """Stages that a recipe's line may name: those that make a model from a model."""
    return [name for name in components.names("stages") if name not in ("answer", "load", "export")]


def _find(folder: str, use: Any, where: str, problems: list[Problem]) -> Any:
    try:
        return components.find(folder, str(use), public_stages() if folder == "stages" else None)
    except UsageError as error:
        problems += [Problem(where, p.message, p.hint) for p in error.problems]
        return None


def _settings(part: type, table: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    """A part's settings with defaults; the settings of its loss terms and criterion checked against theirs."""
    filled = [Problem(f"{where}: {k}", "is filled in by edgekd", "leave it out") for k in FILLED_IN if k in table]
    settings, found = components.settings_of(part, table, where)
    problems += filled + found
    losses = settings.get("losses", () if settings else table.get("losses", ()))
    if losses and all(isinstance(t, dict) for t in losses):
        settings["losses"] = tuple(_loss(t, f"{where}: losses[{i}]", problems) for i, t in enumerate(losses))
    elif "losses" in settings:
        problems.append(Problem(f"{where}: losses", "is empty", 'for example losses = [{ use = "cross_entropy" }]'))
    return settings


def _loss(table: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    """One loss term with its defaults filled in."""
    if not isinstance(table.get("use"), str):
        problems.append(Problem(where, "`use` is missing", f"one of {', '.join(components.names('losses'))}, or `package.module:name`"))
        return dict(table)
    weight = table.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        problems.append(Problem(f"{where}: weight", f"must be a number of at least 0, not {weight!r}"))
    part = _find("losses", table["use"], where, problems)
    if part is None:
        return dict(table)
    if not inspect.isroutine(part) and not isinstance(part, type | functools.partial):
        problems.append(Problem(where, f"`{table['use']}` is {type(part).__name__}, not a function"))
        return dict(table)
    hyper, found = components.settings_of(
        part, {k: v for k, v in table.items() if k not in ("use", "weight")}, where, components.POSITIONAL["losses"]
    )
    problems += found
    return {"use": table["use"], "weight": weight, **hyper}


def _teacher(table: Mapping[str, Any], part: type, settings: Mapping[str, Any], where: str, problems: list[Problem]) -> str | None:
    """The teacher that a stage names, by default `teacher` where one of its terms needs one."""
    from edgekd.train import terms

    wants = []
    for term in terms([t for t in settings.get("losses", ()) if isinstance(t.get("use"), str)]):
        try:
            wants += [term.use] if term.needs_teacher() else []
        except (UsageError, TypeError, ValueError):
            continue  # told already
    trains = "losses" in components.parameters(part) and settings.get("mode") != "ptq"
    teacher = table.get("teacher", "teacher" if wants and trains else None)
    if teacher is not None and not isinstance(teacher, str):
        problems.append(Problem(f"{where}: teacher", f"must be the name of one model or stage, not {teacher!r}"))
        return None
    return teacher if trains else None


def _models(form: Recipe, place: str, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """`[model.*]` tables with their train settings filled in."""
    from edgekd.stages.train import Train

    models: dict[str, dict[str, Any]] = {}
    for name, table in {"teacher": ModelTable(), **form.model}.items():
        where = f"{place}: model.{name}"
        if table.train is not None and table.weights is not None:
            problems.append(Problem(where, "has both `train` and `weights`", "train it, or bring it"))
        if table.weights is not None:
            models[name] = {"weights": table.weights, "seed": table.seed}
        else:
            settings = _settings(Train, {"model": name, **(table.train or {})}, f"{where}.train", problems)
            models[name] = {"train": settings, "seed": table.seed}
    return models


def _references(form: Recipe, stages: list[StageLine], place: str, problems: list[Problem]) -> None:
    """Teachers must be models, or stages that come before."""
    for line in stages:
        known = ["teacher", *form.model, *(s.name for s in stages if s.number < line.number)]
        if line.teacher is not None and line.teacher not in known:
            near = difflib.get_close_matches(line.teacher, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(dict.fromkeys(known))}"
            problems.append(Problem(f"{place}: stage {line.number} ({line.name}): teacher", f"nothing is named `{line.teacher}`", hint))
    if stages and stages[0].number == 1 and stages[0].use not in ("distill", "train") and "student" not in form.model:
        hint = 'begin with a `distill` or `train` stage, or bring the student: [model.student] weights = "student.safetensors"'
        problems.append(Problem(f"{place}: stage 1 ({stages[0].name})", f"`{stages[0].use}` needs a student that was trained", hint))
    for line in stages:
        if line.use == "quantize" and line.number < len(form.stage):
            problems.append(Problem(f"{place}: stage {line.number} ({line.name})", "`quantize` must be the last stage", "move it to the end"))


def _sweep(form: Recipe, stages: list[StageLine], place: str, problems: list[Problem]) -> None:
    by_name = {line.name: line for line in stages}
    for path, values in form.sweep.items():
        where = f"{place}: sweep.{path}"
        if not values:
            problems.append(Problem(where, "is empty", "give the values to try"))
        if len({repr(v) for v in values}) < len(values):
            problems.append(Problem(where, "names a value twice"))
        if path == "seed":
            problems += [Problem(where, f"{v!r} is no whole number") for v in values if isinstance(v, bool) or not isinstance(v, int)]
            continue
        name, _, key = path.partition(".")
        if name not in by_name or not key:
            near = difflib.get_close_matches(name, list(by_name), 1)
            problems.append(Problem(where, f"no stage is named `{name}`", f"did you mean `{near[0]}.{key}`?" if near else 'write "STAGE.KEY"'))
            continue
        for value in values:
            _settings(by_name[name].part, {key: value}, where, problems)


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


def resolve(recipe: Read) -> Resolved:
    """Finds task and targets, fills the defaults that depend on them. Raises UsageError with every problem of all of them."""
    from edgekd import environment, targets
    from edgekd.decisions import budget
    from edgekd.sources import columns

    problems: list[Problem] = []
    task = _gather(lambda: find_task(recipe.recipe.task, recipe.folder), f"{recipe.place}: task", problems)
    found = [
        _gather(lambda name=name: targets.load(_beside(name, recipe.folder)), f"{recipe.place}: targets", problems)
        for name in dict.fromkeys(recipe.recipe.targets)
    ]
    load = cache(lambda split: columns.load(task, split))
    select, gate = recipe.recipe.select, {name: dict(lines) for name, lines in recipe.recipe.gate.items()}
    if isinstance(task, Task) and task.metrics:
        problems += _task_problems(task, recipe, load)
        first = task.metrics[0]
        if not select.maximize and first.better == "higher":
            select = Select(maximize=(first.name,), minimize=select.minimize)
        elif first.better == "lower" and first.name not in select.minimize:
            select = Select(maximize=select.maximize, minimize=(*select.minimize, first.name))
        gate = budget.with_default(gate, first.name, first.unit, [t.name for t in found if t is not None])
    names = [t.name for t in found if t is not None]
    metrics = {m.name: m.unit for m in task.metrics} if isinstance(task, Task) else None
    problems += budget.problems(gate, place=f"{recipe.place}: gate", targets=names, metrics=metrics)
    problems += _select_problems(select, metrics, f"{recipe.place}: select")
    if problems:
        raise UsageError(*problems)
    threads = recipe.recipe.threads or min(2, environment.cores())
    return Resolved(recipe, task, load, tuple(found), threads, select, gate)


def _select_problems(select: Select, metrics: Mapping[str, str] | None, place: str) -> list[Problem]:
    """Keys that nothing is measured by."""
    from edgekd.decisions.rules import UNITS

    known, problems = [*UNITS, *(metrics or {})], []
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
    """A task: a built-in name, `package.module:name`, or {use = one of these, ...settings of its function}; paths are beside the recipe."""
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
        raise UsageError(Problem("", f"`{use}` is {type(task).__name__}, not a task", "name an edgekd.Task, or a function that returns one"))
    settings, problems = components.settings_of(task, table, use)
    if problems:
        raise UsageError(*problems)
    settings = {k: folder / v if isinstance(v, Path) and not v.is_absolute() else v for k, v in settings.items()}
    try:
        made = task(**settings)
    except EdgekdError:
        raise
    except Exception as error:  # the task is the user's own code
        raise UsageError(Problem("", f"`{use}` failed: {type(error).__name__}: {error}")) from error
    if not isinstance(made, Task):
        raise UsageError(Problem("", f"`{use}` returned {type(made).__name__}, not an edgekd.Task"))
    return made


def _built_in_task(use: str) -> Any:
    import importlib

    known = components.names("tasks")
    if use not in known:
        near = difflib.get_close_matches(use, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"built in: {', '.join(known)}; your own: `package.module:name`"
        raise UsageError(Problem("", f"no task is named `{use}`", hint))
    module = importlib.import_module(f"edgekd.tasks.{use}")
    return module.task if hasattr(module, "task") else getattr(module, use)


def _task_problems(task: Task, recipe: Read, load: Callable[[str], Any]) -> list[Problem]:
    from edgekd import data

    roles = tuple(dict.fromkeys(("teacher", "student", *recipe.recipe.model)))
    files = [
        Problem(f"{recipe.place}: model.{name}: weights", f"there is no file `{m['weights']}`", "paths are looked for beside the recipe")
        for name, m in recipe.models.items()
        if m.get("weights") and not (recipe.folder / m["weights"]).is_file()
    ]
    unknown = [
        Problem(f"{recipe.place}: {where}: model", f"the task has no model `{name}`", f"models: {', '.join(task.models)}")
        for where, name in [
            *((f"stage {s.number} ({s.name})", s.settings.get("model")) for s in recipe.stages),
            *((f"model.{n}.train", m["train"].get("model")) for n, m in recipe.models.items() if "train" in m and n in task.models),
        ]
        if name is not None and name not in task.models
    ]
    return files + unknown + data.check(task, load, roles=roles)


def dump(resolved: Resolved, place: Path | None = None) -> str:
    """The recipe as resolved, with every default written out: reading it again gives the same keys. Paths are told from `place`, the folder
    that it is written to (None: as they were)."""
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
    table["stage"] = [
        {"use": s.use, "name": s.name, **({"teacher": s.teacher} if s.teacher else {}), **_plain(s.settings)} for s in resolved.read.stages
    ]
    table["model"] = {
        name: {
            k: _plain({n: x for n, x in v.items() if n != "model" or x != name}) if k == "train" else moved(v) for k, v in m.items() if v is not None
        }
        for name, m in resolved.read.models.items()
    }
    if place is not None and _names_modules(form, resolved):
        table["modules"] = os.path.relpath(home / form.modules, place.resolve())
    if form.sweep:
        table["sweep"] = form.sweep
    table["select"] = {"maximize": list(resolved.select.maximize), "minimize": list(resolved.select.minimize)}
    if resolved.gate:
        table["gate"] = resolved.gate
    return tomli_w.dumps(_plain(table))


def _names_modules(form: Recipe, resolved: Resolved) -> bool:
    """Whether the recipe names code of one's own, as `package.module:name`."""
    task = form.task if isinstance(form.task, str) else str(form.task.get("use"))
    losses = [t for s in resolved.read.stages for t in s.settings.get("losses", ())]
    losses += [t for m in resolved.read.models.values() for t in m.get("train", {}).get("losses", ())]
    uses = [
        task,
        *(s.use for s in resolved.read.stages),
        *(t["use"] for t in losses),
        *(str(s.settings.get("criterion", "")) for s in resolved.read.stages),
    ]
    return any(":" in use for use in uses)


def _plain(value: Any) -> Any:
    """What TOML can say: no None, tuples as lists, without what the plan fills in."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None and k not in FILLED_IN}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def training_of(line: StageLine) -> Training | None:
    """The stage's settings as its part, or None if it does not train."""
    return line.part(**line.settings) if "epochs" in {f.name for f in dataclasses.fields(line.part)} else None
