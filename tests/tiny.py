"""A task of one's own that compresses in seconds: depthwise convolution, functional addition, batch norm; and a way to
time it briefly.

`python tests/tiny.py compress ...` is the command line with a short timing effort: for tests that kill it."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional as F

import edgekd


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.deep, self.wide = nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.Conv2d(width, width, 1)
        self.norm2, self.head = nn.BatchNorm2d(width), nn.Linear(width, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm2(self.wide(F.relu(self.deep(x)))) + x)
        return self.head(x.mean((2, 3)))


def blobs(seed=0, count=360):
    """[N, 1, 10, 10]: noise, and a bright row, column or corner by class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.normal(0, 0.3, (count, 1, 10, 10)).astype(np.float32)
    for i, c in enumerate(y):
        at = rng.integers(1, 8)
        x[i, 0, *((at, slice(None)), (slice(None), at), (slice(0, 3), slice(0, 3)))[c]] += 1.0
    return x, y


x, y = blobs()
task = edgekd.Task(
    name="tiny",
    version="1",
    classes=3,
    models={"teacher": lambda: Net(48), "student": lambda: Net(24)},
    data=edgekd.arrays(x[:240], y[:240], x[240:], y[240:], validation=0.25),
    metrics=(edgekd.top1(),),
    augment=lambda images, u: images * (0.8 + 0.4 * u[:, :1, None, None]),
    draws=1,
    views=4,
)

RECIPE = """
task    = "tiny:task"
targets = ["host"]
threads = 1

[[stage]]
use    = "distill"
epochs = 6

[[stage]]
use    = "prune"
macs   = 0.54
epochs = 3

[[stage]]
use    = "quantize"
epochs = 3
samples = 64

[model.teacher]
train = { epochs = 6 }

[gate.any]
top1       = "drop max 60 pt vs teacher"
file_bytes = "max 100 kB"
"""


# the shortest line that ends in int8: an epoch, and calibration
SHORT = (
    RECIPE.replace('[[stage]]\nuse    = "prune"\nmacs   = 0.54\nepochs = 3\n', "")
    .replace("epochs = 3\nsamples = 64", 'mode = "ptq"')
    .replace("epochs = 6", "epochs = 1")
)


def settle(folder, monkeypatch):
    """A test stands in `folder`, with a store there, and times files for an instant only."""
    from edgekd.measure import jobs
    from edgekd.run import sanity_check

    monkeypatch.setattr(sanity_check, "check", lambda *given: None)  # has tests of its own
    monkeypatch.setenv("EDGEKD_STORE", str(folder / "store"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    hurry()


def hurry():
    """Times each file for an instant: what is tested is the run, not the figures."""
    from edgekd.measure import jobs

    jobs.EFFORTS["quick"] = dataclasses.replace(
        jobs.EFFORTS["quick"],
        warmup_s=0.001,
        runs=3,
        steady_s=0.002,
        memory=2,
        warmup_runs=3,
        warmup_cap_s=0.01,
        cap_s=1.0,
    )


if __name__ == "__main__":
    from edgekd.cli import run
    from edgekd.training import loop

    hurry()
    loop.CHECKPOINT_SECONDS = 0.02
    sys.exit(run(sys.argv[1:]))
