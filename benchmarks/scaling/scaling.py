"""The task that run.py compresses: SCALING_COUNT images of 96 x 96 x 3 bytes in a mapped file, made from a seed."""

import os
from pathlib import Path

import numpy as np
from torch import nn

import edgekd

SIDE, CLASSES = 96, 3


def images(path, count, seed=0):
    """Writes [count, 3, 96, 96] uint8, a part at a time: noise, and one channel brighter by class."""
    rng, made = np.random.default_rng(seed), np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, SIDE, SIDE))
    for start in range(0, count, 500):
        labels = np.arange(start, min(start + 500, count)) % CLASSES
        part = rng.integers(0, 200, (len(labels), 3, SIDE, SIDE), np.uint8)
        part[np.arange(len(labels)), labels] += 50
        made[start : start + len(labels)] = part


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 7, 8, 3, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.stem(x.float() / 255)).relu().mean((2, 3)))


def task():
    count = int(os.environ["SCALING_COUNT"])
    x = np.load(Path(os.environ["SCALING_FOLDER"]) / f"{count}.npy", mmap_mode="r")
    y, train = np.arange(count) % CLASSES, count * 9 // 10
    return edgekd.Task(
        name="scaling",
        version="1",
        classes=CLASSES,
        models={"teacher": lambda: Net(16), "student": lambda: Net(8)},
        data=edgekd.arrays(x[:train], y[:train], x[train:], y[train:], validation=0.1),
        metrics=(edgekd.top1(),),
    )
