"""The settings of the `prune` stage that name things: layers to keep, a criterion. Read from a recipe's table, wrong
ones told at once."""

import numpy as np
import torch
from torch import nn

from edgekd import Task, arrays, signatures
from edgekd.components import Use
from edgekd.data.columns import load
from edgekd.models import saved
from edgekd.records import Artifact, Run
from edgekd.stages.prune import Prune
from edgekd.stages.train import Train
from edgekd.training.terms import Term


def net():
    return nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def halves(group):
    """Keeps the second half of the channels: a criterion of one's own."""
    return torch.arange(group.channels, dtype=torch.float32)


def test_settings_are_read_from_a_table():
    settings, problems = signatures.settings_of(
        Prune, {"macs": 0.7, "keep": ["0"], "criterion": "random", "epochs": 2}, "stage 1"
    )
    assert not problems
    stage = Prune(**settings)
    assert (stage.macs, stage.keep, stage.multiple_of, stage.epochs) == (0.7, ("0",), 8, 2)
    assert stage.criterion == Use("criteria", "random")
    wrong = [{"macs": m} for m in (0, 1.5, True, "0.7", "max 0", "max 2", "max nan", "max  0.7x", "min 0.5", [0.5])]
    for table in (*wrong, {"multiple_of": 0}, {"keep": "0"}):
        problems = signatures.settings_of(Prune, table, "stage 1")[1]
        assert len(problems) == 1 and ("macs" not in table or 'such a limit: "max 0.7"' in problems[0].message), table
    for macs, requested in ((0.7, (0.7, False)), (1, (1, False)), ("max 0.7", (0.7, True))):
        settings, problems = signatures.settings_of(Prune, {"macs": macs}, "stage 1")
        assert not problems and Prune(**settings).requested == requested


def test_layers_that_are_not_there_are_told_with_what_else_is_wrong():
    problems = Prune(macs=0.01, keep=("3", "encoder")).check(net(), torch.zeros(2, 6))
    assert [p.place for p in problems] == ["keep", "macs"]
    assert "`encoder`" in problems[0].message


def test_a_criterion_that_is_not_known_is_told():
    (problem,) = signatures.settings_of(Prune, {"criterion": "magnitud"}, "stage 1")[1]
    assert problem.place == "stage 1: criterion" and "`magnitude`" in problem.hint


def test_kept_layers_keep_their_channels_and_a_criterion_of_ones_own_decides(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)).astype(np.float32), rng.integers(0, 3, 80)
    task = Task("toy", "1", {"student": net}, arrays(x[:60], y[:60], x[60:], y[60:], validation=0.2), (), classes=3)

    def run(name):
        (tmp_path / name).mkdir()
        return Run(task, 0, 1, tmp_path / name, tmp_path / f"{name}.scratch", lambda split: load(task, split))

    labels = {"losses": (Term("cross_entropy"),), "epochs": 1}
    first = run("student")
    Train(**labels)(None, first)
    source = Artifact("key", "torch", {}, {}, "", {}, 0, {}, first.folder)
    second = run("pruned")
    made = Prune(
        macs=0.64, keep=("2",), criterion=Use("criteria", f"{__name__}:halves"), lr=1e-12, weight_decay=0.0, **labels
    )(source, second)
    pruned = saved.load(Artifact("key", "torch", {}, {}, "", {}, 0, {}, second.folder), task)
    assert made.facts["widths"].keys() == {"4"} and pruned[0].out_features == pruned[2].out_features == 32
    left = pruned[4].out_features
    assert left < 32 and abs(made.facts["reached"] - 0.64) <= 0.02 * 0.64
    whole = saved.load(source, task)
    assert torch.allclose(pruned[4].weight, whole[4].weight[-left:], atol=1e-6)
