"""Models that come with their weights: those that a recipe names by `model = "hf:..."`, and the task's own of that
kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgekd.errors import Problem, UsageError, gathered
from edgekd.hub.folder import PREFIX, Folder, hf
from edgekd.records import Task
from edgekd.run.recipe import Recipe
from edgekd.run.recipe.models import Model


def placed(recipe: Recipe, task: Task, problems: list[Problem]) -> tuple[Recipe, Task]:
    """(the recipe, the task with the models that the recipe names). A model that comes with weights is taken as it is,
    unless the recipe trains it."""
    named = {name: model.source for name, model in recipe.models.items() if model.source is not None}
    made: dict[str, Callable[[], Any]] = dict(task.models)
    for name, source in named.items():
        where = f"{recipe.place}: model.{name}: model"
        found = gathered(partial(_read, source, recipe.folder), problems, where)
        # after a problem a stand-in: that there is no such model is not said again
        made |= {name: found or made.get("student", hf)}
    if named:
        task = dataclasses.replace(task, models=made, licences=_licences(made, task.licences))
    models = {name: _given(model, made) for name, model in recipe.models.items()}
    return dataclasses.replace(recipe, models=models), task


def _read(source: str, folder: Path) -> Folder:
    if not source.startswith(PREFIX):
        raise UsageError(Problem("", f"is {source!r}", 'model = "hf:FOLDER"'))
    return hf(source, beside=folder)


def _given(model: Model, made: Mapping[str, Any]) -> Model:
    taken = isinstance(made.get(model.name), Folder) and made[model.name].classes is None
    return dataclasses.replace(model, stage=None) if taken and not model.told else model


def _licences(made: Mapping[str, Any], told: Mapping[str, str]) -> dict[str, str]:
    found = {name: model.licence for name, model in made.items() if isinstance(model, Folder) and model.licence}
    return {**found, **told}
