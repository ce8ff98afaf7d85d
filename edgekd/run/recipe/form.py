"""The form of a recipe: its tables and keys. What stands in `stage`, `model.NAME.train`, `sweep` and `gate` is checked
against the parts that it names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

MOST_THREADS = 1024
Shows = Literal["logits", "top", "label"]


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelTable(Strict):
    """`[model.NAME]`: how a model that stages refer to is made. `train`: settings of the train stage; or `distill`:
    those of the distill stage, with its teacher (an assistant, a generation); or `weights`: a file. `shows`: what
    others learn from it, see the answer stage."""

    train: dict[str, Any] | None = None
    distill: dict[str, Any] | None = None
    shows: Shows = "logits"
    top: Annotated[int, pydantic.Field(ge=1)] = 5
    weights: str | None = None
    seed: int | None = None


class Select(Strict):
    maximize: tuple[str, ...] = ()
    minimize: tuple[str, ...] = ("latency_p50_ms", "file_bytes")
    slower_int8: bool = False  # whether int8 may be chosen where its float parent is faster, for its bytes


class Form(Strict):
    """A recipe as TOML says it."""

    model_config = pydantic.ConfigDict(title="Recipe")

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
