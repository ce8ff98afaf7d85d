"""A model and data that a person names: what the outputs and the metric are follows from the labels."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import components, metrics
from edgekd.data import Splits, arrays
from edgekd.data.columns import load
from edgekd.errors import THEIRS, Problem, UsageError, first_line
from edgekd.inputs import named
from edgekd.metrics import kinds
from edgekd.models import given
from edgekd.outputs import Output, classes, numbers, yes_no
from edgekd.records import Metric, Task
from edgekd.tasks.npz import NAMES, NEEDED, columns_of

if TYPE_CHECKING:
    from torch import nn

FORMS = "an .npz file, a folder of images by class, or `package.module:name` of arrays, of splits or of a task"


def model_and_data(
    *, model: str, path: Path | None = None, data: str | None = None, preprocess: Path | None = None
) -> Task:
    """Compresses the model `package.module:name`, a torch module or a function that returns one, on data: `path`, an
    .npz file with x_train, y_train, x_test and y_test (and x_validation, y_validation), or a folder of images as
    `image_folder` takes it, which `preprocess` (imagenet, unit or FILE.json) makes inputs; or `data`, a
    `package.module:name` of such arrays by name, of splits as `edgekd.arrays` gives them, or of a task.

    Its models `teacher` and `student` are both the given one; a task's own models are kept beside them, and so is all
    else that a task says. Otherwise labels say what the output is: classes, yes-or-no labels or numbers. Arrays go into
    the model unchanged. Raises UsageError with every problem."""
    make = given.maker(model)
    if (path is None) == (data is None):
        raise UsageError(Problem("data", "give one of `path` and `data`", FORMS))
    if preprocess is not None and (path is None or not path.is_dir()):
        raise UsageError(Problem("preprocess", "is for a folder of images", "leave it out"))
    found = _splits_of(path, preprocess, make) if path is not None else _named(str(data))
    if isinstance(found, Task):
        return dataclasses.replace(found, models={**found.models, "teacher": make, "student": make})
    name = path.resolve().stem if path is not None else str(data).rpartition(":")[0].rpartition(".")[2]
    output, metric = _kind(make, found, model)
    settings = {"output": dataclasses.asdict(output)}
    plain = output.kind == "classes" and metric.name == "top1"  # one class for each sample
    return Task(
        name=re.sub(r"[^\w.-]", "-", name).lstrip(".-_") or "model",
        version=f"1 {json.dumps(settings)}",
        models={"teacher": make, "student": make},
        data=found,
        metrics=(metric,),
        classes=output.count if plain else None,
        outputs=("output",) if plain else {"output": output},
    )


def _splits_of(path: Path, preprocess: Path | None, make: Callable[[], nn.Module]) -> Splits:
    if path.is_dir():
        from edgekd.tasks import _folders

        return _folders.splits(path, preprocess, make())
    if path.suffix != ".npz":
        raise UsageError(Problem(str(path), "is neither an .npz file nor a folder", FORMS))
    return _splits(columns_of(path), str(path))


def _named(spec: str) -> Task | Callable[[str], Any]:
    """The splits or the task that a person names; a function without arguments may return them."""
    found = components.imported(spec)
    if callable(found) and not isinstance(found, Task | Splits):
        found = _returned(found, spec)
    if isinstance(found, Task):
        return found
    if callable(found):
        made: Callable[[str], Any] = found
        return made
    if isinstance(found, Mapping):
        return _splits(found, f"`{spec}`")
    if isinstance(found, Sequence) and len(found) == len(NEEDED):
        return _splits(dict(zip(NEEDED, found, strict=True)), f"`{spec}`")
    raise UsageError(Problem("", f"`{spec}` is {type(found).__name__}, not data", FORMS))


def _returned(found: Callable[..., Any], spec: str) -> Any:
    """What a function without arguments returns; a function of the split is the data itself."""
    import inspect

    needed = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    return found if needed else given.called(found, f"`{spec}()`")


def _splits(columns: Mapping[str, Any], place: str) -> Splits:
    wrong = [
        Problem(f"{place}: {n}", "is missing", f"there is {', '.join(columns)}") for n in NEEDED if n not in columns
    ]
    wrong += [Problem(f"{place}: {n}", "unknown name", f"known: {', '.join(NAMES)}") for n in columns if n not in NAMES]
    if wrong:
        raise UsageError(*wrong)
    for name in (n for n in columns if n.startswith("x") and getattr(columns[n], "dtype", None) == np.uint8):
        hint = "save what the model takes, such as (x / 255).astype('float32')"
        wrong.append(Problem(f"{place}: {name}", "is uint8, and how the model scales these values is not known", hint))
    if wrong:
        raise UsageError(*wrong)
    more = {name: columns[name] for name in NAMES if name in columns and name not in NEEDED}
    try:
        return arrays(*(columns[name] for name in NEEDED), **more)
    except UsageError as error:
        raise UsageError(*(p.within(place) for p in error.problems)) from None


def _kind(make: Callable[[], nn.Module], data: Callable[[str], Any], model: str) -> tuple[Output, Metric]:
    """(what the output is, its metric), from the labels and the shape of the model's answer to two samples."""
    probe = Task("probe", "1", {"teacher": make}, data, (metrics.top1(),))
    columns = load(probe, "validation")
    labels = columns.labels
    if labels is None or isinstance(labels, Mapping):
        what = "no labels" if labels is None else "labels of several outputs"
        hint = "give a task, which says what the outputs are and how they are scored: --data package.module:task"
        raise UsageError(Problem("data", f"has {what}", hint))
    labels, shape = np.asarray(labels), _answer(make, columns, model)
    if metrics.are_classes(labels) and len(shape) <= 2:
        if len(shape) == 2 and shape[1] > 1:
            return classes(shape[1]), metrics.top1()
        return yes_no(1), metrics.top1()
    if (
        labels.dtype.kind in "iub"
        and shape == (shape[0], *labels.shape[1:])
        and labels.min() >= 0
        and labels.max() <= 1
    ):
        output = yes_no()
        return output, kinds.average_precision(output)
    if labels.dtype.kind in "iu":
        axes = [axis for axis in range(1, len(shape)) if (*shape[1:axis], *shape[axis + 1 :]) == labels.shape[1:]]
        if axes:
            output = classes(shape[axes[0]], axis=axes[0])
            return output, kinds.mean_iou(output)
    if labels.dtype.kind == "f" and np.prod(shape[1:]) == np.prod(labels.shape[1:]):
        return numbers(), metrics.mean_error()
    text = f"labels are {labels.dtype} of shape {list(labels.shape)}, and the model gives {list(shape)}"
    raise UsageError(Problem("data", f"{text}: what the output is does not follow", "give a task: --data module:task"))


def _answer(make: Callable[[], nn.Module], columns: Any, model: str) -> tuple[int, ...]:
    """The shape of the model's answer to two samples. Raises UsageError where it takes other inputs."""
    import torch

    from edgekd.data.columns import take

    rows = take(columns, np.arange(2, dtype=np.int64) % len(columns)).inputs
    shapes = ", ".join(str(list(t.shape)) for t in named(rows).values())
    try:
        with torch.no_grad():
            answer = make().eval()(rows)
    except THEIRS as error:
        text = f"`{model}` can't be called with inputs {shapes}: {type(error).__name__}: {first_line(error)}"
        raise UsageError(Problem("data", text, "give the arrays that the model takes")) from error
    if not isinstance(answer, torch.Tensor):
        text = f"`{model}` gives {type(answer).__name__}, not one tensor"
        raise UsageError(Problem("data", text, "give a task, which names its outputs: --data package.module:task"))
    return tuple(answer.shape)
