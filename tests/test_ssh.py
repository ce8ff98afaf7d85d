"""Boards over ssh, against a real sshd on the loopback: what is cut off goes on, what is hostile gets nowhere, and
nothing is left there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from board import board, know
from test_measure import TINY, X, network
from test_worker import alive, wait_for
from test_worker import job as worker_job
from test_worker import lines as lines_of

from edgekd import cli, environment
from edgekd.errors import EnvironmentUnfit, UsageError
from edgekd.hosts import connection, ssh
from edgekd.measure import jobs as measure
from edgekd.measure import machine
from edgekd.records import Measurement
from edgekd.runtimes import worker
from edgekd.verbs import profile

AGENT = connection.AGENT.read_text()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with board(tmp_path_factory.mktemp("board")) as made:
        yield made


@pytest.fixture(autouse=True)
def configured(monkeypatch, request):
    monkeypatch.delenv("EDGEKD_REMOTE_PYTHON", raising=False)
    if "there" in request.fixturenames:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(request.getfixturevalue("there").config))


def job(folder, subjects, schedule, **settings):
    """A job of a runtime of a few lines, as measure.build would list it."""
    worker_job(folder, subjects, schedule, **settings)
    made = json.loads((folder / "job.json").read_text())
    made["files"] = {str(p.relative_to(folder)): "" for p in folder.rglob("*") if p.is_file() and p.name != "job.json"}
    (folder / "job.json").write_text(json.dumps(made))
    return folder


def elsewhere(there, folder):
    """A process that runs a job on the board, to be killed."""
    code = (
        "import sys; from pathlib import Path; from edgekd.hosts import ssh\n"
        "with ssh.connect(sys.argv[1]) as h: h.run(Path(sys.argv[2]), 60)"
    )
    return subprocess.Popen([sys.executable, "-c", code, there.address, str(folder)], stderr=subprocess.DEVNULL)


def results(there):
    """The lines that lie on the board."""
    return [
        line
        for path in there.home.glob(".cache/edgekd-jobs/*/out/results.jsonl")
        for line in path.read_text().splitlines()
    ]


def watched(monkeypatch):
    """What is asked of the board from now on: names of files that are sent, else what is done."""
    asked, ask = [], connection.Connection.ask

    def told(self, what, *rest, **options):
        asked.append(what["name"] if what["do"] == "put" else what["do"])
        return ask(self, what, *rest, **options)

    monkeypatch.setattr(connection.Connection, "ask", told)
    return asked


def wrapper(folder, name, text):
    """An interpreter of one's own: a shell script around this one."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ---------------------------------------------------------------- what it is for


def test_a_board_answers_as_this_machine_does_and_nothing_is_left(tmp_path, there):
    path = network(tmp_path / "m.onnx")
    with ssh.connect(there.address) as host:
        found = measure.score(path, X, folder=tmp_path / "there", host=host)
        assert len(there.left()) > 3
    assert np.array_equal(found["y"], measure.score(path, X, folder=tmp_path / "here")["y"])
    steady = {name: value for name, value in environment.describe().items() if name not in environment.VOLATILE}
    assert {name: value for name, value in host.facts.items() if name not in environment.VOLATILE} == steady
    assert there.left() == [] and there.processes() == []


