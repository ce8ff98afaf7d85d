"""How far diabetes progressed within a year, from ten measurements of a patient (scikit-learn's data set)."""

import numpy as np
from sklearn.datasets import load_diabetes
from torch import nn

import edgekd

x, y = load_diabetes(return_X_y=True)
x, y = (20 * x).astype(np.float32), ((y[:, None] - 152) / 77).astype(np.float32)  # in standard deviations


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


task = edgekd.Task(
    name="diabetes",
    version="1",
    outputs={"progression": edgekd.numbers("sd")},
    models={"teacher": lambda: network(64), "student": lambda: network(8)},
    data=edgekd.arrays(x[:300], y[:300], x[300:], y[300:], validation=0.25),
    metrics=(edgekd.rmse(unit="sd"), edgekd.r2()),
)
