"""Measuring exported files: jobs are built, run on a host, and read; the statistics are made here, never on the device.

`score` asks a file for its outputs, `profile` times several files against each other, `compare` gives the ratio of two.
All three are jobs: fresh processes in an interleaved schedule, with one subject entered twice as A/A control. What is
finished stays in the folder: the same call resumes there, and reads what is complete without measuring again. A
file that its runtime refuses ends in RunFailed.

A figure is labelled with a target where its runtime made it: a `Session` has the target and so its runtime.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekd import environment, intervals, probes
from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.hosts import local
from edgekd.measure import folders
from edgekd.measure.folders import Inputs, Job, lines
from edgekd.measure.noise import Interval, agrees, noise, settled
from edgekd.measure.session import CONTROL, EFFORTS, Ran, Session, entry, schedule
from edgekd.records import Host, Measurement, Runtime
from edgekd.runtimes import worker
from edgekd.samples.rows import Samples, of

ROWS = 64  # samples that a timing goes through
TRIED = 120  # s that one inference of a file that nobody knows may take
ONNXRUNTIME = Runtime().name  # opens files from elsewhere


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
    runtime: str = ONNXRUNTIME,
    threads: int = 1,
    folder: Path,
    host: Host | None = None,
    launch: Mapping[str, Any] | None = None,
    cap_s: float = 0,
) -> dict[str, np.ndarray]:
    """{output: [n, ...]}: what a file answers to all samples in a `runtime`. `inputs`: array [n, ...], or {input:
    array}. `launch`: under an emulator (see hosts.emulator; default: the host's); `cap_s`: the first samples only, as
    many as take so many seconds."""
    asked = {"batch": 16, "cap_s": cap_s} if cap_s else {"batch": 64}
    host = host or local.host()
    launch = launch or host.launch
    settings = {"launch": dict(launch)} if launch else {}
    one = {"id": "s0-outputs", "subject": "s0", "pass": "outputs", **asked}
    job = Job({"s0": model}, inputs, [one], runtime, settings, threads)
    names = folders.run(folder / "job", job, host, {"s0": model.name})["s0-outputs"]["outputs"]
    out = folder / "job" / "out" / "s0-outputs"
    found = {name: np.load(out / f"{i}.npy", allow_pickle=False) for i, name in enumerate(names)}
    samples = of(inputs)
    wanted = len(samples)
    if not samples.alone and any(not (1 if cap_s else wanted) <= len(array) <= wanted for array in found.values()):
        counts = ", ".join(str(len(array)) for array in found.values())
        raise EnvironmentUnfit(Problem(host.name, f"answered {counts} samples of {wanted}"))
    return found


def tried(
    models: Mapping[str, Path], inputs: Inputs, *, runtime: str = ONNXRUNTIME, folder: Path, seconds: float = TRIED
) -> list[Ran]:
    """What files of anybody's making take, run once in processes of their own before anything is done with them in this
    one: a file can crash its runtime, or never come to an end. Raises RunFailed with what each did wrong."""
    few = of(inputs).take(slice(1))
    subjects = {f"s{i}": name for i, name in enumerate(models)}
    files = {s: Path(models[name]) for s, name in subjects.items()}
    once = [entry(s, "memory", 0, runs=1) for s in subjects]
    found = folders.run(folder, Job(files, few, once, runtime, seconds=seconds), local.host(), subjects)
    return [Ran((line["import_ms"] + line["load_ms"]) / 1e3, line["run_ms"] / 1e3) for line in found.values()]


def signature(
    model: Path, *, runtime: str, folder: Path, host: Host | None = None
) -> dict[str, tuple[str | None, tuple[int | None, ...]]]:
    """{input: (type, shape)} of a file, as its runtime tells them; None for what is open."""
    job = Job({"s0": model}, {}, [entry("s0", "signature", 0)], runtime, seconds=TRIED)
    (line,) = folders.run(folder, job, host or local.host(), {"s0": model.name}).values()
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in line["signature"].items()}


def profile(models: Mapping[str, Path], inputs: Inputs, session: Session) -> dict[str, tuple[Measurement, ...]]:
    """{id: measurements}: latency, load, first inference and memory of every file in the target's runtime, all in one
    interleaved job at batch 1.

    Latencies are medians over processes of each process's own p50 or p90; `n` counts processes. What looks like noise
    is said in `note`. Where the A/A control excludes 1, the intervals are wider by what it is off by, and nothing is
    paired: whoever compares such times sees as much."""
    return _measurements(_timed(models, inputs, session))


def compare(a: Path, b: Path, inputs: Inputs, session: Session) -> Comparison:
    """Times two files against each other in the target's runtime: processes in the order a b a' | a' b a ..., ratio of
    the p50 of neighbours."""
    timed = _timed({"a": a, "b": b}, inputs, session)
    measured = _measurements(timed)
    noisy = [f"{name} {text}" for name in timed.subjects if (text := timed.noise(name))]
    ratio = timed.ratio(timed.subjects["b"], timed.subjects["a"])
    return Comparison(ratio, timed.control, measured["a"], measured["b"], len(timed.times("a")), "; ".join(noisy))


def raw(folder: Path, name: str) -> dict[str, Any]:
    """What the processes of one file of a finished `profile` in `folder` recorded: {"time": [line], "memory": [line],
    "operators": line or None, "out": folder of its arrays and traces}."""
    subject = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))[name]
    found = folders.finished(folder / "job")
    one = lines(found, subject, "operators")
    return {
        "time": lines(found, subject, "time"),
        "memory": lines(found, subject, "memory"),
        "operators": one[0] if one else None,
        "out": folder / "job" / "out",
    }


def ran(folder: Path, runtime: str) -> str:
    """Of a finished `score` in `folder`: see `made_by`."""
    return made_by(runtime, folders.finished(folder / "job").values())


def made_by(runtime: str, found: Iterable[Mapping[str, Any]] = ()) -> str:
    """What the note of a figure says of the runtime that made it, with the version that it said it has; "" for
    onnxruntime, whose version is among the machine's facts."""
    if runtime == ONNXRUNTIME:
        return ""
    versions = dict.fromkeys(str(line.get("runtime", {}).get("version", ""))[:40] for line in found)
    return f"in {runtime} {' and '.join(filter(None, versions))}".rstrip()


@dataclass(frozen=True)
class _Timed:
    """A finished session: `found` {entry: line of its process}, `subjects` {file: subject}, `host` where it ran."""

    session: Session
    host: Host
    found: Mapping[str, Any]
    subjects: Mapping[str, str]

    def times(self, name: str) -> list[dict[str, Any]]:
        """The lines of the processes that timed a file."""
        return lines(self.found, self.subjects[name], "time")

    def ratio(self, a: str, b: str) -> Interval:
        return intervals.ratio(*([line["p50_ms"] for line in lines(self.found, s, "time")] for s in (a, b)))

    @property
    def control(self) -> Interval:
        """The first file against itself."""
        return self.ratio(CONTROL, "s0")

    def noise(self, name: str) -> str:
        return noise(self.times(name), self.control, self.session.threads)

    @property
    def digest(self) -> str:
        """Of the session's times: those of one session are paired."""
        first = [line["p50_ms"] for s in ("s0", CONTROL) for line in lines(self.found, s, "time")]
        return hashlib.sha256(repr(first).encode()).hexdigest()[:16]


def _measurements(timed: _Timed) -> dict[str, tuple[Measurement, ...]]:
    """{file: its measurements}"""
    target, threads = timed.session.target, timed.session.threads
    bare, control = [line["peak_rss_bytes"] for line in lines(timed.found, "s0", "bare")], timed.control
    off = 1.0 if agrees(control) else max(control[0], 1 / control[0])
    machine, name = environment.environment_id(timed.host.facts), target.name if target else None
    told = made_by(_runtime(timed.session), timed.found.values())
    measured = {}
    for id, subject in timed.subjects.items():
        peaks = [line["peak_rss_bytes"] for line in lines(timed.found, subject, "memory")]
        times = probes.Times(timed.times(id), peaks, bare, off, timed.digest, timed.noise(id))
        measured[id] = tuple(
            replace(m, target=name, threads=threads, environment=machine, note="; ".join(filter(None, (m.note, told))))
            for m in probes.measure(probes.Subject(times=times))
        )
    return measured


def _timed(models: Mapping[str, Path], inputs: Inputs, session: Session) -> _Timed:
    """Runs a session; rounds are added while an effort allows them and a p50 is not known to 1 %."""
    effort, subjects = EFFORTS[session.preset], {name: f"s{i}" for i, name in enumerate(models)}
    files = {subjects[name]: Path(path) for name, path in models.items()}
    names = {subject: name for name, subject in subjects.items()} | {CONTROL: next(iter(models))}
    few, host = some(of(inputs)), _timing(session.host)
    settings = {"preset": session.preset, **effort.steady}
    job = Job(files | {CONTROL: files["s0"]}, few, (), _runtime(session), settings, session.threads)
    rounds = effort.processes
    while True:
        entries = schedule(list(job.models), rounds, effort)

        def told(done: int, total: int, entries: Sequence[Mapping[str, Any]] = entries) -> None:
            session.progress(done, total, names[entries[done - 1]["subject"]])

        found = folders.run(session.folder / "job", replace(job, schedule=entries), host, names, told)
        if rounds >= effort.most or all(settled(lines(found, subject, "time")) for subject in subjects.values()):
            break
        rounds = min(rounds + 2, effort.most)
    worker.write(session.folder / "subjects.json", json.dumps(subjects, indent=1).encode())
    return _Timed(session, host, found, subjects)


def _runtime(session: Session) -> str:
    return session.target.runtime.name if session.target else ONNXRUNTIME


def _timing(host: Host | None) -> Host:
    """The host, if times that are taken on it mean anything."""
    host = host or local.host()
    if host.launch:
        hint = "`score` asks a file there for its outputs"
        raise EnvironmentUnfit(Problem(host.name, "is an emulator, whose times are no device's", hint))
    return host


def some(samples: Samples) -> Samples:
    """Up to ROWS samples, spread over all; of steps whose states the file makes the first ones."""
    if set(samples.states) - set(samples.arrays):
        return samples.take(slice(ROWS))
    return samples.take(np.linspace(0, len(samples) - 1, min(ROWS, len(samples))).astype(int))
