"""Several processes train as one: the same weights as one process with the batch of all, up to the order of sums."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import CASES, train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes trained: {case: (weights, losses)} of each."""
    place = tmp_path_factory.mktemp("two")
    begin = lambda rank: subprocess.Popen([sys.executable, HERE / "ranks.py", str(rank), "2", place])
    assert [p.wait(120) for p in (begin(0), begin(1))] == [0, 0]
    return [torch.load(place / f"found{rank}.pt") for rank in (0, 1)]


def near(ours, theirs, within=2e-6):
    for name, values in theirs[0].items():
        assert torch.allclose(ours[0][name].double(), values.double(), atol=within, rtol=1e-5), name
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does_with_the_batch_of_both(tmp_path, two, name):
    alone = train(name, tmp_path, 1)
    near(two[0][name], alone)
    assert all(torch.equal(t, two[1][name][0][n]) for n, t in two[0][name][0].items())


@pytest.mark.parametrize("name", ["adamw", "masked", "peers"])
def test_a_step_on_several_batches_is_one_on_all_their_rows(tmp_path, name):
    near(train(name, tmp_path / "a", 1, 2), train(name, tmp_path / "b", 1))


def test_several_processes_accumulate(tmp_path, two):
    near(two[0]["accumulated"], train("adamw", tmp_path, 1))


def test_per_rank_batch_norm_sees_its_own_rows(two):
    per_rank, synchronized = two[0]["norm per rank"][0], two[0]["norm"][0]
    assert not torch.allclose(per_rank["0.weight"], synchronized["0.weight"], atol=1e-4)
    assert all(torch.equal(t, two[1]["norm per rank"][0][n]) for n, t in per_rank.items())
