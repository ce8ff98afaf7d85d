"""The grape that a wine is made of, and its alcohol, from twelve other measurements (scikit-learn's data set)."""

import numpy as np
from sklearn.datasets import load_wine
from torch import nn

import edgekd

x, grape = (column[np.random.default_rng(0).permutation(178)] for column in load_wine(return_X_y=True))
x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)  # in standard deviations; the first column is the alcohol
train, test = ({"grape": grape[rows], "alcohol": x[rows, 0]} for rows in (slice(110), slice(110, None)))


class Network(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleDict({"grape": nn.Linear(width, 3), "alcohol": nn.Linear(width, 1)})

    def forward(self, x):
        x = self.body(x)
        return {name: head(x) for name, head in self.heads.items()}


task = edgekd.Task(
    name="wines", version="1", outputs={"grape": edgekd.classes(3), "alcohol": edgekd.numbers("sd")},
    models={"teacher": lambda: Network(128), "student": lambda: Network(32)},
    data=edgekd.arrays(x[:110, 1:], train, x[110:, 1:], test),
    metrics=(edgekd.top1(output="grape"), edgekd.rmse(output="alcohol", unit="sd")),
)  # fmt: skip
