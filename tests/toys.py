"""A toy task and what stages need to work on it, for tests of training."""

import numpy as np
from torch import nn

from edgekd import Task, arrays
from edgekd.data.columns import load
from edgekd.models import saved
from edgekd.records import Artifact, Run
from edgekd.stages.train import Train


def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))


def toy_task():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3))).argmax(1)
    splits = arrays(x[:100], y[:100], x[100:], y[100:], validation=0.2)
    noise = lambda inputs, u: inputs + 0.1 * (u[:, :1] - 0.5)
    return Task(
        "toy",
        "1",
        {"teacher": lambda: net(16), "student": lambda: net(4)},
        splits,
        (),
        classes=3,
        augment=noise,
        draws=1,
        views=3,
    )


def run_in(folder, task, seed=0, **more):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Run(task, seed, 1, folder / "out", folder / "scratch", lambda split: load(task, split), **more)


def artifact(run, form="torch", facts=None):
    return Artifact("key", form, {}, {}, "", {}, 0, facts or {}, run.folder)


def weights(run):
    return saved.read_tensors(run.folder / "weights.safetensors")


def teacher_in(folder, task, epochs=2, seed=0):
    run = run_in(folder, task, seed)
    Train(model="teacher", epochs=epochs, batch=20)(None, run)
    return artifact(run)


class Stop(Exception):
    pass
