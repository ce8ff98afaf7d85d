"""A small transformer encoder and a task for it: which of seven features is greatest at the position that a mark points
to."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgekd import Task, arrays, top1

LENGTH, FEATURES = 8, 8


class Layer(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = self.norm1(x)
        y = F.scaled_dot_product_attention(split(self.q(y)), split(self.k(y)), split(self.v(y)))
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """[B, LENGTH, FEATURES] -> [B, 7]."""

    def __init__(self, width=64, depth=2):
        super().__init__()
        self.embed, self.place = nn.Linear(FEATURES, width), nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x):
        x = self.embed(x) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def marked(count, seed):
    """[N, LENGTH, FEATURES] noise whose first feature is 3 at one position; labels: which of the others is greatest
    there."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, LENGTH, FEATURES)).astype(np.float32)
    at = rng.integers(0, LENGTH, count)
    x[:, :, 0] = 0
    x[np.arange(count), at, 0] = 3
    return x, x[np.arange(count), at, 1:].argmax(1)


def encoder_task(count=4096, width=64, seed=0, name="marked", model=Encoder):
    x, y = marked(count, seed)
    tx, ty = marked(1024, seed + 1)
    data = arrays(x, y, tx, ty, validation=0.25)
    return Task(
        name, "1", {"teacher": lambda: model(width), "student": lambda: model(width)}, data, (top1(),), classes=7
    )
