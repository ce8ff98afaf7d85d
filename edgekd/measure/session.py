"""A timing session: where it runs, how much is measured, and in which order. Every entry is a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgekd.progress import Silent
from edgekd.records import Host, Target

Progress = Callable[[int, int, str], None]
Preset = Literal["probe", "quick", "standard", "certify"]
CONTROL = "control"  # the first file a second time: what a session tells of a file against itself
TOLD = 10.0  # s: a session that takes longer says so before
START = 0.2  # s in which a process begins
STEADY = ("warmup_runs", "warmup_s", "warmup_cap_s", "runs", "steady_s", "cap_s")


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

    @property
    def steady(self) -> dict[str, Any]:
        """The settings of a process that takes times."""
        return {name: value for name, value in asdict(self).items() if name in STEADY}


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
class Ran:
    """What a file took when it was run once: `open_s` until it was loaded, `run_s` for an inference."""

    open_s: float
    run_s: float


@dataclass(frozen=True)
class Session:
    """How and where files are timed. `folder`: of its job, where it resumes; `target`: figures are of its runtime and
    have its name (None: of onnxruntime); `host` None: this machine; `progress(done, total, file)` is called after
    every process."""

    folder: Path
    preset: Preset = "quick"
    threads: int = 1
    target: Target | None = None
    host: Host | None = None
    progress: Progress = lambda done, total, text="": None


def schedule(subjects: Sequence[str], rounds: int, effort: Effort) -> list[dict[str, Any]]:
    """The entries of a session. Rounds go forth and back (A B B A), so that a drift hits all alike."""
    real = [s for s in subjects if s != CONTROL]
    entries = [entry(s, "memory", i, runs=5) for i in range(effort.memory) for s in real]
    entries += [entry(real[0], "bare", i, runs=5) for i in range(effort.memory)]
    entries += [entry(s, "operators", 0, warmup_runs=3, runs=100, seconds=0.3) for s in real]
    return entries + [
        entry(s, "time", i, **effort.steady)
        for i in range(rounds)
        for s in (subjects if i % 2 == 0 else subjects[::-1])
    ]


def entry(subject: str, kind: str, number: int, **settings: Any) -> dict[str, Any]:
    return {"id": f"{subject}-{kind}-{number:03d}", "subject": subject, "pass": kind, **settings}


def announce(progress: Silent, files: Sequence[Ran], preset: Preset) -> None:
    """Says how long a session of these files will take, where that is long."""
    effort = EFFORTS[preset]
    ran = {f"s{i}": one for i, one in enumerate(files)}
    if not ran:
        return
    ran[CONTROL] = ran["s0"]
    least, most = (
        sum(seconds(e, ran[e["subject"]]) for e in schedule(list(ran), n, effort))
        for n in (effort.processes, effort.most)
    )
    if most > TOLD:
        other = f" to {most:.0f}" if round(most) > round(least) else ""
        times = f"{ran['s0'].run_s * 1e3:.3g} ms an inference, {effort.processes} processes or more"
        less = "" if preset == "quick" else "; --preset quick takes less"
        progress.say(f"timing will take about {least:.0f}{other} s ({times}){less}")


def seconds(entry: Mapping[str, Any], ran: Ran) -> float:
    """What a process of a session takes, about."""
    kind, run_s = entry["pass"], ran.run_s
    if kind == "bare":
        return START
    if kind == "memory":
        return START + ran.open_s + entry["runs"] * run_s
    if kind == "operators":
        runs = min(entry["runs"], entry["seconds"] / max(run_s, 1e-9))
        return START + ran.open_s + (entry["warmup_runs"] + max(1, runs)) * run_s
    # two medians of ten inferences agree at the earliest
    warm = max(min(max(entry["warmup_s"], 20 * run_s), entry["warmup_cap_s"]), 10 * run_s)
    steady = max(min(max(entry["steady_s"], entry["runs"] * run_s), entry["cap_s"]), run_s)
    return START + ran.open_s + run_s + warm + steady
