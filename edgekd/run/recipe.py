"""Recipes: TOML read strictly, every problem told at once. `read` checks the form, and every part's settings against
its signature; what a recipe refers to (task, targets, budgets) is found by `resolving`."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from edgekd import environment, signatures
from edgekd.errors import Problem, UsageError, exits
from edgekd.files import content, toml
from edgekd.run.settings import STAGE_KEYS, find_stage, public_stages, stage_settings, teachers_of

MOST_THREADS = 1024
POINTS = 10_000  # of a sweep: more is a mistake
BUILT_IN = Path(__file__).parent.parent / "tasks" / "digits.toml"


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelTable(Strict):
    """`[model.NAME]`: how a model that stages refer to is made. `train`: settings of the train stage; or `distill`:
    those of the distill stage, with its teacher (an assistant, a generation); or `weights`: a file. `shows`: what
    others learn from it, see the answer stage."""

    train: dict[str, Any] | None = None
    distill: dict[str, Any] | None = None
    shows: Literal["logits", "top", "label"] = "logits"
    top: Annotated[int, pydantic.Field(ge=1)] = 5
    weights: str | None = None
    seed: int | None = None


class Select(Strict):
    maximize: tuple[str, ...] = ()
    minimize: tuple[str, ...] = ("latency_p50_ms", "file_bytes")
    slower_int8: bool = False  # whether int8 may be chosen where its float parent is faster, for its bytes


class Recipe(Strict):
    """The form of a recipe; what stands in `stage`, `model`, `sweep` and `gate` is checked against the parts it
    names."""

    task: str | dict[str, Any]
    targets: tuple[str, ...] = pydantic.Field(("host",), min_length=1)
    modules: str = "."  # where modules that the recipe names lie, seen from it
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    threads: Annotated[int, pydantic.Field(ge=1, le=MOST_THREADS)] | None = None
    control: bool = True
    stage: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)
    model: dict[str, ModelTable] = {}
    sweep: dict[str, list[Any]] = {}
    mixed: dict[str, list[Annotated[float, pydantic.Field(gt=0, le=1)]]] = {}
    select: Select = Select()
    gate: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class StageLine:
    """One `[[stage]]`, read: its name, its part, its settings with defaults filled in, and the teachers it learns
    from."""

    number: int
    name: str
    use: str
    part: type
    settings: Mapping[str, Any]
    teacher: tuple[str, ...]
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


@exits(UsageError)
@environment.threads()
def read(
    source: Path | str | Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    targets: Iterable[str] = (),
    threads: int | None = None,
) -> Read:
    """Reads a recipe (None: the built-in one), applies `STAGE.KEY=VALUE` settings, targets and threads. Raises
    UsageError with every problem."""
    raw, place, folder = _open(source)
    problems: list[Problem] = []
    raw = _apply_sets(raw, sets, problems)
    if targets:
        raw["targets"] = list(targets)
    if threads is not None:
        raw["threads"] = threads
    form, found = signatures.check(Recipe, raw, place)
    problems += found
    if form is None:  # go on with what is sound, so that all problems are told at once
        wrong = {p.place.removeprefix(f"{place}: ").partition(".")[0] for p in found}
        form, _ = signatures.check(
            Recipe,
            {"task": "digits", "stage": [{"use": "train"}]} | {k: v for k, v in raw.items() if k not in wrong},
            place,
        )
        if form is None:
            raise UsageError(*problems)
    if "\0" in form.modules:
        problems.append(Problem(f"{place}: modules", "is no path"))
    else:
        look_beside(folder / form.modules)
    stages = _stages(form, place, problems)
    models = _models(form, place, problems)
    _references(form, stages, models, place, problems)
    _sweep(form, stages, place, problems)
    problems += _mixed(form, stages, place)
    made = Read(form, tuple(stages), models, place, folder, raw)
    if problems:
        from edgekd.run.resolve import find

        raise UsageError(*dict.fromkeys([*problems, *find(made)[1]]))  # what it refers to is told in the same go
    return made


def look_beside(folder: Path) -> None:
    """Modules that a recipe names are looked for beside it and in the current folder: a recipe runs code, on
    purpose."""
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
        return toml(content(path).decode("utf-8")), place, Path.cwd() if source is None else path.resolve().parent
    except FileNotFoundError:
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else [], 1
        )
        hint = (
            f"did you mean `{path.parent / near[0]}`?"
            if near
            else "`edgekd compress` without a recipe runs the built-in one"
        )
        raise UsageError(Problem(place, "there is no such recipe", hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem(place, f"can't be read: {getattr(error, 'strerror', None) or error}")) from None
    except ValueError as error:
        raise UsageError(Problem(place, f"is not TOML: {error}")) from None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def _apply_sets(raw: dict[str, Any], sets: Iterable[str], problems: list[Problem]) -> dict[str, Any]:
    """`STAGE.KEY=VALUE` goes into that stage, `KEY=VALUE` to the top level, `model.teacher.seed=1` down the tables. A
    key that is set is no longer swept."""
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
                Problem(
                    place,
                    f"no stage is named `{keys[0]}`",
                    f"did you mean `{near[0]}`?" if near else f"stages: {', '.join(stages)}",
                )
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
        return toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _stages(form: Recipe, place: str, problems: list[Problem]) -> list[StageLine]:
    lines: list[StageLine] = []
    for number, table in enumerate(form.stage, 1):
        use = table.get("use")
        name = table.get("name", use)
        where = f"{place}: stage {number} ({name})"
        if not isinstance(use, str):
            problems.append(
                Problem(f"{place}: stage {number}", "`use` is missing", f"one of {', '.join(public_stages())}")
            )
            continue
        part = find_stage(use, where, problems)
        if part is None:
            continue
        name = name if isinstance(name, str) else repr(name)
        if not name[:1].isalnum() or not name.replace("-", "").replace("_", "").isalnum():
            problems.append(Problem(where, f"`name` must be letters, digits, - and _, not {name!r}"))
        if (
            any(line.name == name for line in lines)
            or name in form.model
            or name in ("teacher", "alone")
            or name.startswith("alone-")
        ):
            problems.append(
                Problem(where, f"the name `{name}` is taken", 'give this stage a `name = "..."` of its own')
            )
        settings = stage_settings(part, {k: v for k, v in table.items() if k not in STAGE_KEYS}, where, problems)
        lines.append(
            StageLine(number, name, use, part, settings, teachers_of(table, part, settings, where, problems), table)
        )
    return lines


def at(line: StageLine, own: Mapping[str, Any]) -> StageLine:
    """The stage at a point of the sweep: its settings read again with the point's `own`, and the teachers that they
    then need."""
    if not own:
        return line
    problems: list[Problem] = []
    table = {**line.table, **own}
    settings = stage_settings(line.part, {k: v for k, v in table.items() if k not in STAGE_KEYS}, line.name, problems)
    teachers = teachers_of(table, line.part, settings, line.name, problems)
    if problems:
        raise UsageError(*problems)
    return StageLine(line.number, line.name, line.use, line.part, settings, teachers, table)


def _models(form: Recipe, place: str, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """`[model.*]` tables with their settings filled in."""
    from edgekd.stages.distill import Distill
    from edgekd.stages.train import Train

    models: dict[str, dict[str, Any]] = {}
    for name, table in {"teacher": ModelTable(), **form.model}.items():
        where = f"{place}: model.{name}"
        ways = [way for way in ("train", "distill", "weights") if getattr(table, way) is not None]
        if len(ways) > 1:
            problems.append(
                Problem(where, f"has both {' and '.join(f'`{w}`' for w in ways)}", "train it, distil it, or bring it")
            )
        models[name] = {"seed": table.seed, "shows": table.shows, "top": table.top}
        if table.weights is not None:
            models[name]["weights"] = table.weights
        elif table.distill is not None:
            given = {"model": name, **table.distill}
            settings = stage_settings(
                Distill, {k: v for k, v in given.items() if k not in STAGE_KEYS}, f"{where}.distill", problems
            )
            models[name] |= {
                "distill": settings,
                "teacher": teachers_of(given, Distill, settings, f"{where}.distill", problems),
            }
        else:
            models[name]["train"] = stage_settings(
                Train, {"model": name, **(table.train or {})}, f"{where}.train", problems
            )
    return models


def _references(
    form: Recipe, stages: list[StageLine], models: Mapping[str, Mapping[str, Any]], place: str, problems: list[Problem]
) -> None:
    """Teachers must be models, or stages that come before; models that learn from one another must not go round in a
    circle."""
    for line in stages:
        known = ["teacher", *form.model, *(s.name for s in stages if s.number < line.number)]
        problems += _strangers(line.teacher, known, f"{place}: stage {line.number} ({line.name}): teacher")
    for name, table in models.items():
        problems += _strangers(table.get("teacher", ()), list(models), f"{place}: model.{name}: teacher")
        chain, ahead = set(), [name]
        while ahead:
            for other in models.get(ahead.pop(), {}).get("teacher", ()):
                if other == name:
                    problems.append(
                        Problem(
                            f"{place}: model.{name}: teacher",
                            "learns from itself in the end",
                            "name teachers that are made before",
                        )
                    )
                    ahead = []
                    break
                ahead += [] if other in chain else [other]
                chain.add(other)
    if stages and stages[0].number == 1 and stages[0].use not in ("distill", "train") and "student" not in form.model:
        hint = (
            "begin with a `distill` or `train` stage, or bring the student: [model.student] weights = "
            '"student.safetensors"'
        )
        problems.append(
            Problem(f"{place}: stage 1 ({stages[0].name})", f"`{stages[0].use}` needs a student that was trained", hint)
        )
    for line in stages:
        if line.use == "quantize" and line.number < len(form.stage):
            problems.append(
                Problem(
                    f"{place}: stage {line.number} ({line.name})",
                    "`quantize` must be the last stage",
                    "move it to the end",
                )
            )


def _strangers(teachers: Iterable[str], known: Sequence[str], where: str) -> list[Problem]:
    found = []
    for teacher in teachers:
        if teacher not in known:
            near = difflib.get_close_matches(teacher, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(dict.fromkeys(known))}"
            found.append(Problem(where, f"nothing is named `{teacher}`", hint))
    return found


def _mixed(form: Recipe, stages: list[StageLine], place: str) -> list[Problem]:
    """What `[mixed]` names wrongly: stages that don't quantize, or of which the layers in float are given."""
    lines, found = {line.name: line for line in stages}, []
    told = [str(t.get("name", t.get("use"))) for t in form.stage]
    for name, shares in form.mixed.items():
        line, where = lines.get(name), f"{place}: mixed.{name}"
        if line is None and name not in told:
            near = difflib.get_close_matches(name, lines, 1)
            found.append(
                Problem(
                    where,
                    f"no stage is named `{name}`",
                    f"did you mean `{near[0]}`?" if near else "name a stage that quantizes",
                )
            )
        elif line is not None and line.use != "quantize":
            found.append(Problem(where, f"`{line.use}` makes no int8", "name a stage that quantizes"))
        elif line is not None and line.settings.get("float_layers"):
            found.append(Problem(where, "the stage names its float_layers itself", "leave out one of them"))
        if not shares:
            found.append(Problem(where, "is empty", "give shares of the time that int8 saves, for example [0.1, 0.3]"))
    return found


