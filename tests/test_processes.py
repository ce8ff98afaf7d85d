"""Several processes train as one: the same weights as one process with the batch of all, up to the order of sums."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from ranks import CASES, train

from edgekd.errors import BROKEN, UsageError
from edgekd.run.keys import key_of
from edgekd.run.plan import make
from edgekd.run.processes import Leader, check
from edgekd.run.resolve import resolved

HERE = Path(__file__).parent
PATHS = (HERE, HERE.parent)


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


# ---------------------------------------------------------------- runs


def run(place, before=()):
    """The trainings of the tiny recipe in two processes, by torchrun if the command begins with it."""
    place.mkdir(exist_ok=True)
    (place / "tiny.toml").write_text(tiny.SHORT.replace("epochs = 1", "epochs = 12"))
    env = {**os.environ, "EDGEKD_STORE": str(place / "store"), "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    command = [sys.executable, *before, HERE / "ranks.py"]
    return subprocess.Popen(command, cwd=place, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    process = run(place, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert errors.count("made 3 models") == 1, errors  # rank 0 alone prints
    return weights(place)


def weights(place):
    return {p.parent.name: p.read_bytes() for p in place.glob("store/artifacts/*/*/weights.safetensors")}


def others(process, place):
    """The ids of the processes that a run started, once they train."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [pid for pid in found if b"edgekd.run.processes" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if found and list(place.glob("store/work/*/scratch/checkpoint.safetensors")):
            return [int(pid) for pid in found]
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def gone(pid):
    """Whether a process has ended, within seconds."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_ends_the_run_and_the_same_command_resumes_it(tmp_path, undisturbed):
    process = run(tmp_path)
    (other,) = others(process, tmp_path)
    os.kill(other, signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == BROKEN, errors
    assert "process 1 of 2 was killed (SIGKILL)" in errors and "run the same command to resume" in errors

    process = run(tmp_path)
    (other,) = others(process, tmp_path)
    process.kill()  # rank 0
    process.communicate()
    assert gone(other)

    process = run(tmp_path)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "resumed" in errors, errors
    assert weights(tmp_path) == undisturbed


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells who listens")
def test_messages_come_from_this_machine_only():
    """They are unpickled: nothing else in the network may send one."""
    leader = Leader(1)
    try:
        tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table.splitlines()]
        port = f":{leader.store.port:04X}"
        places = [line[1] for line in lines if line[1].endswith(port) and line[3] == "0A"]
        assert places == [f"0100007F{port}"]
    finally:
        leader.close()


def test_the_number_of_processes_is_in_the_key_of_what_learns(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "tiny.toml").write_text(tiny.SHORT)
    one, two = (resolved("tiny.toml", processes=count) for count in (1, 2))
    steps, inputs = make(one).steps.values(), {"source": [], "teacher": []}
    changed = {s.stage: key_of(one, s.stage, s.part, 0, inputs) != key_of(two, s.stage, s.part, 0, inputs)
               for s in steps}  # fmt: skip
    assert changed == {"train": True, "distill": True, "answer": False, "quantize": False, "export": False}


def test_torchrun_with_another_number_than_asked_for_is_refused(monkeypatch, tmp_path):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "tiny.toml").write_text(tiny.SHORT)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 are asked for, torchrun started 4"):
        check(resolved("tiny.toml", processes=2))
