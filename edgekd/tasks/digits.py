"""Handwritten digits, 8 x 8 grey values, that come with scikit-learn (1,797 of them; no download).

Half of the digits are test; of the rest a quarter is validation. The split is fixed: it doesn't depend on a run's seed.
Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", CC BY 4.0."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.data import Splits, arrays
from edgekd.data.augmentation import affine
from edgekd.metrics import top1
from edgekd.models.networks import residual
from edgekd.records import Task

if TYPE_CHECKING:
    import numpy as np
    import torch

# the test half, one bit per digit: scikit-learn's train_test_split(test_size=0.5, random_state=0, stratify=y)
TEST = (
    "ea3844cab5e678d199566f21d7724d1efa280e132ab440ef272c5e083119979f01d03932a635fea39ac39ef44a284fdfbc46172ec962cf"
    "e2ca31f0ba601ed8a579eba13049588dc58792421ff09011554aec41f11e2176eecc0985fa37968cc3bf873ea7a6de7e4324122fdbd4e8"
    "05a6b9fd1312f271e540f12c706e9c37efa7d21f4d5ec8404862a9a49caa7449f65f9563ee8bd3abdf92ed8ac5a225269f6223cdf202c1"
    "f1fd8edbc849f9954d96ce210a8cd8a8f57237ae3921c94dccc86ecb6136d32ab29309f6ae702da6c7a5c8ef7481d8e8a4b45287b65a32"
    "d53cbc1d60"
)
MEAN, DEVIATION = 0.304, 0.375  # of the half that is not test, at values 0 to 1


@cache
def splits() -> Splits:
    """Train 674, validation 224, test 899: [N, 1, 8, 8] float32, stratified by digit."""
    import numpy as np

    x, y = _digits()
    x = ((x.reshape(-1, 1, 8, 8) / 16 - MEAN) / DEVIATION).astype(np.float32)
    test = np.unpackbits(np.frombuffer(bytes.fromhex(TEST), np.uint8), count=len(y)).astype(bool)
    return arrays(x[~test], y[~test], x[test], y[test], validation=0.25, seed=0)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(values 0 to 16 [1797, 64], digits [1797]). Reads scikit-learn's file: its import takes a second."""
    import gzip

    import numpy as np

    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "datasets/data/digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x, y


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
