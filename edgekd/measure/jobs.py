"""Measuring exported files: jobs are built, run on a host, and read; the statistics are made here, never on the device.

`score` asks a file for its outputs, `profile` times several files against each other, `compare` gives the ratio of two.
All three are jobs: fresh processes in an interleaved schedule, with one subject entered twice as A/A control. What is
finished stays in the folder: the same call goes on from there, and reads what is complete without measuring again. A
file that its runtime refuses ends in RunFailed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekd import environment, intervals, probes
from edgekd.errors import EnvironmentUnfit, Problem, RunFailed
from edgekd.hosts import local
from edgekd.inputs import length, named
from edgekd.records import Host, Measurement
from edgekd.runtimes import worker

Preset = Literal["probe", "quick", "standard", "certify"]
Inputs = np.ndarray | Mapping[str, np.ndarray]
Progress = Callable[[int, int, str], None]
Interval = tuple[float, float, float]  # value, low, high
CONTROL = "control"
ROWS = 64  # samples that a timing goes through
RUNTIME = "onnxruntime.py"
LONGEST, TRIED = 600, 120  # s that one process may take, and one inference of a file that nobody knows


@dataclass(frozen=True)
class Effort:
    """How much a preset measures. `processes` fresh ones per file (at most `most`, while the p50 is known worse than
    +-1 %), each with its warm-up and then at least `runs` inferences and `steady_s` seconds; `memory` processes for the
    peak."""

    processes: int
    most: int
    warmup_s: float
    runs: int
    steady_s: float
    memory: int
    warmup_runs: int = 10
    warmup_cap_s: float = 5.0
    cap_s: float = 30.0


EFFORTS: Mapping[str, Effort] = {
    "probe": Effort(
        processes=6, most=6, warmup_s=0.1, runs=11, steady_s=0.3, memory=2, warmup_cap_s=0.5, cap_s=5.0
    ),  # of a calibration
    "quick": Effort(processes=6, most=6, warmup_s=0.15, runs=11, steady_s=0.6, memory=3, warmup_cap_s=1.0, cap_s=10.0),
    "standard": Effort(processes=10, most=20, warmup_s=0.5, runs=20, steady_s=1.0, memory=4),
    "certify": Effort(
        processes=20, most=40, warmup_s=0.5, runs=52, steady_s=3.0, memory=6, warmup_cap_s=30.0, cap_s=60.0
    ),
}


@dataclass(frozen=True)
class Comparison:
    """How two files compare: `ratio` = time of b over time of a, with its 95 % interval; `control` the same for a over
    itself."""

    ratio: Interval
    control: Interval
    a: tuple[Measurement, ...]
    b: tuple[Measurement, ...]
    processes: int
    note: str = ""

    @property
    def verdict(self) -> Literal["slower", "faster", "no difference shown", "inconclusive"]:
        """What is shown of b; nothing where the control excludes 1: then the session tells a file from itself."""
        if not agrees(self.control):
            return "inconclusive"
        if agrees(self.ratio):
            return "no difference shown"
        return "slower" if self.ratio[0] > 1 else "faster"


def score(
    model: Path,
    inputs: Inputs,
    *,
    threads: int = 1,
    folder: Path,
    host: Host | None = None,
    launch: Mapping[str, Any] | None = None,
    cap_s: float = 0,
) -> dict[str, np.ndarray]:
    """{output: [n, ...]}: what a file answers to all samples, in its runtime. `inputs`: array [n, ...], or {input:
    array}. `launch`: under an emulator (see hosts.emulator; default: the host's); `cap_s`: the first samples only, as
    many as take so many seconds."""
    entry = {"id": "s0-outputs", "subject": "s0", "pass": "outputs", "batch": 16 if cap_s else 64} | (
        {"cap_s": cap_s} if cap_s else {}
    )
    host = host or local.host()
    launch = launch or host.launch
    settings = {"launch": dict(launch)} if launch else {}
    lines = _run(
        folder / "job", {"s0": model}, inputs, [entry], settings, threads, host, lambda *_: None, {"s0": model.name}
    )
    names = lines["s0-outputs"]["outputs"]
    found = {
        name: np.load(folder / "job" / "out" / "s0-outputs" / f"{i}.npy", allow_pickle=False)
        for i, name in enumerate(names)
    }
    wanted = length(inputs)
    if any(not (1 if cap_s else wanted) <= len(array) <= wanted for array in found.values()):
        counts = ", ".join(str(len(array)) for array in found.values())
        raise EnvironmentUnfit(Problem(host.name, f"answered {counts} samples of {wanted}"))
    return found


def tried(models: Mapping[str, Path], inputs: Inputs, *, folder: Path, seconds: float = TRIED) -> None:
    """Runs files of anybody's making once, in processes of their own, before anything is done with them in this one: a
    file can crash its runtime, or never come to an end. Raises RunFailed with what each did wrong."""
    few = {name: np.asarray(array)[:1] for name, array in named(inputs).items()}
    subjects = {f"s{i}": name for i, name in enumerate(models)}
    schedule = [_entry(s, "memory", 0, runs=1) for s in subjects]
    _run(
        folder,
        {s: Path(models[n]) for s, n in subjects.items()},
        few,
        schedule,
        {},
        1,
        local.host(),
        lambda *_: None,
        subjects,
        seconds,
    )


def profile(
    models: Mapping[str, Path],
    inputs: Inputs,
    *,
    preset: Preset = "quick",
    threads: int = 1,
    folder: Path,
    progress: Progress = lambda done, total, text="": None,
    target: str | None = None,
    host: Host | None = None,
) -> dict[str, tuple[Measurement, ...]]:
    """{id: measurements}: latency, load, first inference and memory of every file, all in one interleaved job at batch
    1.

    Latencies are medians over processes of each process's own p50 or p90; `n` counts processes. What looks like noise
    is said in `note`. Where the A/A control excludes 1, the intervals are wider by what it is off by, and nothing is
    paired: whoever compares such times sees as much."""
    host = _timing(host)
    lines, subjects = _timed(models, inputs, preset, threads, folder, progress, host)
    machine = environment.environment_id(host.facts)
    bare = [line["peak_rss_bytes"] for line in _lines(lines, "s0", "bare")]
    control = _ratio(lines, CONTROL, "s0")
    off = 1.0 if agrees(control) else max(control[0], 1 / control[0])
    session = hashlib.sha256(
        repr([line["p50_ms"] for s in ("s0", CONTROL) for line in _lines(lines, s, "time")]).encode()
    ).hexdigest()[:16]
    found = {}
    for name, subject in subjects.items():
        if subject == CONTROL:
            continue
        processes = _lines(lines, subject, "time")
        peaks = [line["peak_rss_bytes"] for line in _lines(lines, subject, "memory")]
        times = probes.Times(processes, peaks, bare, off, session, _noise(processes, control, threads))
        figures = probes.measure(probes.Subject(times=times))
        found[name] = tuple(replace(m, target=target, threads=threads, environment=machine) for m in figures)
    return found


def compare(
    a: Path,
    b: Path,
    inputs: Inputs,
    *,
    preset: Preset = "standard",
    threads: int = 1,
    folder: Path,
    progress: Progress = lambda done, total, text="": None,
    target: str | None = None,
    host: Host | None = None,
) -> Comparison:
    """Times two files against each other: processes in the order a b a' | a' b a ..., ratio of the p50 of
    neighbours."""
    models, host = {"a": a, "b": b}, _timing(host)
    measured = profile(
        models, inputs, preset=preset, threads=threads, folder=folder, progress=progress, target=target, host=host
    )
    lines, subjects = _timed(models, inputs, preset, threads, folder, progress, host)
    control = _ratio(lines, CONTROL, "s0")
    processes = {name: _lines(lines, subject, "time") for name, subject in subjects.items()}
    noise = [f"{name} {found}" for name, times in processes.items() if (found := _noise(times, control, threads))]
    return Comparison(
        _ratio(lines, subjects["b"], subjects["a"]),
        control,
        measured["a"],
        measured["b"],
        len(processes["a"]),
        "; ".join(noise),
    )


def raw(folder: Path, name: str) -> dict[str, Any]:
    """What the processes of one file of a finished `profile` in `folder` recorded: {"time": [line], "memory": [line],
    "operators": line or None, "out": folder of its arrays and traces}."""
    subject = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))[name]
    out = folder / "job" / "out"
    lines = worker.finished_lines(out / "results.jsonl")
    one = _lines(lines, subject, "operators")
    return {
        "time": _lines(lines, subject, "time"),
        "memory": _lines(lines, subject, "memory"),
        "operators": one[0] if one else None,
        "out": out,
    }


# ---------------------------------------------------------------- statistics


def agrees(ratio: Interval) -> bool:
    """Whether two times may be the same: the interval of their ratio holds 1, as that of an A/A control has to."""
    return ratio[1] <= 1 <= ratio[2]


def _ratio(lines: Mapping[str, Any], a: str, b: str) -> Interval:
    return intervals.ratio(*([line["p50_ms"] for line in _lines(lines, s, "time")] for s in (a, b)))


def _noise(processes: Sequence[Mapping[str, Any]], control: Interval, threads: int) -> str:
    """Why these times are not to be trusted to the per cent; empty where nothing speaks against them."""
    p50, reasons = [p["p50_ms"] for p in processes], []
    middle, low, high = intervals.median(p50)
    if abs(control[0] - 1) > 0.02 and not agrees(control):
        reasons.append(f"the same file took {100 * (control[0] - 1):+.1f} % in the A/A control")
    if (high - low) / 2 > 0.05 * middle:
        reasons.append(f"p50 varies by {50 * (high - low) / middle:.0f} % between processes")
    shares = [p["cpu_share"] for p in processes if p["cpu_share"] is not None]
    if threads == 1 and shares and statistics.median(shares) < 0.95:
        reasons.append(f"the process had {100 * statistics.median(shares):.0f} % of a core")
    clocks = [p["after"]["mhz"][1] for p in processes if p["after"]["mhz"]]
    if clocks and min(clocks) < 0.95 * max(clocks):
        reasons.append(f"clocks between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    unsettled = sum(not p["warmup"]["stable"] for p in processes)
    if unsettled > len(processes) / 2:
        reasons.append(f"the warm-up did not settle in {unsettled} of {len(processes)} processes")
    reasons += _held_back([p["after"] for p in processes], processes[0].get("before", {}))
    return f"noisy: {', '.join(reasons)}" if reasons else ""


def _held_back(conditions: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> list[str]:
    """What keeps a board from its clock. Bits 0 to 3 of `throttled` are now, 16 to 19 since the start
    (runtimes/facts.py): what came up meanwhile counts, what was there before does not."""
    found = []
    if any(c.get("governor") == "powersave" for c in conditions):
        found.append("governor powersave")
    flags = [c["throttled"] for c in conditions if c.get("throttled") is not None]
    seen = 0
    for flag in flags:
        seen |= (flag & 0xF) | ((flag >> 16) & ~((first.get("throttled") or 0) >> 16) & 0xF)
    names = ("under-voltage", "clock capped", "throttled", "at the soft limit of temperature")
    return found + [name for bit, name in enumerate(names) if seen >> bit & 1]


# ---------------------------------------------------------------- jobs


def _timed(
    models: Mapping[str, Path],
    inputs: Inputs,
    preset: Preset,
    threads: int,
    folder: Path,
    progress: Progress,
    host: Host,
) -> tuple[dict[str, Any], dict[str, str]]:
    """(lines of all processes, {id: subject}); rounds are added while an effort allows them and a p50 is not known to 1
    %."""
    effort, names = EFFORTS[preset], list(models)
    subjects = {name: f"s{i}" for i, name in enumerate(names)}
    files = {**{subjects[name]: Path(models[name]) for name in names}, CONTROL: Path(models[names[0]])}
    few = {name: _some(array) for name, array in named(inputs).items()}
    readable = {subject: name for name, subject in subjects.items()} | {CONTROL: names[0]}
    settings = {
        "preset": preset,
        **{k: getattr(effort, k) for k in ("warmup_runs", "warmup_s", "warmup_cap_s", "runs", "steady_s", "cap_s")},
    }
    rounds = effort.processes
    while True:
        schedule = _schedule(list(files), rounds, effort)

        def told(done: int, total: int, schedule: list = schedule) -> None:
            progress(done, total, readable[schedule[done - 1]["subject"]])

        lines = _run(folder / "job", files, few, schedule, settings, threads, host, told, readable)
        if rounds >= effort.most or all(_settled(_lines(lines, subject, "time")) for subject in subjects.values()):
            break
        rounds = min(rounds + 2, effort.most)
    worker.write(folder / "subjects.json", json.dumps(subjects, indent=1).encode())
    return lines, subjects


def _timing(host: Host | None) -> Host:
    """The host, if times that are taken on it mean anything."""
    host = host or local.host()
    if host.launch:
        raise EnvironmentUnfit(
            Problem(
                host.name, "is an emulator, whose times are no device's", "`score` asks a file there for its outputs"
            )
        )
    return host


def _settled(processes: Sequence[Mapping[str, Any]]) -> bool:
    value, low, high = intervals.median([p["p50_ms"] for p in processes])
    return (high - low) / 2 <= 0.01 * value


def _schedule(subjects: Sequence[str], rounds: int, effort: Effort) -> list[dict[str, Any]]:
    """Every entry is a fresh process. Rounds go forth and back (A B B A), so that a drift hits all alike."""
    steady = {k: getattr(effort, k) for k in ("warmup_runs", "warmup_s", "warmup_cap_s", "runs", "steady_s", "cap_s")}
    real = [s for s in subjects if s != CONTROL]
    entries = [_entry(s, "memory", i, runs=5) for i in range(effort.memory) for s in real]
    entries += [_entry(real[0], "bare", i, runs=5) for i in range(effort.memory)]
    entries += [_entry(s, "operators", 0, warmup_runs=3, runs=100, seconds=0.3) for s in real]
    return entries + [
        _entry(s, "time", i, **steady) for i in range(rounds) for s in (subjects if i % 2 == 0 else subjects[::-1])
    ]


def _entry(subject: str, kind: str, number: int, **settings: Any) -> dict[str, Any]:
    return {"id": f"{subject}-{kind}-{number:03d}", "subject": subject, "pass": kind, **settings}


def _run(
    folder: Path, models: Mapping[str, Path], inputs: Inputs, schedule: list[dict], settings: Mapping[str, Any],
    threads: int, host: Host, progress: Callable[[int, int], None], readable: Mapping[str, str],
    seconds: float = LONGEST,
) -> dict[str, Any]:  # fmt: skip
    """{entry: line} of a job that is built or gone on with. Raises RunFailed with what each file did wrong."""
    settings = {**settings, "cores": list(host.cores)} if host.cores else settings
    job = build(folder, models, inputs, schedule, settings, threads, seconds, environment.environment_id(host.facts))
    done = folder / "out" / "done.json"
    wanted = [entry["id"] for entry in schedule]
    lines = worker.finished_lines(folder / "out" / "results.jsonl")
    if not done.is_file() or any(id not in lines for id in wanted):
        host.run(folder, 60 + job["seconds"] * len(schedule), progress)
        lines = worker.finished_lines(folder / "out" / "results.jsonl")
    missing = [entry for entry in schedule if entry["id"] not in lines]
    if missing:
        failed = json.loads(done.read_text(encoding="utf-8"))["failed"]
        reasons = {(readable[e["subject"]], failed.get(e["id"], "was not run")) for e in missing}
        raise RunFailed(*(Problem(name, f"does not run in onnxruntime: {reason}") for name, reason in sorted(reasons)))
    return {id: lines[id] for id in wanted}


def build(
    folder: Path, models: Mapping[str, Path], inputs: Inputs, schedule: list[dict], settings: Mapping[str, Any],
    threads: int, seconds: float = LONGEST, machine: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes a job folder (`job.json` last) and returns the job. `machine`: the environment's id (default: this one's).
    The same job on the same kind of machine keeps what was measured already; a folder with another job is made anew.
    Raises RunFailed where an input is no plain array."""
    arrays = {name: np.asarray(array) for name, array in named(inputs).items()}
    if any(array.dtype.hasobject or array.ndim == 0 for array in arrays.values()):
        raise RunFailed(Problem("inputs", "are not plain arrays with a row per sample"))
    # the control shares its file
    same = {path: next(s for s, other in models.items() if other == path) for path in models.values()}
    files = {f"models/{subject}.onnx": path for path, subject in same.items()}
    carried = Path(worker.__file__).parent
    sources = {
        "worker.py": carried / "worker.py",
        "facts.py": carried / "facts.py",
        f"runtimes/{RUNTIME}": carried / RUNTIME,
    }
    places = {name: f"inputs/{i}.npy" for i, name in enumerate(arrays)}
    job: dict[str, Any] = {
        "schema": "edgekd.job/1",
        "runtime": f"runtimes/{RUNTIME}",
        "threads": threads,
        "seconds": seconds,
        "environment": machine or environment.environment_id(environment.describe()),
        "settings": dict(settings),
        "files": {k: _sha256(p) for k, p in {**files, **sources}.items()}
        | {file: _digest(arrays[name]) for name, file in places.items()},
        "subjects": {
            subject: {"model": f"models/{same[path]}.onnx", "inputs": places} for subject, path in models.items()
        },
        "schedule": schedule,
    }
    # a folder that is being cleared up, cut off in the middle
    whole = all((folder / name).is_file() for name in job["files"])
    if whole and _without_schedule(_stored(folder / "job.json")) == _without_schedule(job):
        worker.write(folder / "job.json", json.dumps(job, indent=1).encode())
        return job
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("models", "inputs", "runtimes"):
        (folder / part).mkdir(parents=True)
    for name, path in {**files, **sources}.items():
        shutil.copyfile(path, folder / name)
    for name, file in places.items():
        np.save(folder / file, arrays[name], allow_pickle=False)
    worker.write(folder / "job.json", json.dumps(job, indent=1).encode())
    return job


def _stored(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _without_schedule(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name != "schedule"}


def _lines(lines: Mapping[str, Any], subject: str, kind: str) -> list[dict[str, Any]]:
    return [line for _, line in sorted(lines.items()) if line["subject"] == subject and line["pass"] == kind]


def _some(array: np.ndarray) -> np.ndarray:
    """Up to ROWS samples, spread over all."""
    return np.asarray(array)[np.linspace(0, len(array) - 1, min(ROWS, len(array))).astype(int)]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).data).hexdigest()
