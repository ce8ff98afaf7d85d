"""A model of one's own and its data, for tests of `compress` without a recipe: scikit-learn's digits in an .npz file.

`python tests/one_line.py compress ...` is the command line with short recoveries and a short timing effort."""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
MODULE = '''
import pathlib
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Two branches, one of them depthwise, that are concatenated."""

    def __init__(self, width=24):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.norm2, self.mix = nn.BatchNorm2d(width), nn.Conv2d(2 * width, 2 * width, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat([x, F.relu(self.norm2(self.deep(x)))], 1)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


def trained():
    from safetensors.torch import load_file

    net = Net()
    net.load_state_dict(load_file(pathlib.Path(__file__).parent / "net.safetensors"))
    return net
'''


def write(folder):
    """`onenet.py` with `Net` and `trained`, its weights, and `digits.npz`."""
    import torch
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits

    (folder / "onenet.py").write_text(MODULE)
    digits = load_digits()
    x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target
    np.savez(folder / "digits.npz", x_train=x[:1200], y_train=y[:1200], x_test=x[1200:], y_test=y[1200:])
    space: dict = {"__file__": str(folder / "onenet.py"), "__name__": "onenet"}
    exec(MODULE, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, inputs, labels = space["Net"](), torch.tensor(x[:1200]), torch.tensor(y[:1200])
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(10):
            for rows in torch.randperm(1200).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
                optimizer.step()
    save_file(net.state_dict(), folder / "net.safetensors")


def hurry(patch=None):
    """Recoveries of a few steps, two rungs, and files timed for an instant; `patch`: pytest's, to take it back."""
    import tiny

    from edgekd.measure import jobs
    from edgekd.without_recipe import climb, rungs

    every = rungs.rungs
    few = lambda *given: [rung for rung in every(*given) if rung.names & {"int8", "half"}]
    put = patch.setattr if patch is not None else setattr
    put(jobs, "EFFORTS", dict(jobs.EFFORTS))
    put(rungs, "UPDATES", 45)
    put(climb, "rungs", few)
    tiny.hurry()


if __name__ == "__main__":
    from edgekd.cli import run
    from edgekd.training import loop

    hurry()
    loop.CHECKPOINT_SECONDS = 0.02
    sys.exit(run(sys.argv[1:]))
