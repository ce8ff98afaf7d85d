"""Which of three shapes a signal of 64 values has: a sine, a square wave or a saw tooth, with noise."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgekd


def signals(count: int, seed: int) -> TensorDataset:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    phase = 2 * np.pi * (np.linspace(0, 3, 64) + rng.random((count, 1)))
    shapes = np.stack([np.sin(phase), np.sign(np.sin(phase)), phase / np.pi % 2 - 1])
    values = shapes[labels, np.arange(count)] + rng.normal(0, 0.4, (count, 64))
    return TensorDataset(torch.tensor(values, dtype=torch.float32)[:, None], torch.tensor(labels))


class Net(nn.Module):
    """Three convolutions over time."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(1, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(width, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        self.third = nn.Sequential(nn.Conv1d(width, 2 * width, 5, 2, 2), nn.BatchNorm1d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(x))).mean(-1))


task = edgekd.Task(
    name="signals",
    version="1",  # raise it when something changes that edgekd can't see, such as files that you read
    classes=3,
    models={"teacher": lambda: Net(48), "student": lambda: Net(12)},
    data=edgekd.from_loader(signals(900, 0), signals(300, 1), validation=0.2),
    metrics=(edgekd.top1(),),
    augment=lambda x, u: x * (0.8 + 0.4 * u[:, :1, None]),  # louder or softer, by the uniform numbers that it is given
)
