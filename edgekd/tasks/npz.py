"""Arrays in an .npz file: x_train, y_train, x_test, y_test, and optionally x_validation, y_validation."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from edgekd.data import Splits, arrays
from edgekd.data.augmentation import affine
from edgekd.errors import Problem, UsageError, first_line
from edgekd.files import regular
from edgekd.metrics import top1
from edgekd.models.networks import perceptron, residual
from edgekd.records import Task

NEEDED = ("x_train", "y_train", "x_test", "y_test")
NAMES = (*NEEDED, "x_validation", "y_validation")


def npz(
    *,
    path: Path,
    teacher: Annotated[int, Ge(8), Le(2048), MultipleOf(8)] | None = None,
    student: Annotated[int, Ge(8), Le(2048), MultipleOf(8)] | None = None,
    validation: Annotated[float, Gt(0), Lt(1)] = 0.2,
    augment: bool = True,
    flip: bool = False,
    shareable: bool = False,
) -> Task:
    """Classifies arrays: x [N, features], or images [N, H, W] or [N, C, H, W]; y [N] class numbers from 0.

    Images get residual networks of widths w, 2w, 4w (w = `teacher` 48, `student` 16), vectors perceptrons with two
    hidden layers (`teacher` 256, `student` 64). Images of type uint8 are normalized; other values are unchanged:
    normalize them as on the device. `augment` rotates, scales and shifts images slightly. Raises UsageError with every
    problem."""
    path = Path(path)
    columns = _prepared(path, columns_of(path))
    data = _splits(path, columns, validation)
    form, classes = (
        columns["x_train"].shape[1:],
        1 + max(int(y.max()) for name, y in columns.items() if name.startswith("y")),
    )
    wide = [
        w if w is not None else (default[len(form) == 1]) for w, default in ((teacher, (48, 256)), (student, (16, 64)))
    ]
    if len(form) == 1:
        makers = [partial(perceptron, (w, w), features=form[0], classes=classes) for w in wide]
    else:
        stride = 2 if min(form[1:]) >= 64 else 1
        makers = [
            partial(residual, (w, 2 * w, 4 * w), channels=form[0], classes=classes, stem_stride=stride) for w in wide
        ]
    settings = {
        "form": form,
        "classes": classes,
        "teacher": wide[0],
        "student": wide[1],
        "augment": augment,
        "flip": flip,
    }
    return Task(
        name=path.stem,
        version=f"1 {json.dumps(settings)}",
        models={"teacher": makers[0], "student": makers[1]},
        data=data,
        metrics=(top1(),),
        classes=classes,
        augment=partial(affine, turn=0.1, scale=0.1, shift=0.15, flip=flip, ground="edge")
        if augment and len(form) > 1
        else None,
        draws=6,
        views=16,
        shareable=shareable,
    )


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of the file. Nothing is unpickled."""
    columns, problems, held = {}, [], []
    try:
        with open(regular(path), "rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UsageError(
                    Problem(
                        str(path),
                        "is a single array, not an .npz file of named arrays",
                        "write it with numpy.savez(path, x_train=..., ...)",
                    )
                )
            held = list(file.files)
            for name in held:
                try:
                    columns[name] = file[name]
                    if not isinstance(columns[name], np.ndarray):
                        raise ValueError("it is not an array")
                except ValueError as error:
                    problems.append(
                        Problem(
                            f"{path}: {name}",
                            f"can't be read: {first_line(error).lower()}",
                            "save arrays of numbers",
                        )
                    )
    except FileNotFoundError:
        raise UsageError(Problem(str(path), "there is no such file")) from None
    except (BadZipFile, OSError, ValueError, EOFError) as error:
        raise UsageError(
            Problem(str(path), f"is not a valid .npz file: {_plain(error)}", "write it with numpy.savez")
        ) from None
    problems += [
        Problem(f"{path}: {name}", "is missing", f"the file holds {', '.join(held) or 'nothing'}")
        for name in NEEDED
        if name not in held
    ]
    problems += [
        Problem(f"{path}: {name}", "unknown name", f"known: {', '.join(NAMES)}") for name in held if name not in NAMES
    ]
    if problems:
        raise UsageError(*problems)
    return columns


def _prepared(path: Path, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, with a channel axis for images, and uint8 images normalized."""
    problems, prepared = [], dict(columns)
    for name, values in columns.items():
        place = f"{path}: {name}"
        if name.startswith("y"):
            if values.ndim != 1 or values.dtype.kind not in "iu":
                text = f"is {values.dtype} of shape {list(values.shape)}, not [N] class numbers"
                problems.append(
                    Problem(place, text, "y.ravel(), y.argmax(1) or names, y = numpy.unique(y, return_inverse=True)")
                )
            elif values.size and values.min() < 0:
                problems.append(
                    Problem(
                        place,
                        f"has {(values < 0).sum()} labels below 0, the first at {(values < 0).argmax()}",
                        "number from 0",
                    )
                )
            continue
        if values.ndim not in (2, 3, 4):
            problems.append(
                Problem(place, f"has shape {list(values.shape)}", "[N, features], [N, H, W] or [N, C, H, W]")
            )
        elif values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] > 4:
            problems.append(
                Problem(place, f"has shape {list(values.shape)}: the channels are last", "use x.transpose(0, 3, 1, 2)")
            )
        elif values.ndim == 4 and values.shape[1] > 64:
            problems.append(Problem(place, f"has {values.shape[1]} channels", "[N, C, H, W]"))
        if values.ndim > 2 and values.dtype == np.uint8:
            values = ((values.astype(np.float32) / 255 - 0.5) / 0.25).astype(np.float32)
        elif values.dtype.kind in "iub":
            values = values.astype(np.float32)
        prepared[name] = values[:, None] if values.ndim == 3 else values
    if problems:
        raise UsageError(*problems)
    return prepared


def _splits(path: Path, columns: dict[str, np.ndarray], validation: float) -> Splits:
    more: dict[str, Any] = {name: columns[name] for name in ("x_validation", "y_validation") if name in columns}
    try:
        return arrays(*(columns[name] for name in NEEDED), **more, validation=validation)
    except UsageError as error:
        raise UsageError(*(Problem(f"{path}: {p.place}", p.message, p.hint) for p in error.problems)) from None


def _plain(error: Exception) -> str:
    """numpy takes whatever it does not know for pickled data, and advises to load that unsafely."""
    return "it is not a zip archive" if "allow_pickle" in str(error) else str(error)
