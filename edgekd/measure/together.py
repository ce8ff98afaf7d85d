"""Files of one model timed against the first of them: fresh processes, in each of which all files run in turn. A few
seconds for many files, where `jobs.compare` takes a process per file and pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd import intervals
from edgekd.hosts import local
from edgekd.measure import folders, operators
from edgekd.measure.folders import Inputs, Job
from edgekd.measure.jobs import ONNXRUNTIME, some
from edgekd.measure.noise import Interval, agrees, starved
from edgekd.measure.session import CONTROL, entry
from edgekd.records import Host
from edgekd.samples.rows import of

PROCESSES, MOST = 6, 18  # fresh processes; more while it is open whether a ratio is above 1
NARROW = 0.01  # half an interval that more processes would not make much narrower
BLOCK = {"rounds": 12, "block_s": 0.01, "cap_s": 4.0}


@dataclass(frozen=True)
class Bench:
    """Where files are timed: on a `host`, by the samples `inputs`, with so many `threads`, in a `folder`."""

    inputs: Inputs
    threads: int
    folder: Path
    host: Host | None = None
    runtime: str = ONNXRUNTIME
    noise: list[str] = field(default_factory=list)  # what spoke against the times of the last session

    def ratios(
        self,
        files: Sequence[Path],
        session: str,
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    ) -> list[Interval]:
        """[time over that of the first file, with its 95 % interval] of each file but the first, by the p50 of pairs in
        one process. The first is in every process twice; where this control excludes 1, the intervals are wider by
        what it is off by. Where files had to wait for a core, which hits the longest most, the p50 is that of CPU time.
        `session`: a name; what it measured is not measured again."""
        subjects = [f"s{i}" for i in range(len(files))]
        models = {CONTROL: files[0]} | dict(zip(subjects, files, strict=True))
        order, count = [subjects[0], *subjects[1:], CONTROL], PROCESSES
        while True:
            schedule = [
                entry("s0", "together", i, subjects=order if i % 2 == 0 else order[::-1], **BLOCK) for i in range(count)
            ]
            found = self._run(session, models, schedule, lambda done, of: progress(done, of, "int8 against float"))
            waited = [w for s in order if (w := starved([n["cpu_share"][s] for n in found.values()], self.threads))]
            self.noise[:] = [f"noisy: {waited[0][0]}, so that these are CPU times"] if waited else []
            taken = "cpu_p50_ms" if waited else "p50_ms"
            p50 = {s: [line[taken][s] for line in found.values()] for s in order}
            control = intervals.ratio(p50[CONTROL], p50["s0"])
            ratios = [wider(intervals.ratio(p50[s], p50["s0"]), control) for s in subjects[1:]]
            if count >= MOST or not any(_open(r) for r in ratios):
                return ratios
            count += PROCESSES

    def operators(self, files: Sequence[Path]) -> list[list[tuple[str, float]]]:
        """For each file: [(operator, its milliseconds)] in the order in which they ran, [] where the runtime has no
        clock for them."""
        subjects = {f"s{i}": file for i, file in enumerate(files)}
        schedule = [entry(s, "operators", 0, warmup_runs=10, runs=300, seconds=1.0) for s in subjects]
        found = self._run("operators", subjects, schedule)
        out = self.folder / "operators" / "out"
        return [
            operators.medians(out / line["trace"], warmup=line["warmup"]) if line["trace"] else []
            for line in found.values()
        ]

    def _run(
        self,
        name: str,
        models: Mapping[str, Path],
        schedule: Sequence[Mapping[str, Any]],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        job = Job(models, some(of(self.inputs)), schedule, self.runtime, {}, self.threads)
        names = {s: path.name for s, path in models.items()}
        return folders.run(self.folder / name, job, self.host or local.host(), names, progress)


def wider(ratio: Interval, control: Interval) -> Interval:
    """An interval of a session whose `control`, a file over itself, should hold 1."""
    off = 1.0 if agrees(control) else max(control[0], 1 / control[0])
    return ratio[0], ratio[1] / off, ratio[2] * off


def _open(ratio: Interval) -> bool:
    return agrees(ratio) and ratio[2] - ratio[1] > 2 * NARROW
