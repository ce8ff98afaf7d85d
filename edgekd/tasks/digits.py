"""Handwritten digits, 8 x 8 grey values, that come with scikit-learn (1,797 of them; no download).

Half of the digits are test; of the rest a quarter is validation. The split is fixed: it doesn't depend on a run's seed.
Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", CC BY 4.0."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from edgekd.data import Splits, arrays
from edgekd.data.augmentation import affine
from edgekd.metrics import top1
from edgekd.models.networks import residual
from edgekd.records import Task

if TYPE_CHECKING:
    import torch

MEAN, DEVIATION = 0.304, 0.375  # of the half that is not test, at values 0 to 1


@cache
def splits() -> Splits:
    """Train 674, validation 224, test 899: [N, 1, 8, 8] float32, stratified by digit."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = ((x.reshape(-1, 1, 8, 8) / 16 - MEAN) / DEVIATION).astype(np.float32)
    rest, test = train_test_split(np.arange(len(y)), test_size=0.5, random_state=0, stratify=y)
    rest, test = np.sort(rest), np.sort(test)
    return arrays(x[rest], y[rest], x[test], y[test], validation=0.25, seed=0)


def augment(images: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Turned by up to 8 degrees, scaled by up to 8 %, shifted by up to 0.6 pixels. Stronger views cost accuracy at 8 x
    8 pixels."""
    return affine(images, u, turn=0.14, scale=0.08, shift=0.15, ground=-MEAN / DEVIATION)


def teacher() -> torch.nn.Module:
    return residual((32, 48, 72), channels=1, classes=10)


def student() -> torch.nn.Module:
    return residual((16, 24, 32), channels=1, classes=10)


task = Task(
    name="digits",
    version="1",
    models={"teacher": teacher, "student": student},
    data=lambda split: splits()(split),
    metrics=(top1(),),
    classes=10,
    augment=augment,
    draws=5,
    views=16,
    licences={"data": "CC BY 4.0"},
    shareable=True,
)
