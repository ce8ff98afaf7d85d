"""Which pixels of a noisy image are a rectangle, which a disc: one class per pixel; the border does not count."""

import numpy as np
from torch import nn

import edgekd


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng, at, labels = np.random.default_rng(seed), np.arange(16), np.zeros((count, 16, 16), np.int64)
    for mask in labels:
        top, left, y, x = rng.integers(1, 8, 4)
        mask[top : top + 6, left : left + 5] = 1
        mask[(at[:, None] - y - 4) ** 2 + (at - x - 4) ** 2 <= 9] = 2
    values = np.choose(labels, [0.0, 1.0, -1.0]) + rng.normal(0, 0.7, labels.shape)
    labels[:, [0, -1]] = labels[:, :, [0, -1]] = 255
    return values[:, None].astype(np.float32), labels


def network(width: int) -> nn.Module:
    layer = lambda ins: (nn.Conv2d(ins, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*layer(1), *layer(width), *layer(width), nn.Conv2d(width, 3, 1))


MASK = edgekd.classes(3, axis=1, ignore_index=255)  # scores [n, 3, 16, 16], labels [n, 16, 16]
task = edgekd.Task(
    name="shapes", version="1", outputs={"mask": MASK}, metrics=(edgekd.mean_iou(MASK), edgekd.pixel_accuracy(MASK)),
    models={"teacher": lambda: network(24), "student": lambda: network(8)},
    data=edgekd.arrays(*images(400, 0), *images(200, 1), validation=0.25),
)  # fmt: skip