def test_the_verbs_on_a_board(tmp_path, there, monkeypatch, capsys):
    monkeypatch.setitem(measure.EFFORTS, "quick", TINY)
    monkeypatch.setenv("EDGEKD_REMOTE_PYTHON", sys.executable)
    path, address = str(network(tmp_path / "m.onnx")), there.address.partition("?")[0]
    np.savez(tmp_path / "d.npz", inputs=X, labels=np.zeros(len(X), int))
    options = ["--on", address, "--preset", "quick", "--json", str(tmp_path / "p.json")]
    assert cli.run(["profile", path, "--data", str(tmp_path / "d.npz"), *options]) == 0
    out = capsys.readouterr()
    assert "latency_p50_ms" in out.out and "top1" in out.out and "MatMul" in out.out and "connect to board" in out.err
    told = json.loads((tmp_path / "p.json").read_text())
    timed = next(m for m in told["measurements"] if m["name"] == "latency_p50_ms")
    assert timed["environment"] == environment.environment_id(told["environment"]) and timed["origin"] == "measured"
    hosts, like = [], Measurement("latency_p50_ms", "ms", 1, 1, 1, 6, None, "host", "measured")
    same = measure.Comparison((1, 1, 1), (1, 1, 1), (like,), (like,), 6)
    monkeypatch.setattr(measure, "compare", lambda *given: (hosts.append(given[3].host.name), same)[1])
    assert cli.run(["compare", path, path, "--on", address, "--preset", "quick", "--quiet"]) == 0
    assert "B / A" in capsys.readouterr().out and hosts == ["board"]
    other = {"aarch64": "x86-64"}.get(told["environment"]["architecture"], "aarch64")
    (tmp_path / "pi.toml").write_text(f'title = "a board of another kind"\narchitecture = "{other}"\n')
    assert cli.run(["profile", path, "--target", str(tmp_path / "pi.toml"), "--on", address]) == 4
    assert f"target pi: board lacks {other}" in capsys.readouterr().err
    assert cli.run(["profile", path, "--on", "ssh://-oProxyCommand=x"]) == 2
    assert cli.run(["profile", path, "--on", "board"]) == 2
    assert there.left() == []


def test_rounds_are_added_without_sending_a_model_again(tmp_path, there, monkeypatch):
    folder, asked = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")]), watched(monkeypatch)
    with ssh.connect(there.address) as host:
        host.run(folder, 60)
        made = json.loads((folder / "job.json").read_text())
        made["schedule"].append({**made["schedule"][0], "id": "a-time-1"})
        (folder / "job.json").write_text(json.dumps(made))
        del asked[:]
        assert host.run(folder, 60) == folder / "out"
    assert asked[:2] == ["open", "job.json"] and set(asked[2:]) == {"get", "done"}
    assert [line["id"] for line in lines_of(folder)] == ["a-time-0", "a-time-1"] and there.left() == []


def test_progress_counts_the_whole_schedule(tmp_path, there):
    folder, seen = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")] * 3), []
    (folder / "out").mkdir()
    with ssh.connect(there.address) as host:
        host.run(folder, 60, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# ---------------------------------------------------------------- cut off


def test_killed_here_it_ends_there_and_goes_on(tmp_path, there, monkeypatch):
    folder = job(tmp_path / "job", {"a": "ms=0", "b": "sleep=60"}, [("a", "time"), ("b", "time")])
    process = elsewhere(there, folder)
    wait_for(lambda: len(results(there)) == 1 and list(there.home.rglob("b.txt.pid")))
    kept = results(there)
    assert there.processes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not there.processes(), seconds=10)
    assert results(there) == kept and lines_of(folder) == []
    pid = next(there.home.rglob("b.txt.pid"))
    # or it would sleep again: the one file that is sent anew is that which differs
    (pid.parent / "b.txt").write_text("ms=0")
    (folder / "b.txt").write_text("ms=0")
    asked = watched(monkeypatch)
    with ssh.connect(there.address) as host:
        host.run(folder, 60)
    assert asked[:2] == ["facts", "open"] and set(asked[2:]) == {"get", "done"}
    found = lines_of(folder)
    assert [line["id"] for line in found] == ["a-time-0", "b-time-1"] and found[0] == json.loads(kept[0])
    assert there.left() == []


def test_a_lost_connection_is_taken_up_again(tmp_path, there):
    folder = job(tmp_path / "job", {"a": "ms=10"}, [("a", "time")] * 3)
    lost = []

    def cut(done, total):
        if done == 1 and not lost:
            lost.append(done)
            held[0].__self__.open.ssh.kill()

    with ssh.connect(there.address) as host:
        held = [host.run]
        host.run(folder, 60, cut)
    assert lost and [line["id"] for line in lines_of(folder)] == [f"a-time-{i}" for i in range(3)]
    assert there.left() == []


