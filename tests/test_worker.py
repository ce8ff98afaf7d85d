"""The worker: whatever is killed, when, a job ends with one whole line per process; and what it measures is what it
says."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import EnvironmentUnfit, RunFailed
from edgekd.hosts import local
from edgekd.runtimes import worker

FOLDER = Path(worker.__file__).parent

# a runtime of a few lines: `model` is a text file that says how it behaves
FAKE = """
import os, signal, sys, time
import numpy as np

FORMAT, NAME, VERSION = "fake", "fake", "1"


def load(path, threads):
    model = str(path)
    how = dict(line.split("=") for line in open(model).read().split())
    if "crash" in how:
        open(model + ".tries", "a").write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    if "crash_once" in how and not os.path.exists(model + ".seen"):
        open(model + ".seen", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if "refuse" in how:
        raise RuntimeError("no such operator")
    if "sleep" in how:
        open(model + ".pid", "w").write(str(os.getpid()))
        time.sleep(float(how["sleep"]))
    kept = np.ones(int(how.get("bytes", 0)), np.uint8)
    batch = int(how["batch"]) if "batch" in how else None
    print("a runtime that talks")

    def infer(arrays):
        x = arrays["x"]
        assert batch is None or len(x) == batch
        time.sleep(float(how.get("ms", 1)) / 1000)
        return {"double": 2 * x, "row": x.sum(1)} if "scalar" not in how else {"double": np.float32(0)}

    infer.inputs = {"x": ("float32", (batch, 3))}
    infer.outputs = ("double", "row") if "scalar" not in how else ("double",)
    infer.kept = kept
    return infer
"""
STEADY = {"warmup_runs": 10, "warmup_s": 0, "warmup_cap_s": 0.1, "runs": 5, "steady_s": 0, "cap_s": 1}


def job(folder, subjects, schedule, inputs=None, **settings):
    (folder / "runtimes").mkdir(parents=True)
    for name in ("worker.py", "facts.py"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    (folder / "runtimes" / "fake.py").write_text(FAKE)
    np.save(folder / "x.npy", np.arange(30, dtype=np.float32).reshape(10, 3) if inputs is None else inputs)
    for name, how in subjects.items():
        (folder / f"{name}.txt").write_text(how)
    entries = [
        {"id": f"{s}-{p}-{i}", "subject": s, "pass": p, **STEADY, "batch": 4} for i, (s, p) in enumerate(schedule)
    ]
    made = {"runtime": "runtimes/fake.py", "threads": 1, "seconds": 20, "schedule": entries, **settings}
    made["subjects"] = {name: {"model": f"{name}.txt", "inputs": {"": "x.npy"}} for name in subjects}
    (folder / "job.json").write_text(json.dumps(made))
    return folder


def run(folder, **options):
    done = subprocess.run(
        [sys.executable, "worker.py", "job.json"], cwd=folder, capture_output=True, text=True, timeout=60, **options
    )
    return done, json.loads((folder / "out" / "done.json").read_text()), lines(folder)


def lines(folder):
    path = folder / "out" / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_files_for_devices_are_old_python_and_know_nothing_of_edgekd():
    allowed = {"numpy", "onnxruntime", *sys.stdlib_module_names}
    for path in FOLDER.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        found = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        found |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert found <= allowed, path


def test_a_job_writes_a_line_per_process_and_done_last(tmp_path):
    folder = job(tmp_path / "job", {"a": "ms=1", "b": "ms=2"}, [("a", "time"), ("b", "time"), ("a", "outputs")])
    done, summary, found = run(folder)
    assert done.returncode == 0 and summary == {"finished": ["a-time-0", "b-time-1", "a-outputs-2"], "failed": {}}
    assert [line["id"] for line in found] == summary["finished"]
    assert [json.loads(text)["done"] for text in done.stdout.splitlines()] == [1, 2, 3]
    for line in found[:2]:
        times = np.load(folder / "out" / line["times"])
        assert len(times) == line["n"] >= 5
        assert line["p50_ms"] == pytest.approx(np.quantile(times, 0.5) / 1e6) and line["p90_ms"] == pytest.approx(
            np.quantile(times, 0.9) / 1e6
        )
        assert line["load_ms"] > 0 and line["first_ms"] > 0 and line["import_ms"] > 0
        assert line["warmup"]["runs"] >= 10 and set(line["before"]) == set(line["after"])
        assert set(line["before"]) == {"mhz", "celsius", "governor", "throttled", "load", "stolen_ticks"}
        assert line["affinity"] == sorted(os.sched_getaffinity(0)) and line["runtime"]["name"] == "fake"
    assert found[0]["p50_ms"] >= 1 and found[1]["p50_ms"] >= 2  # they sleep so long
    assert found[0]["cpu_share"] < 0.9  # and the clock knows that it waited


def test_outputs_are_complete_and_in_order(tmp_path):
    folder = job(tmp_path / "job", {"a": "ms=0", "fixed": "ms=0 batch=4"}, [("a", "outputs"), ("fixed", "outputs")])
    _, _, found = run(folder)
    x = np.load(folder / "x.npy")
    for line in found:  # ten rows in batches of four: the file that fixes its batch gets padding, the answers don't
        assert line["outputs"] == ["double", "row"] and line["n"] == 10
        assert np.array_equal(np.load(folder / "out" / line["id"] / "0.npy"), 2 * x)
        assert np.array_equal(np.load(folder / "out" / line["id"] / "1.npy"), x.sum(1))


def test_run_again_it_does_nothing(tmp_path):
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")] * 2)
    run(folder)
    before = (folder / "out" / "results.jsonl").read_bytes()
    (folder / "a.txt").write_text("refuse=1")  # would fail if it were run
    done, summary, _ = run(folder)
    assert done.returncode == 0 and summary["failed"] == {}
    assert (folder / "out" / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "tail", [b'{"id": "a-time-1", "p50', b'{"id": "a-time-1"}', b"\xff\xfe\n", b'"no record"\n', b"{}\n"]
)
def test_a_torn_line_is_done_again_and_whole_ones_are_kept(tmp_path, tail):
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")] * 2)
    run(folder)
    path = folder / "out" / "results.jsonl"
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first + tail)
    _, summary, found = run(folder)
    assert [line["id"] for line in found] == ["a-time-0", "a-time-1"] and summary["failed"] == {}
    assert path.read_bytes().startswith(first) and all(line["n"] >= 5 for line in found)


def test_killed_at_any_moment_it_goes_on(tmp_path):
    folder = job(tmp_path / "job", {"a": "ms=1"}, [("a", "time")] * 5)
    path = folder / "out" / "results.jsonl"
    kept = []
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "worker.py", "job.json"], cwd=folder, stdout=subprocess.DEVNULL)
        wait_for(lambda n=wanted: path.exists() and path.read_bytes().count(b"\n") >= n)
        process.kill()
        process.wait()
        kept = path.read_bytes().splitlines(keepends=True)[:wanted]
        assert not (folder / "out" / "done.json").exists()
    _, summary, found = run(folder)
    assert [line["id"] for line in found] == [f"a-time-{i}" for i in range(5)] == summary["finished"]
    assert path.read_bytes().startswith(b"".join(kept))


def test_a_killed_child_is_done_again(tmp_path):
    folder = job(tmp_path / "job", {"a": "crash_once=1 ms=0"}, [("a", "time")])
    done, summary, found = run(folder)
    assert (folder / "a.txt.seen").exists() and summary == {"finished": ["a-time-0"], "failed": {}} and len(found) == 1


def test_what_crashes_or_is_refused_is_told_and_the_others_go_on(tmp_path):
    schedule = [*((s, "time") for s in ("bad", "refused", "good", "bad", "scalar")), ("scalar", "outputs")]
    folder = job(
        tmp_path / "job", {"bad": "crash=1", "refused": "refuse=1", "good": "ms=0", "scalar": "scalar=1"}, schedule
    )
    done, summary, found = run(folder)
    assert done.returncode == 1 and summary["finished"] == ["good-time-2", "scalar-time-4"] == [
        line["id"] for line in found
    ]
    assert (
        summary["failed"]["bad-time-0"]
        == summary["failed"]["bad-time-3"]
        == "the process was killed by signal 9 (SIGKILL)"
    )
    assert summary["failed"]["refused-time-1"] == "RuntimeError: no such operator"
    assert "no row per sample" in summary["failed"]["scalar-outputs-5"]
    # twice in a run, however many entries it has
    assert (folder / "bad.txt.tries").read_text() == "x" * worker.ATTEMPTS
    (folder / "bad.txt").write_text("ms=0")
    _, summary, _ = run(folder)
    assert "bad-time-0" in summary["finished"] and "bad-time-3" in summary["finished"]


@pytest.mark.parametrize(
    "inputs, message",
    [
        (np.zeros((4, 3)), "input x takes float32, the data is float64"),
        (np.zeros((4, 5), np.float32), r"takes samples of shape \[3\], the data has \[5\]"),
        (np.zeros((4, 3, 1), np.float32), r"takes samples of shape \[3\], the data has \[3, 1\]"),
        (np.zeros((0, 3), np.float32), "the inputs have 0 rows"),
    ],
)
def test_data_that_do_not_fit_are_told(tmp_path, inputs, message):
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "outputs")], inputs=inputs)
    _, summary, _ = run(folder)
    assert re.search(message, summary["failed"]["a-outputs-0"])


def test_memory_is_the_peak_of_the_model_over_a_bare_process(tmp_path):
    folder = job(
        tmp_path / "job",
        {"big": "ms=0 bytes=100000000", "small": "ms=0"},
        [("big", "memory"), ("small", "memory"), ("big", "bare")],
    )
    _, _, (big, small, bare) = run(folder)
    assert big["peak_rss_bytes"] - small["peak_rss_bytes"] == pytest.approx(1e8, rel=0.05)
    assert small["peak_rss_bytes"] - bare["peak_rss_bytes"] == pytest.approx(0, abs=2e6)


def test_the_peak_is_not_the_parents(tmp_path):
    """`ru_maxrss` of a child can be what its parent had: the parent here has 200 MB more than the process that is
    measured."""
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "memory")])
    code = "import sys, worker; held = bytearray(200_000_000); worker.run('job.json', say=lambda text: None)"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=60)
    assert lines(folder)[0]["peak_rss_bytes"] < 1.5e8


def test_two_workers_in_one_folder_do_the_work_once(tmp_path):
    folder = job(tmp_path / "job", {"a": "ms=1"}, [("a", "time")] * 3)
    both = [
        subprocess.Popen([sys.executable, "worker.py", "job.json"], cwd=folder, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [p.wait(60) for p in both] == [0, 0]
    assert [line["id"] for line in lines(folder)] == [f"a-time-{i}" for i in range(3)]


class Feed:
    """An `infer` whose n-th call takes as long as the list says, on a clock of its own."""

    def __init__(self, monkeypatch, times):
        self.now, self.times, self.calls = 0, times, 0
        monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: self.now)
        monkeypatch.setattr(worker.time, "perf_counter", lambda: self.now / 1e9)

    def __call__(self, feed):
        self.now += self.times(self.calls)
        self.calls += 1


RULE = {"warmup_runs": 10, "warmup_s": 0.0, "warmup_cap_s": 1000.0}


def test_warm_up_ends_with_two_medians_that_agree(monkeypatch):
    """Blocks of ten: 200, 150, 101, 100 ms. The last two agree within 1 %, so it ends after forty."""
    infer = Feed(monkeypatch, lambda i: int(1e6 * [200, 150, 101, 100][i // 10]))
    assert worker._warm_up(infer, [None], RULE) == (40, True)


def test_warm_up_takes_its_least_time_and_no_more_than_its_cap(monkeypatch):
    infer = Feed(monkeypatch, lambda i: 1_000_000)
    assert worker._warm_up(infer, [None], {**RULE, "warmup_s": 0.035}) == (40, True)
    infer = Feed(monkeypatch, lambda i: 1_000_000 * (1 + i))  # never stable
    runs, stable = worker._warm_up(infer, [None], {**RULE, "warmup_cap_s": 0.5})
    assert not stable and runs == 40  # 1 + 2 + ... + 40 ms = 0.82 s is the first block's end past 0.5 s


# ---------------------------------------------------------------- the local host


def test_local_runs_and_tells_how_far_it_is(tmp_path):
    folder, seen = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")] * 3), []
    assert local.run(folder, 60, lambda done, total: seen.append((done, total))) == folder / "out"
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_local_ends_everything_when_the_time_is_up(tmp_path):
    folder = job(tmp_path / "job", {"a": "sleep=60"}, [("a", "time")])
    with pytest.raises(EnvironmentUnfit, match="took longer than 2 s"):
        local.run(folder, 2)
    wait_for(lambda: not alive(int((folder / "a.txt.pid").read_text())), seconds=5)


def test_a_process_that_takes_too_long_is_ended_and_told(tmp_path):
    folder = job(tmp_path / "job", {"a": "sleep=60"}, [("a", "time")], seconds=4)
    _, summary, _ = run(folder)
    assert summary["failed"] == {"a-time-0": "took longer than 4 s"}
    wait_for(lambda: not alive(int((folder / "a.txt.pid").read_text())), seconds=5)


def test_a_broken_job_is_told(tmp_path):
    folder = job(tmp_path / "job", {"a": "ms=0"}, [("a", "time")])
    (folder / "job.json").write_text("{")
    with pytest.raises(RunFailed, match="the measuring process failed: json"):
        local.run(folder, 30)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal")
def test_nothing_outlives_a_killed_parent(tmp_path):
    folder = job(tmp_path / "job", {"a": "sleep=60"}, [("a", "time")])
    code = "import sys; from pathlib import Path; from edgekd.hosts import local; local.run(Path(sys.argv[1]), 60)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    path = folder / "a.txt.pid"
    wait_for(lambda: path.exists() and path.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(int(path.read_text())))


def test_the_runtime_runs_no_thread_of_its_own_and_keeps_nothing(tmp_path):
    """onnxruntime sends events to its maker where it is not told otherwise: by a thread, with a file in the user's
    cache."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("there is no /proc that shows threads")
    script = "import os, sys; from edgekd.runtimes import worker; infer = worker._module(sys.argv[1]).load(sys.argv[2])"
    script += "; print(len(os.listdir('/proc/self/task')))"
    model = FOLDER.parents[1] / "benchmarks" / "cifar10" / "student.onnx"
    environment = {**{k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}, "OPENBLAS_NUM_THREADS": "1"}
    environment.update(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    command = [sys.executable, "-c", script, str(FOLDER / "onnxruntime.py"), str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] and not list(tmp_path.rglob("*"))


def test_the_sample_that_a_file_does_not_run_with_is_named(tmp_path):
    import onnx

    from edgekd.measure import jobs

    table = "<float[4, 3] table = {0,1,2,3,4,5,6,7,8,9,10,11}>"
    graph = onnx.parser.parse_graph(f"g (int64[n, 2] ids) => (float[n, 2, 3] y) {table} {{ y = Gather(table, ids) }}")
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10),
        tmp_path / "m.onnx",
    )
    ids = np.zeros((9, 2), np.int64)
    assert jobs.score(tmp_path / "m.onnx", {"ids": ids}, folder=tmp_path / "a")["y"].shape == (9, 2, 3)
    ids[5, 1] = 4
    with pytest.raises(RunFailed, match=r"does not run in onnxruntime: sample 5: InvalidArgument: .*idx=4"):
        jobs.score(tmp_path / "m.onnx", {"ids": ids}, folder=tmp_path / "b")
