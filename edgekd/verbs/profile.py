"""The verbs `profile` and `compare`: exported files of anybody's making, measured on this machine or on a board."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment
from edgekd import targets as devices
from edgekd.errors import INCONCLUSIVE, PASSED, Problem, UsageError, plain
from edgekd.files import sha256, write_json
from edgekd.measure import jobs, operators, samples
from edgekd.measure import trace as tracing
from edgekd.measure.machine import host_of, named, noted, stands_for, user_error
from edgekd.metrics import mean_error, top1
from edgekd.predicting import of_file
from edgekd.probes import Subject, measure, static
from edgekd.progress import reporter
from edgekd.records import Host, Measurement, Target
from edgekd.report.figures import table
from edgekd.run import cross_cpu
from edgekd.verbs._emulated import Emulated, emulate, untimed

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Profile:
    """What `profile` found out about one file. Prints as a table."""

    model: str
    sha256: str
    measurements: tuple[Measurement, ...]
    operators: operators.Operators | None
    environment: Mapping[str, Any]
    note: str = ""
    exit_code: int = PASSED

    def __str__(self) -> str:
        self = plain(self)
        parts = [f"{self.model} ({self.environment['cpu']}, {_threads(self.measurements)})", table(self.measurements)]
        if self.operators:
            parts.append(_slowest(self.operators))
        return "\n\n".join([*parts, *([self.note] if self.note else [])])


@dataclass(frozen=True)
class Compared:
    """What `compare` found out. Prints as the ratio, what it means, and both files' figures."""

    a: str
    b: str
    comparison: jobs.Comparison
    environment: Mapping[str, Any]
    exit_code: int = PASSED

    def __str__(self) -> str:
        self = plain(self)
        c, (ratio, low, high), verdict = self.comparison, self.comparison.ratio, self.comparison.verdict
        says = f"B is {verdict}" if verdict in ("slower", "faster") else verdict
        lines = [
            f"B / A   {ratio:.3f}  [{low:.3f}, {high:.3f}]   {says} (p50, {c.processes} pairs of processes, 95 %)",
            f"A / A   {c.control[0]:.3f}  [{c.control[1]:.3f}, {c.control[2]:.3f}]   control: A against itself in the "
            "same session",
        ]
        if verdict == "inconclusive":
            lines.append(
                "inconclusive: by its control this session finds a file slower or faster than itself; its ratios say "
                "nothing of the files"
            )
            lines.append("hint: stop what else runs on the machine and compare again, or take --preset certify")
        if c.note:
            lines.append(c.note)
        return "\n".join([*lines, "", f"A: {self.a}", table(c.a), "", f"B: {self.b}", table(c.b)])


def profile(
    model: Path | str,
    *,
    target: str = "host",
    data: Path | str | None = None,
    preset: jobs.Preset = "standard",
    json: Path | str | None = None,
    trace: Path | str | None = None,
    on: str | None = None,
    quiet: bool = True,
) -> Profile | Emulated:
    """Measures an exported file. `data`: an .npz with `inputs` (or an array per input name) and optionally `labels`;
    else seeded random inputs. `on`: the address of a board (hosts/address.py); default: this machine. Where this
    machine can't stand for the target and emulation can, what it answers there is taken instead, and no times.

    Raises UsageError for a file, data, target or address that is wrong, EnvironmentUnfit where the machine lacks what
    the target has."""
    wanted, path = named(target), Path(model)
    if on is None and wanted and _elsewhere(wanted):
        problems = cross_cpu.launches([wanted])[1]
        if trace is not None:
            raise UsageError(
                Problem("--trace", f"is a record of times, and {wanted.name} is not timed here", "leave it out")
            )
        if not problems:
            return emulate(model, targets=[target], data=data, json=json, quiet=quiet)
        return untimed(model, wanted, problems, asked=data is not None, json=json)
    parsed = static.read(path)
    inputs, labels = (samples.random(parsed), None) if data is None else samples.read_arrays(Path(data))
    progress = reporter(quiet)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, host_of(on, progress) as host:
            place = Path(folder)
            device, host = stands_for(host, wanted)
            counted = [dataclasses.replace(m, target=device.name) for m in measure(Subject(file=path))]
            _ends({path.name: path}, inputs, on, place)
            # wrong labels are told before the long part
            scored = [] if labels is None else _quality(path, inputs, labels, device, host, place)
            settings = {
                "preset": preset,
                "threads": device.threads,
                "folder": place,
                "target": device.name,
                "host": host,
            }
            with progress.task("time the file") as advance, user_error():
                timed = jobs.profile({path.name: path}, inputs, progress=advance, **settings)
            recorded = jobs.raw(place, path.name)
            kept = place / "job" / "out" / recorded["operators"]["trace"]
            p50 = next(m.value for m in timed[path.name] if m.name == "latency_p50_ms")
            by_operator = operators.measure(kept, warmup=recorded["operators"]["warmup"], p50_ms=p50)
            if trace is not None:
                write_json(trace, tracing.chrome(path.name, operators.events(kept), recorded["time"]))
    finally:
        progress.close()
    note = (
        ""
        if data is not None
        else f"inputs: {samples.COUNT} random samples (seed 0); --data FILE.npz measures with your own"
    )
    figures = noted((*scored, *timed[path.name]), wanted, host.facts)
    found = Profile(path.name, sha256(path), (*figures, *counted), by_operator, host.facts, note)
    if json is not None:
        write_json(
            json,
            {"schema": "edgekd.profile/1", **{k: v for k, v in dataclasses.asdict(found).items() if k != "exit_code"}},
        )
    return found


