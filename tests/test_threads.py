"""The number of cores is no run's identity: the same keys, the same bytes, and what is said of it."""

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tiny

import edgekd
from edgekd import environment
from edgekd.cli import run as command
from edgekd.errors import UsageError
from edgekd.records import Made
from edgekd.run import plan, resolve, sanity_check, steps
from edgekd.verbs import compress

TEXT = 'task = "tiny:task"\n[[stage]]\nuse = "train"\nepochs = 1\n[model.teacher]\ntrain = { epochs = 1 }\n'
PLAIN = tomllib.loads(TEXT)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sanity_check, "check", lambda *given: None)  # it takes seconds, and threads are known before
    (tmp_path / "recipe.toml").write_text(TEXT)


def cores(monkeypatch, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))


def test_the_keys_are_those_of_two_threads_on_any_number_of_cores(monkeypatch):
    keys = plan.make(resolve.resolved({**PLAIN, "threads": 2})).steps.keys()
    for count in (1, 2, 64):
        cores(monkeypatch, count)
        assert plan.make(resolve.resolved(PLAIN)).steps.keys() == keys, count


def test_a_machine_is_the_same_whatever_cores_a_process_may_use():
    facts = environment.describe()
    assert environment.environment_id({**facts, "cores": 1}) == environment.environment_id({**facts, "cores": 64})
    assert environment.environment_id({**facts, "cpu": "another"}) != environment.environment_id(facts)


@pytest.mark.parametrize(
    ("count", "given", "line"),
    [
        (64, {}, "using 2 of 64 cores: --threads 32"),
        (4, {}, "using 2 of 4 cores: --threads 4"),
        (2, {}, ""),
        (1, {}, "2 threads on 1 core: slower, and the same files"),
        (64, {"threads": 8}, ""),
        (64, {"sets": ["threads=8"]}, ""),
    ],
)
def test_what_is_said_of_the_threads(count, given, line, monkeypatch):
    cores(monkeypatch, count)
    assert compress._sharing(resolve.resolved("recipe.toml", **given), None) == line


def test_the_first_line_tells_of_the_threads(monkeypatch, capfd):
    cores(monkeypatch, 64)
    for options, line in (
        ("", "using 2 of 64 cores: --threads 32"),
        ("--threads 8", "check the plan"),
        ("--set threads=8", "check the plan"),
    ):
        assert command(["compress", "recipe.toml", "--dry-run", *options.split()]) == 0
        assert capfd.readouterr().err.splitlines()[0].startswith(line)


class Stop(Exception):
    pass


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run's folder that was begun with 4 threads and cut off at its first step; `threads()` of what goes on."""
    seen = []

    def stop(plan, resolved, *rest):
        seen.append(resolved.threads)
        raise Stop

    monkeypatch.setattr(steps, "run_steps", stop)
    with pytest.raises(Stop):
        edgekd.compress("recipe.toml", out="run", threads=4)
    return seen


def test_a_run_goes_on_with_its_own_threads(begun, monkeypatch, capfd):
    for count in (1, 64):
        cores(monkeypatch, count)
        with pytest.raises(Stop):
            edgekd.compress("recipe.toml", out="run", quiet=False)
    assert begun == [4, 4, 4]
    err = capfd.readouterr().err
    assert "4 threads on 1 core: slower" in err and "using 4 of 64 cores, as the run was begun\n" in err
    with pytest.raises(Stop):
        edgekd.compress("recipe.toml", out="run", fresh=True)
    assert begun[-1] == 2


def test_other_threads_are_another_recipe(begun, capsys):
    assert command(["compress", "recipe.toml", "--out", "run", "--threads", "2"]) == 2
    err = capsys.readouterr().err
    assert "holds the run of another recipe" in err and "--threads 4 resumes it" in err


