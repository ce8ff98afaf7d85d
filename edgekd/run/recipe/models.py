"""Reads the `[model.NAME]` tables of a recipe: models that stages refer to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgekd.errors import Problem
from edgekd.run.recipe.form import ModelTable, Shows
from edgekd.run.recipe.learns_with import uncached
from edgekd.run.recipe.stages import STAGE_KEYS, made
from edgekd.run.recipe.teachers import teachers_of
from edgekd.stages.distill import Distill
from edgekd.stages.train import Train


@dataclass(frozen=True)
class Model:
    """A model that stages refer to. `stage`: the stage that trains it, or distils it from its `teacher`s; None where
    its `weights` come from a file, or are those of its architecture. `source`: what the recipe says instead of one of
    the task's models; `told`: whether it says how its weights are made. `seed` None: the recipe's. `given`: whether the
    recipe has its table."""

    name: str
    stage: Train | None
    teacher: tuple[str, ...] = ()
    weights: str | None = None
    seed: int | None = None
    shows: Shows = "logits"
    top: int = 5
    given: bool = True
    source: str | None = None
    told: bool = True

    @property
    def way(self) -> Literal["weights", "given", "distill", "train"]:
        if self.stage is None:
            return "given" if self.weights is None else "weights"
        return "distill" if isinstance(self.stage, Distill) else "train"

    @property
    def of(self) -> str:
        """The name of its architecture among the task's models."""
        return self.name if self.stage is None else self.stage.model


def read(tables: Mapping[str, ModelTable], place: str, problems: list[Problem]) -> dict[str, Model]:
    """The models by name; `teacher` is always one of them."""
    return {
        name: dataclasses.replace(_read(name, table, f"{place}: model.{name}", problems), given=name in tables)
        for name, table in {"teacher": ModelTable(), **tables}.items()
    }


def _read(name: str, table: ModelTable, where: str, problems: list[Problem]) -> Model:
    ways = [way for way in ("train", "distill", "weights") if getattr(table, way) is not None]
    if len(ways) > 1:
        text = f"has both {' and '.join(f'`{w}`' for w in ways)}"
        problems.append(Problem(where, text, "give one of `train`, `distill` and `weights`"))
    stage: Any = None
    teacher: tuple[str, ...] = ()
    if table.weights is None and table.distill is not None:
        given = {"model": name, **{k: v for k, v in table.distill.items() if k not in STAGE_KEYS}}
        stage, settings = made(Distill, given, f"{where}.distill", problems)
        teacher = teachers_of(Distill, settings, table.distill.get("teacher"), f"{where}.distill", problems)
        problems += uncached(table.distill, stage, teacher, f"{where}.distill")
    elif table.weights is None:
        stage, _ = made(Train, {"model": name, **(table.train or {})}, f"{where}.train", problems)
    return Model(
        name, stage, teacher, table.weights, table.seed, table.shows, table.top, source=table.model, told=bool(ways)
    )