def test_a_board_that_goes_away_for_good_is_said(tmp_path, monkeypatch):
    folder = job(tmp_path / "job", {"a": "sleep=60"}, [("a", "time")])
    with board(tmp_path / "board") as made:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(made.config))
        with ssh.connect(made.address) as host:

            def vanish():
                wait_for(lambda: list(made.home.rglob("a.txt.pid")))
                know(made, "user")  # the next connection is refused, as if another board were there
                host.run.__self__.open.ssh.kill()

            threading.Thread(target=vanish).start()
            with pytest.raises(
                EnvironmentUnfit, match="connection was lost: its host key.*\n.*run the same command to resume"
            ):
                host.run(folder, 60)
        wait_for(lambda: not made.processes(), seconds=10)


def test_when_the_time_is_up_what_is_finished_is_here(tmp_path, there):
    folder = job(tmp_path / "job", {"a": "ms=0", "b": "sleep=60"}, [("a", "time"), ("b", "time")], seconds=300)
    with ssh.connect(there.address) as host:
        with pytest.raises(EnvironmentUnfit, match="took longer than 3 s"):
            host.run(folder, 3)
        assert [line["id"] for line in lines_of(folder)] == ["a-time-0"] and not there.processes()
        (folder / "b.txt").write_text("ms=0")
        host.run(folder, 60)
    assert [line["id"] for line in lines_of(folder)] == ["a-time-0", "b-time-1"]
    assert json.loads((folder / "out" / "done.json").read_text()) == {
        "finished": ["a-time-0", "b-time-1"],
        "failed": {},
    }
    assert there.left() == []


def test_two_at_a_time_are_refused(tmp_path, there, monkeypatch):
    monkeypatch.setattr(ssh, "WAIT", 0)
    first, second = (job(tmp_path / name, {"a": "ms=0"}, [("a", "time")]) for name in ("one", "two"))
    with ssh.connect(there.address) as a, ssh.connect(there.address) as b:
        a.run(first, 60)
        with pytest.raises(EnvironmentUnfit, match="another measurement is running there"):
            b.run(second, 60)
    assert there.left() == []