def test_a_run_of_an_older_version_goes_on(begun):
    """Its recipe.toml has none of the settings that came later."""
    path = Path("run/recipe.toml")
    later = "accumulate = 1\n", 'batch_norm = "synchronized"\n'
    text = path.read_text()
    assert all(line in text for line in later)
    for line in later:
        text = text.replace(line, "")
    path.write_text(text)
    with pytest.raises(Stop):
        edgekd.compress("recipe.toml", out="run")
    path.write_text(text.replace("[[stage]]\n", "[[stage]]\naccumulate = 2\n", 1))
    with pytest.raises(UsageError, match="another recipe"):
        edgekd.compress("recipe.toml", out="run")


def test_what_a_task_and_a_stage_compute_does_not_follow_the_machine(monkeypatch):
    """Numpy's products and torch's sums come out otherwise with another number of threads; both are held while code of
    a recipe is at work."""
    import torch
    from threadpoolctl import threadpool_info, threadpool_limits

    blas = lambda: {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen, given = [], tiny.task.data

    def data(split):
        seen.append((torch.get_num_threads(), blas()))
        return given(split)

    with threadpool_limits(2, user_api="blas"):
        if blas() != {2}:
            pytest.skip("one core")
        monkeypatch.setattr(tiny, "task", dataclasses.replace(tiny.task, data=data))
        before = torch.get_num_threads()
        resolve.resolved(PLAIN)
        assert blas() == {2} and torch.get_num_threads() == before
    assert set(map(repr, seen)) == {"(2, {1})"}


def test_another_kind_of_cpu_is_said(tmp_path, monkeypatch, capfd):
    """A step that was made, or begun, elsewhere is told with the kinds of CPU that had a part in it; on the same kind
    nothing is said."""

    @dataclasses.dataclass(frozen=True)
    class Part:
        def __call__(self, source, run, *, teacher=(), data=None):
            (run.folder / "file").write_text("x")
            return Made("torch", {})

    from edgekd.progress import Lines
    from edgekd.store.store import Store

    resolved = dataclasses.replace(resolve.resolved(PLAIN))
    step = plan.Step("a" * 64, "train", "teacher", Part(), 0, None, ())
    events, kinds = [], iter(["elsewhere", "elsewhere", "here"])
    log = lambda **event: events.append(event)
    for kind in kinds:
        monkeypatch.setattr(environment, "kind", lambda facts, kind=kind: kind)
        store = Store(tmp_path / "store")
        _, (told,) = steps.run_steps(plan.Plan({step.key: step}), resolved, store, Lines(), log)
        store.close()
        assert told.get("cpus", []) == (["elsewhere"] if kind == "here" else [])
    assert events[-1]["cpus"] == ["elsewhere"] and "made on elsewhere" in capfd.readouterr().err


def test_a_step_that_was_begun_elsewhere_names_both(tmp_path, monkeypatch):
    for kind in ("a", "b"):
        monkeypatch.setattr(environment, "kind", lambda facts, kind=kind: kind)
        found = steps._cpus(tmp_path / "cpus.json")
    assert found == ["a", "b"]


STEPS = """
import hashlib, os, sys
os.sched_setaffinity(0, eval(sys.argv[1]))
import torch
from torch import nn
from edgekd.training.loop import seeded
with seeded(0, 2):
    assert torch.get_num_threads() == 2
    net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                        nn.Linear(384, 10))
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(4):
        loss = net(torch.randn(64, 3, 20, 20)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(hashlib.sha256(torch.cat([p.detach().flatten() for p in net.parameters()]).numpy().tobytes()).hexdigest())
"""


def test_two_threads_on_one_core_train_the_same_bytes():
    every = os.sched_getaffinity(0)
    if len(every) < 2:
        pytest.skip("one core")
    made = [
        subprocess.run([sys.executable, "-c", STEPS, repr(c)], capture_output=True, text=True, check=True).stdout
        for c in (every, {min(every)})
    ]
    assert made[0] == made[1] and len(made[0]) == 65
