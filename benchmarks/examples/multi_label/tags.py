"""Three questions about a handwritten digit, each answered with yes or no: is it even, above 4, has it a loop?"""

from dataclasses import replace

import numpy as np
from torch import nn

import edgekd
from edgekd.tasks.digits import splits

TAGS = edgekd.yes_no(3, ignore_index=-1)  # logits [n, 3]; labels of 0 or 1, and -1 where the answer is not known


def data(split: str):
    digits = splits()(split)
    labels = np.stack([digits.labels % 2 == 0, digits.labels > 4, np.isin(digits.labels, (0, 6, 8, 9))], 1).astype(int)
    labels[::7, 1] = -1 if split == "train" else labels[::7, 1]
    return replace(digits, labels=labels)


def network(width: int) -> nn.Module:
    first, second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(32 * width, 3))


task = edgekd.Task(
    name="tags", version="1", outputs={"tags": TAGS}, data=data,
    models={"teacher": lambda: network(24), "student": lambda: network(6)},
    metrics=(edgekd.average_precision(TAGS), edgekd.f1(TAGS), edgekd.label_accuracy(TAGS)),
)  # fmt: skip