def test_what_nobody_came_back_for_goes(tmp_path, there):
    jobs = there.home / ".cache" / "edgekd-jobs"
    for name, age in (("0123456789abcdef", 8), ("fedcba9876543210", 6)):
        (jobs / name).mkdir(parents=True, mode=0o700)
        os.utime(jobs / name, (time.time() - age * 86400,) * 2)
    (there.home / ".cache" / "edgekd-jobs").chmod(0o700)
    with ssh.connect(there.address) as host:
        host.run(job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")]), 60)
    assert [p.name for p in jobs.iterdir()] == ["fedcba9876543210"]
    (jobs / "fedcba9876543210").rmdir()
    jobs.rmdir()
    jobs.parent.rmdir()


def test_the_other_end_ends_when_it_hears_nothing(tmp_path):
    """A line that is dead without an end of input: a board that is carried out of the network's reach."""
    (tmp_path / "agent.py").write_text(
        AGENT.replace("SILENCE = 90.0", "SILENCE = 2.0").replace("waiting, [], [], 5)", "waiting, [], [], 0.5)")
    )
    folder = job(tmp_path / "home/.cache/edgekd-jobs/0123456789abcdef", {"a": "sleep=60"}, [("a", "time")])
    folder.parent.chmod(0o700)
    environ = {**os.environ, "HOME": str(tmp_path / "home")}
    agent = subprocess.Popen(
        [sys.executable, tmp_path / "agent.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    told = [{"do": "open", "job": folder.name, "files": {}, "need": 0, "wait": 0}, {"do": "run"}]
    agent.stdin.write(b"".join(json.dumps(t).encode() + b"\n" for t in told))
    agent.stdin.flush()
    wait_for(lambda: (folder / "a.txt.pid").exists())
    assert agent.wait(10) == 0
    agent.stdin.close(), agent.stdout.close()
    wait_for(lambda: not alive(int((folder / "a.txt.pid").read_text())), seconds=5)


# ---------------------------------------------------------------- not fit


def refusal(address, exception=EnvironmentUnfit):
    with pytest.raises(exception) as caught, ssh.connect(address):
        pass
    return str(caught.value)


def test_host_keys_are_checked(there):
    try:
        know(there, "user")
        said = refusal(there.address)
        assert "its host key differs from the known one" in said and f"ssh-keygen -R '[board]:{there.port}'" in said
        (there.folder / "known").write_text("")
        said = refusal(there.address)
        assert "its host key is not known" in said and f"-p {there.port} board" in said
        assert (there.folder / "known").read_text() == ""
    finally:
        know(there)


def test_who_is_not_let_in_and_where_nothing_listens(there, monkeypatch):
    authorized = there.folder / "authorized"
    kept = authorized.read_text()
    try:
        authorized.write_text("")
        assert "it refuses the login" in refusal(there.address)
    finally:
        authorized.write_text(kept)
    assert "nothing listens there" in refusal("ssh://board:1")
    assert "there is no such host" in refusal("ssh://no-such-host.invalid")
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(there.folder / "nowhere"))
    assert "ssh can't read its configuration" in refusal(there.address)
    monkeypatch.setenv("PATH", "")
    assert "no ssh on the PATH" in refusal(there.address)


def test_an_interpreter_that_does_not_fit(there, tmp_path):
    address = there.address.partition("?")[0]
    assert "there is no /nowhere/python there" in refusal(f"{address}?python=/nowhere/python")
    bare = wrapper(tmp_path, "bare", f'exec {sys.executable} -S "$@"')
    with ssh.connect(f"{address}?python={bare}") as host:
        (problem,) = host.lacks("onnxruntime")
        with pytest.raises(EnvironmentUnfit, match="has no onnxruntime and no numpy"):
            machine.stands_for(host, None)
    assert f"{bare} -m pip install onnxruntime numpy" in problem.hint
    old = wrapper(
        tmp_path,
        "old",
        f"""exec {sys.executable} -c 'import sys; sys.version_info = (3, 7, 2); exec(sys.argv[1])' "$2" """,
    )
    assert "is Python 3.7, and 3.8 is needed" in refusal(f"{address}?python={old}")
    assert there.left() == []


def test_an_interpreter_with_a_blank_in_its_path_and_a_login_that_talks(tmp_path, monkeypatch):
    with board(tmp_path / "b", login="echo welcome to the board; echo moin") as made:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(made.config))
        wrapper(made.home, "my python", f'exec {sys.executable} "$@"')
        with ssh.connect(f"ssh://board:{made.port}?python=~/my%20python") as host:
            assert host.facts["cores"] == environment.cores()


def test_no_room_there(tmp_path, monkeypatch):
    """Files of at most 64 KiB: the model does not fit, or the outputs don't."""
    with board(tmp_path / "b", login="ulimit -f 128") as made:  # blocks of 512 bytes
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(made.config))
        with ssh.connect(made.address) as host:
            with pytest.raises(EnvironmentUnfit, match="too little free disk space for the job .File too large"):
                measure.score(network(tmp_path / "m.onnx", 20000), X[:4], folder=tmp_path / "big", host=host)
            path = network(tmp_path / "many.onnx")
            some = np.zeros((6000, 8), np.int8)
            network(path, kind=3)  # int8 inputs: 48 kB of them, 72 kB of outputs
            with pytest.raises(EnvironmentUnfit, match="too little free disk space for the job .*[0-9]+ written"):
                measure.score(path, some, folder=tmp_path / "many", host=host)
        assert not made.processes()


def test_a_full_disk_there(tmp_path, monkeypatch):
    mounted = []
    with board(tmp_path / "b") as made:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(made.config))
        try:
            for folder in (made.home, made.folder / "tmp"):
                if subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], stderr=subprocess.DEVNULL
                ).returncode:
                    pytest.skip("needs the right to mount a small disk")
                mounted.append(folder)
            with (
                ssh.connect(made.address) as host,
                pytest.raises(EnvironmentUnfit, match="too little free disk space for the job .No space left"),
            ):
                measure.score(network(tmp_path / "m.onnx"), X, folder=tmp_path / "s", host=host)
            assert made.left() == []
            monkeypatch.setattr(connection, "AGENT", wrapper(tmp_path, "agent.py", "").with_suffix(".py"))
            # it fills up only later
            (tmp_path / "agent.py").write_text(AGENT.replace("ROOM = 16 * 2**20", "ROOM = -2**40"))
            with (
                ssh.connect(made.address) as host,
                pytest.raises(EnvironmentUnfit, match="too little free disk space for the job .No space left"),
            ):
                measure.score(network(tmp_path / "m.onnx", 20000), X, folder=tmp_path / "s", host=host)
            assert made.left() == []
        finally:
            for folder in mounted:
                subprocess.run(["umount", folder], check=True)


