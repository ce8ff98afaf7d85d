"""How many instructions an inference takes on an arm64 core, by class, and the bytes that it loads and stores: counted
under emulation.

The count hardly depends on anything but the file, its runtime, the core's kernels and the input, so it repeats within
0.1 % on any machine: an axis for gates where no board is. Inputs differ by more than that in small files, so a
comparison pairs the counts of the same inputs. It is no time: what instructions cost differs between cores, and caches
are not in it."""

from __future__ import annotations

import hashlib
import json
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import intervals
from edgekd.errors import Problem, RunFailed
from edgekd.hosts import counter, local
from edgekd.measure import folders
from edgekd.measure.folders import Inputs
from edgekd.measure.jobs import ONNXRUNTIME, made_by
from edgekd.probes import figure
from edgekd.probes.instructions import INSTRUCTIONS
from edgekd.records import Measurement
from edgekd.runtimes import worker
from edgekd.samples.rows import Samples, of

WARMUP, EMPTY = 3, 3  # inferences before the first that counts; regions that hold no inference
INFERENCES = 12  # of which an interval of the median may leave out two on each side
ENTRY = "s0-count"


@dataclass(frozen=True)
class Counts:
    """Of one inference at batch 1, the median of `n`: instructions, of which `classes` {class: instructions}, and bytes
    loaded and stored.

    `spread`: (most - least) / median over the inferences, a share. `of`: each inference's instructions, in their order.
    What marking costs is taken off. Prints as a table."""

    instructions: int
    classes: Mapping[str, int]
    loaded_bytes: int
    stored_bytes: int
    spread: float
    of: tuple[int, ...]
    measurements: tuple[Measurement, ...]

    def __str__(self) -> str:
        rows = [
            (name.replace("_", " "), count, f"{100 * count / self.instructions:5.1f} %")
            for name, count in self.classes.items()
            if count
        ]
        rows += [("instructions", self.instructions, f"+-{50 * self.spread:.2g} % over {len(self.of)} inferences")]
        rows += [("bytes loaded", self.loaded_bytes, ""), ("bytes stored", self.stored_bytes, "")]
        return "\n".join(f"{name:<13} {count:>15,}  {text}".rstrip() for name, count, text in rows)


def count(
    model: Path,
    inputs: Inputs,
    launch: Mapping[str, Any],
    folder: Path,
    *,
    runtime: str = ONNXRUNTIME,
    inferences: int = INFERENCES,
    target: str | None = None,
    timeout: float = 1800,
    run: Any = local.run,
    progress: Callable[[int, int, str], None] = lambda done, total, text="": None,
) -> Counts:
    """Counts `inferences` of a file, in turn over the samples of `inputs` (array [n, ...] or {input: array}), in one
    process with one thread.

    `launch`: how processes are started as on the target (hosts.emulator). `timeout`: seconds for all. The same call in
    the same folder reads what was counted. Raises EnvironmentUnfit where nothing can count, RunFailed where the file
    doesn't run."""
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    out, place = folder / "regions.jsonl", folder / "job"
    few = of(inputs).take(slice(inferences))
    entry = {"id": ENTRY, "subject": "s0", "pass": "count", "warmup_runs": WARMUP, "empty": EMPTY, "runs": inferences}
    settings = {"launch": counter.counting(launch, out)}
    folders.build(place, folders.Job({"s0": Path(model)}, few, [entry], runtime, settings, 1, timeout))
    if not _finished(place) or not out.is_file():
        (place / "out" / "results.jsonl").unlink(missing_ok=True)
        with _told(out, EMPTY + inferences, progress):
            run(place, 60 + timeout * worker.ATTEMPTS)
    if not _finished(place):
        reason = json.loads((place / "out" / "done.json").read_text(encoding="utf-8"))["failed"].get(
            ENTRY, "was not run"
        )
        raise RunFailed(Problem(Path(model).name, f"does not run in {runtime} under emulation: {reason}"))
    found = counts(counter.read(out), empty=EMPTY, inferences=inferences, target=target, inputs=_digest(few))
    told = made_by(runtime, folders.finished(place).values())
    figures = tuple(replace(m, note="; ".join(filter(None, (m.note, told)))) for m in found.measurements)
    return replace(found, measurements=figures)


def counts(
    regions: Sequence[Mapping[str, Any]], *, empty: int, inferences: int, target: str | None = None, inputs: str = ""
) -> Counts:
    """What the counter's regions say: the first `empty` hold no inference, the others one each, of `inputs` (their
    digest). Raises RunFailed where regions are missing, or several threads ran."""
    if [region["region"] for region in regions] != list(range(empty + inferences)):
        raise RunFailed(
            Problem(
                "instructions",
                f"{len(regions)} regions were counted instead of {empty + inferences}",
                "count again in another folder",
            )
        )
    if any(region["others"] for region in regions[empty:]):
        raise RunFailed(Problem("instructions", "several threads were at work, which the counter can't tell apart"))
    bare, of = _median(regions[:empty]), [region["instructions"] for region in regions[empty:]]
    typical = _median(regions[empty:])
    less = tuple(n - bare["instructions"] for n in of)
    value = statistics.median_low(less)
    sizes = {name: typical[name] - bare[name] for name in ("loaded_bytes", "stored_bytes")}
    classes = {name: n - bare["classes"][name] for name, n in typical["classes"].items()}
    note = (
        f"{value / 1e6:.4g} M, {100 * (classes['multiply_add'] + classes['dot_product']) / value:.0f} % multiply "
        "and add; one inference at batch 1"
    )
    if classes["scalable"]:
        note += "; the bytes that SVE moves are not in those loaded and stored"
    low, high = intervals.median(less)[1:] if len(less) >= 6 else (min(less), max(less))
    common = {"threads": 1, "note": note, "each": less, "pairing": inputs}
    made = figure(INSTRUCTIONS, value, low, high, len(less), target=target, **common)
    return Counts(
        value, classes, sizes["loaded_bytes"], sizes["stored_bytes"], (max(less) - min(less)) / value, less, (made,)
    )


def _median(regions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The region whose count is the lower median: its classes add up to its count, which medians of classes would
    not."""
    return sorted(regions, key=lambda region: region["instructions"])[(len(regions) - 1) // 2]


def _digest(samples: Samples) -> str:
    """Of the inputs by their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, given in samples.arrays.items():
        for array in given if given.dtype == object else (given,):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _finished(place: Path) -> bool:
    return ENTRY in worker.finished_lines(place / "out" / "results.jsonl")


@contextmanager
def _told(out: Path, total: int, progress: Callable[[int, int, str], None]) -> Iterator[None]:
    """Tells `progress` of every region while the one process of the job is at work."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if out.is_file():
                progress(min(len(counter.read(out)), total), total, "count")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
