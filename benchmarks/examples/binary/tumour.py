"""Whether a tumour is benign, from 30 measurements of its cells: one yes-or-no label."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import nn

import edgekd

BENIGN = edgekd.yes_no(1)  # one logit [n, 1], labels 0 or 1


def network(*widths: int) -> nn.Module:
    sizes, layers = (30, *widths), []
    for ins, outs in zip(sizes, widths, strict=False):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


x, y = load_breast_cancer(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))
x, y, train = (x[order] - x[order[:369]].mean(0)) / x[order[:369]].std(0), y[order], slice(369)

task = edgekd.Task(
    name="tumour",
    version="1",
    outputs={"benign": BENIGN},
    models={"teacher": lambda: network(64, 64), "student": lambda: network(8)},
    data=edgekd.arrays(x[train], y[train], x[369:], y[369:], validation=0.3),
    metrics=(edgekd.auc(BENIGN), edgekd.f1(BENIGN), edgekd.label_accuracy(BENIGN)),
)