def _ends(files: Mapping[str, Path], inputs: Mapping[str, np.ndarray], on: str | None, place: Path) -> None:
    """Raises UsageError for a file that comes to no end, or breaks its runtime, at its first inference here: before it
    is run hundreds of times."""
    if on is None:
        with user_error():
            jobs.tried(files, inputs, folder=place / "tried")


def _elsewhere(target: Target) -> bool:
    """Whether a target is another machine than this one as far as answers go, and something can be told of it
    without."""
    facts = environment.describe()
    lacking, more = devices.lacking(target, facts), devices.surplus(target, facts)
    return bool(target.emulated_as and (lacking or more) or lacking and of_file.known_as(target)[0])


def compare(
    a: Path | str,
    b: Path | str,
    *,
    target: str = "host",
    data: Path | str | None = None,
    preset: jobs.Preset = "standard",
    json: Path | str | None = None,
    on: str | None = None,
    quiet: bool = True,
) -> Compared:
    """Times two files against each other, interleaved; both take the same inputs. `on`, and what is raised: as in
    `profile`. Where the A/A control excludes 1, the exit code is 3: inconclusive."""
    wanted, paths = named(target), [Path(a), Path(b)]
    first = _read_all(paths)[0]
    inputs = samples.random(first) if data is None else samples.read_arrays(Path(data))[0]
    progress = reporter(quiet)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, host_of(on, progress) as host:
            device, host = stands_for(host, wanted)
            _ends({str(p): p for p in paths}, inputs, on, Path(folder))
            settings = {
                "preset": preset,
                "threads": device.threads,
                "folder": Path(folder),
                "target": device.name,
                "host": host,
            }
            with progress.task("time both files") as advance, user_error():
                compared = jobs.compare(*paths, inputs, progress=advance, **settings)
            code = INCONCLUSIVE if compared.verdict == "inconclusive" else PASSED
            told = {side: tuple(noted(getattr(compared, side), wanted, host.facts)) for side in ("a", "b")}
            found = Compared(*(p.name for p in paths), dataclasses.replace(compared, **told), host.facts, code)
    finally:
        progress.close()
    if json is not None:
        record = {k: v for k, v in dataclasses.asdict(found).items() if k != "exit_code"}
        write_json(json, {"schema": "edgekd.comparison/1", **record, "verdict": compared.verdict})
    return found


def _slowest(found: operators.Operators, count: int = 8) -> str:
    shown = sorted(found.operators, key=lambda o: -o.ms)[:count]
    width = max(len(o.kind) for o in shown)
    lines = [f"{o.kind:<{width}}  {o.ms:9.4f} ms  {100 * o.share:5.1f} %  {o.name}" for o in shown]
    more = f", {len(found.operators) - len(shown)} more" if len(found.operators) > len(shown) else ""
    return "\n".join(
        [f"time per operator (scaled by {found.scale:.2f} to the p50 without the operators' clock{more})", *lines]
    )


def _threads(measurements: Sequence[Measurement]) -> str:
    count = next((m.threads for m in measurements if m.threads), 1)
    return "1 thread" if count == 1 else f"{count} threads"


def _read_all(paths: Sequence[Path]) -> list[onnx.ModelProto]:
    """The files, or the problems of all of them."""
    found, problems = [], []
    for path in paths:
        try:
            found.append(static.read(path))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(*problems)
    return found


def _quality(
    path: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray, device: Target, host: Host, place: Path
) -> list[Measurement]:
    """Accuracy and calibration where labels are class numbers, else the mean error."""
    with user_error():
        answered = jobs.score(path, inputs, threads=device.threads, folder=place / "score", host=host)
    outputs = answered if len(answered) > 1 else next(iter(answered.values()))
    metric = top1() if labels.dtype.kind in "iu" and labels.ndim == 1 else mean_error()
    try:
        figures = measure(Subject(outputs=outputs, labels=labels, metrics=[metric], split="test"))
    except ValueError as error:
        raise UsageError(
            Problem("labels", str(error), "one label per sample: class numbers, or numbers like the outputs")
        ) from None
    own = {
        "target": device.name,
        "threads": device.threads,
        "environment": environment.environment_id(host.facts),
    }
    return [dataclasses.replace(m, **own) for m in figures]
