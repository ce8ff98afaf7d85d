"""Recipes: TOML read strictly and once, with all problems reported at once. `resolve` finds the task, data, targets and
budgets that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import components, environment
from edgekd.errors import Problem, UsageError
from edgekd.run.recipe import file, models, references, stages, sweep
from edgekd.run.recipe.form import Form, Select
from edgekd.run.recipe.models import Model
from edgekd.run.recipe.stages import Line
from edgekd.run.recipe.sweep import Sweep
from edgekd.signatures import check


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: its stages and models with all settings. `place`: its name in messages; paths are relative to
    `folder`. Only the form of `task` and `gate` was checked."""

    task: str | Mapping[str, Any]
    targets: tuple[str, ...]
    stages: tuple[Line, ...]
    models: Mapping[str, Model]
    sweep: Sweep
    mixed: Mapping[str, Sequence[float]]
    select: Select
    gate: Mapping[str, Mapping[str, Any]]
    seed: int
    threads: int | None
    processes: int
    device: str | tuple[str, ...] | None
    control: bool
    modules: str
    place: str
    folder: Path


@environment.threads()
def parsed(
    source: Path | str | Mapping[str, Any] | None,
    sets: Iterable[str] = (),
    targets: Iterable[str] = (),
    threads: int | None = None,
    device: str | None = None,
    processes: int | None = None,
) -> tuple[Recipe, list[Problem]]:
    """(a recipe without its invalid parts, every problem). `source` None: the built-in one; `sets`: `STAGE.KEY=VALUE`
    settings. Raises UsageError where nothing can be read."""
    raw, place, folder = file.opened(source)
    problems = file.with_sets(raw, sets, Form.model_fields)
    raw |= {"targets": list(targets)} if targets else {}
    raw |= {"threads": threads} if threads is not None else {}
    raw |= {"device": device} if device is not None else {}
    raw |= {"processes": processes} if processes is not None else {}
    form = _form(raw, place, problems)
    if "\0" in form.modules:
        problems.append(Problem(f"{place}: modules", "is not a valid path"))
    else:
        components.look_beside(folder / form.modules)
    told = [str(table.get("name", table.get("use"))) for table in form.stage]
    lines = stages.read(form.stage, list(form.model), place, problems)
    made = models.read(form.model, place, problems)
    problems += references.problems(lines, made, form.mixed, told, place)
    choices = sweep.read(form.sweep, lines, told, form.seed, place, problems)
    same = (
        "task",
        "targets",
        "mixed",
        "select",
        "gate",
        "seed",
        "threads",
        "processes",
        "device",
        "control",
        "modules",
    )
    unchanged = {name: getattr(form, name) for name in same}
    return Recipe(stages=tuple(lines), models=made, sweep=choices, place=place, folder=folder, **unchanged), problems


def _form(raw: Mapping[str, Any], place: str, problems: list[Problem]) -> Form:
    """The form of a recipe. Invalid keys are left out, so that all problems are reported at once."""
    form: Form | None
    form, found = check(Form, raw, place)
    problems += found
    if form is None:
        wrong = {p.place.removeprefix(f"{place}: ").partition(".")[0] for p in found}
        sound = {k: v for k, v in raw.items() if k not in wrong}
        form, _ = check(Form, {"task": "digits", "stage": [{"use": "train"}]} | sound, place)
    if form is None:
        raise UsageError(*problems)
    return form
