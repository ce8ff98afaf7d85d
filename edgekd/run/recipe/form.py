"""The form of a recipe: its tables and keys. The keys in `stage`, `model.NAME.train`, `sweep` and `gate` are checked
against the parts that these name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import PydanticCustomError

MOST_THREADS = 1024
MOST_PROCESSES = 1024
DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?")
Shows = Literal["logits", "top", "label"]


def _device(name: str) -> str:
    if not DEVICE.fullmatch(name):
        raise PydanticCustomError("device", "should be auto, cpu, cuda, cuda:1 or mps")
    return name


Device = Annotated[str, pydantic.AfterValidator(_device)]


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelTable(Strict):
    """`[model.NAME]`: a model that stages refer to: trained, distilled, or loaded from a file."""

    train: dict[str, Any] | None = None  # settings of the train stage
    distill: dict[str, Any] | None = None  # those of the distill stage, with its teacher: an assistant, a generation
    shows: Shows = "logits"  # the outputs that its students see: logits, its `top` classes, or its label
    top: Annotated[int, pydantic.Field(ge=1)] = 5  # the number of classes that it shows, with `shows = "top"`
    model: str | None = None  # "hf:FOLDER" relative to the recipe, or "hf:ORGANISATION/NAME@COMMIT"
    weights: str | None = None  # a .safetensors file, relative to the recipe
    seed: int | None = None  # of its initial weights; none: the recipe's


class Select(Strict):
    """`[select]`: the figures by which a file is chosen among those within the budgets. Later keys decide ties."""

    maximize: tuple[str, ...] = ()  # after `minimize`
    minimize: tuple[str, ...] = ("latency_p50_ms", "file_bytes")
    slower_int8: bool = False  # whether int8 may be chosen for its size where its float parent is faster


class Form(Strict):
    """A recipe as written in TOML."""

    model_config = pydantic.ConfigDict(title="Recipe")

    task: str | dict[str, Any]  # a task's name, `package.module:name`, or a table with `use` and its settings
    targets: tuple[str, ...] = pydantic.Field(("host",), min_length=1)  # names, or paths of .toml files
    modules: str = "."  # the folder of the modules that the recipe names, relative to it
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0  # of initial weights, sample order and augmentation
    threads: Annotated[int, pydantic.Field(ge=1, le=MOST_THREADS)] | None = None  # of trainings; none: 2
    processes: Annotated[int, pydantic.Field(ge=1, le=MOST_PROCESSES)] = 1  # of trainings, each with `batch` rows
    # where models are trained; none: EDGEKD_DEVICE, else the CPU. A list: of a run that went on elsewhere
    device: Device | Annotated[tuple[Device, ...], pydantic.Field(min_length=1)] | None = None
    control: bool = True  # whether the student is also trained on labels alone
    stage: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)  # `use`, `name`, `source` and settings
    model: dict[str, ModelTable] = {}  # teachers and others that stages refer to
    sweep: dict[str, list[Any]] = {}  # `"STAGE.KEY" = [...]`: a candidate for each value
    mixed: dict[str, list[Annotated[float, pydantic.Field(gt=0, le=1)]]] = {}  # shares of time to give back, by stage
    select: Select = Select()  # how a file is chosen
    gate: dict[str, dict[str, Any]] = {}  # budgets: `any` and by target