def test_a_worker_that_breaks_is_told_with_its_last_words(tmp_path, there):
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")])
    (folder / "worker.py").write_text("import sys\nsys.exit('\\033[31mno such thing\\a')")
    with ssh.connect(there.address) as host:
        with pytest.raises(EnvironmentUnfit) as caught:
            host.run(folder, 60)
        assert "the measuring process failed: [31mno such thing" in str(caught.value) and "\033" not in str(
            caught.value
        )
        (folder / "worker.py").write_bytes(Path(worker.__file__).read_bytes())
        (folder / "a.txt").write_text("refuse=1")
        host.run(folder, 60)
    assert json.loads((folder / "out" / "done.json").read_text())["failed"] == {
        "a-time-0": "RuntimeError: no such operator"
    }
    assert there.left() == []


CHEAT = """
import pickle
class Harm:
    def __reduce__(self):
        return os.mkdir, ({harm!r},)
code = main(sys.argv[1:])
if "--entry" not in sys.argv:
    Path("out/a-time-0.npy").write_bytes(pickle.dumps(Harm()))
sys.exit(code)
"""


def test_an_array_of_a_board_that_is_a_pickle_is_refused_and_never_unpickled(tmp_path, there):
    """Its line is true; the file beside it would make a folder on this machine."""
    folder, harm = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")]), tmp_path / "harm"
    (folder / "worker.py").write_text(
        Path(worker.__file__).read_text().partition("\nif __name__")[0] + CHEAT.format(harm=str(harm))
    )
    with ssh.connect(there.address) as host:
        with pytest.raises(
            EnvironmentUnfit,
            match="sent an invalid result: .* is not an array.*\n.*run the same command to measure it again",
        ):
            host.run(folder, 60)
        assert lines_of(folder) == [] and not (folder / "out" / "a-time-0.npy").exists() and not harm.exists()
        assert there.left() == []  # or the same job would find the same damage again
        (folder / "worker.py").write_bytes(Path(worker.__file__).read_bytes())
        host.run(folder, 60)
    assert [line["id"] for line in lines_of(folder)] == ["a-time-0"] and there.left() == []


class Talker:
    """A connection to what answers anything but the truth: `had`, what it says to have; it never stops talking."""

    def __init__(self, had):
        self.had, self.said = had, []

    def ask(self, record, payload=b"", **options):
        self.said.append(record["do"])
        return {"have": self.had}

    def send(self, record, *rest):
        self.said.append(record["do"])

    def receive(self, seconds):
        time.sleep(0.01)
        return {"line": "still at it"}

    def close(self):
        pass


@pytest.mark.parametrize("had", [5, None, {"a": 1}, "worker.py", [1, {}]])
def test_a_board_that_only_talks_is_given_up(tmp_path, monkeypatch, had):
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")])
    monkeypatch.setattr(ssh, "AFTER", 0.1)
    board = ssh._Board(ssh.parse("ssh://board"), lambda label: contextlib.nullcontext(lambda *_: None))
    board.open = Talker(had)
    with pytest.raises(connection.Lost):
        board._once(folder, time.monotonic() + 0.1, 0.1, lambda *_: None)
    assert board.open.said.count("put") >= 2 and board.open.said[-2:] == ["run", "stop"]


def test_a_file_that_the_board_refuses_is_the_users_error(tmp_path, there):
    network(tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "wide"  # so that samples of any width fit
    onnx.save(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", inputs=X[:, :3], labels=np.zeros(len(X), int))
    with pytest.raises(UsageError, match="m.onnx: does not run in onnxruntime: "):
        profile.profile(tmp_path / "m.onnx", data=tmp_path / "d.npz", on=there.address)
    assert there.left() == []
