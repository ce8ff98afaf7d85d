"""CIFAR-10: which of ten things a photograph of 32 x 32 pixels shows (Krizhevsky 2009), in the format of MLPerf Tiny's
image classification."""

from __future__ import annotations

import json
import os
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from edgekd.data import Splits, arrays
from edgekd.data.augmentation import shifted
from edgekd.data.cifar import cifar10 as read
from edgekd.errors import Problem, UsageError
from edgekd.metrics import top1
from edgekd.models.networks import plain, residual
from edgekd.records import Task

VARIABLE = "EDGEKD_CIFAR10"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the train images, at values 0 to 1

if TYPE_CHECKING:
    import torch


def cifar10(
    *,
    path: Path | None = None,
    widths: tuple[Annotated[int, Ge(1), Le(2048)], ...] = (16, 32, 64),
    blocks: Annotated[int, Ge(1), Le(64)] = 1,
    validation: Annotated[int, Gt(0), Le(25000)] = 5000,
) -> Task:
    """Train 50,000 less `validation`, held out by class; test 10,000: [N, 3, 32, 32] float32, centred and scaled by
    channel.

    `path` (default: the environment variable EDGEKD_CIFAR10): see `edgekd.data.cifar`. The student is a residual
    network of `widths` with `blocks` blocks each (the default has the shape of MLPerf Tiny's ResNet-8), the teacher a
    plain network of 2 million parameters. Augmentation: a shift of up to 4 pixels and mirroring. Raises UsageError
    where the data can't be read."""
    where = path or os.environ.get(VARIABLE)
    if not where:
        raise UsageError(
            Problem("task cifar10", "has no data", f'task = {{ use = "cifar10", path = "..." }}, or set {VARIABLE}')
        )
    settings = {"widths": list(widths), "blocks": blocks, "validation": validation}
    return Task(
        name="cifar10",
        version=f"1 {json.dumps(settings)}",
        models={"teacher": teacher, "student": partial(residual, tuple(widths), channels=3, classes=10, blocks=blocks)},
        data=lambda split: splits(Path(where), validation)(split),
        metrics=(top1(),),
        classes=10,
        augment=augment,
        draws=3,
        views=16,
    )


def teacher() -> torch.nn.Module:
    return plain((64, 256, 256), channels=3, classes=10, stem=24, mirrored=True)


def augment(images: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Shifted by up to 4 pixels each way, the edge mirrored outwards, and mirrored left to right in half the cases."""
    return shifted(images, u, pixels=4, flip=True)


@cache
def splits(path: Path, validation: int) -> Splits:
    """The splits, which don't depend on a run's seed."""
    (x, y), (x_test, y_test) = read(path, "train"), read(path, "test")
    return arrays(_scaled(x), y, _scaled(x_test), y_test, validation=validation / len(x), seed=0)


def _scaled(images: np.ndarray) -> np.ndarray:
    mean, deviation = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    return (images.astype(np.float32) / 255 - mean) / deviation
