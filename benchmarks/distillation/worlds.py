"""The tasks of the distillation benchmark: handwritten digits, with a class or most labels left out; and a small part
of CIFAR-10."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache, partial

import numpy as np

from edgekd.data import Arrays, Splits
from edgekd.models.networks import residual
from edgekd.records import Task
from edgekd.tasks import digits as built_in
from edgekd.tasks.cifar10 import cifar10, teacher

ROWS = int(os.environ.get("DISTILLATION_ROWS", 5000))  # CIFAR-10 images to learn from
OMITTED = 3  # the digit that a student never sees
LABELLED = 60  # digits that have a label in the worlds with few labels


def only(task: Task, keep, name: str, **changes) -> Task:
    """`task` with the train rows for which `keep(labels)` is true."""

    @cache
    def data() -> Splits:
        train = task.data("train")
        rows = np.flatnonzero(keep(train.labels))
        part = Arrays(train.inputs[rows], train.labels[rows], [train.ids[i] for i in rows])
        return Splits({"train": part, "validation": task.data("validation"), "test": task.data("test")})

    version = f"{task.version} {name} {json.dumps({k: repr(v) for k, v in changes.items()})}"
    return dataclasses.replace(task, name=name, version=version, data=lambda split: data()(split), **changes)


def first(count: int):
    """The first `count` rows, as many of each class."""

    def keep(labels):
        rank = np.zeros(len(labels), int)
        for c in np.unique(labels):
            rank[labels == c] = np.arange((labels == c).sum())
        return rank < count // len(np.unique(labels))

    return keep


def wide() -> object:
    return residual((24, 48, 96), channels=3, classes=10, blocks=2)


EXPERTS = dict.fromkeys(("teacher", "low", "high", "loud"), built_in.teacher) | {"student": built_in.student}
digits = only(built_in.task, lambda labels: np.ones(len(labels), bool), "digits", models=EXPERTS)
omitted = only(built_in.task, lambda labels: labels != OMITTED, "digits-omitted")
few = only(built_in.task, first(LABELLED), "digits-few")
low = only(built_in.task, lambda labels: labels < 5, "digits-low")  # what one specialist has seen, and the other
high = only(built_in.task, lambda labels: labels >= 5, "digits-high")


@cache
def photos() -> Task:
    student = partial(residual, (16, 24, 32), channels=3, classes=10)
    return only(
        cifar10(), first(ROWS), f"cifar10-{ROWS}", models={"teacher": teacher, "student": student, "assistant": wide}
    )


def __getattr__(name: str) -> Task:
    if name == "cifar":
        return photos()
    raise AttributeError(name)