def _sweep(form: Recipe, stages: list[StageLine], place: str, problems: list[Problem]) -> None:
    by_name = {line.name: line for line in stages}
    if (points := math.prod(map(len, form.sweep.values()))) > POINTS:
        problems.append(
            Problem(
                f"{place}: sweep", f"comes to {points} combinations, more than {POINTS}", "sweep fewer keys at a time"
            )
        )
        return
    for path, values in form.sweep.items():
        where = f"{place}: sweep.{path}"
        if not values:
            problems.append(Problem(where, "is empty", "give the values to try"))
        if len({repr(v) for v in values}) < len(values):
            problems.append(Problem(where, "names a value twice"))
        if path == "seed":
            problems += [
                Problem(where, f"{v!r} is no whole number")
                for v in values
                if isinstance(v, bool) or not isinstance(v, int)
            ]
            continue
        name, _, key = path.partition(".")
        if name not in by_name and name in [str(t.get("name", t.get("use"))) for t in form.stage]:
            continue  # the stage itself is told to be wrong
        if name not in by_name or not key:
            near = difflib.get_close_matches(name, list(by_name), 1)
            problems.append(
                Problem(
                    where,
                    f"no stage is named `{name}`",
                    f"did you mean `{near[0]}.{key}`?" if near else 'write "STAGE.KEY"',
                )
            )
            continue
        for value in values:
            stage_settings(by_name[name].part, {key: value}, where, problems)
