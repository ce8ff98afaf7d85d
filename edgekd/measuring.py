"""The verbs `profile` and `compare`: exported files of anybody's making, measured on this machine or on a board."""

from __future__ import annotations

import contextlib
import dataclasses
import json as jsonlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import counts, environment, measure, proving, samples
from edgekd import targets as devices
from edgekd.errors import PASSED, EnvironmentUnfit, Problem, RunFailed, UsageError
from edgekd.files import sha256, write_atomic
from edgekd.hosts import local, ssh
from edgekd.metrics import mean_error, top1
from edgekd.probes import memory, operators, quality, static
from edgekd.probes import trace as tracing
from edgekd.records import Host, Measurement, Target
from edgekd.report.progress import Silent, reporter

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
        parts = [f"{self.model} ({self.environment['cpu']}, {_threads(self.measurements)})", table(self.measurements)]
        if self.operators:
            parts.append(_slowest(self.operators))
        return "\n\n".join([*parts, *([self.note] if self.note else [])])


@dataclass(frozen=True)
class Emulated:
    """What `profile` found out about one file without the target's machine: what is counted, per target what was emulated, and the spread over
    all. Prints as tables."""

    model: str
    sha256: str
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    note: str = ""
    exit_code: int = PASSED

    def __str__(self) -> str:
        names = list(dict.fromkeys(m.target for m in self.measurements if m.target))
        counted = [m for m in self.measurements if m.origin == "counted"]
        over_all = [m for m in self.measurements if m.target is None and m not in counted]
        parts = [f"{self.model}, emulated on {self.environment['cpu']}: no times", table(counted)]
        parts += [f"{name}\n{table([m for m in self.measurements if m.target == name])}" for name in names]
        parts.append(table(over_all) if over_all else "")
        return "\n\n".join(p for p in (*parts, self.note) if p)


@dataclass(frozen=True)
class Compared:
    """What `compare` found out. Prints as the ratio, what it means, and both files' figures."""

    a: str
    b: str
    comparison: measure.Comparison
    environment: Mapping[str, Any]
    exit_code: int = PASSED

    def __str__(self) -> str:
        c, (ratio, low, high) = self.comparison, self.comparison.ratio
        says = "no difference shown" if low <= 1 <= high else "B is slower" if ratio > 1 else "B is faster"
        lines = [
            f"B / A   {ratio:.3f}  [{low:.3f}, {high:.3f}]   {says} (p50, {c.processes} pairs of processes, 95 %)",
            f"A / A   {c.control[0]:.3f}  [{c.control[1]:.3f}, {c.control[2]:.3f}]   control: A against itself in the same session",
        ]
        if c.note:
            lines.append(c.note)
        return "\n".join([*lines, "", f"A: {self.a}", table(c.a), "", f"B: {self.b}", table(c.b)])


def profile(
    model: Path | str,
    *,
    target: str = "host",
    data: Path | str | None = None,
    preset: measure.Preset = "standard",
    json: Path | str | None = None,
    trace: Path | str | None = None,
    on: str | None = None,
    quiet: bool = True,
) -> Profile | Emulated:
    """Measures an exported file. `data`: an .npz with `inputs` (or an array per input name) and optionally `labels`; else seeded random inputs.
    `on`: the address of a board (hosts/address.py); default: this machine. Where this machine can't stand for the target and emulation can, what it
    answers there is taken instead, and no times.

    Raises UsageError for a file, data, target or address that is wrong, EnvironmentUnfit where the machine lacks what the target has."""
    named, path = _named(target), Path(model)
    if on is None and named and named.emulated_as and devices.matches(named, environment.describe()):
        if trace is not None:
            raise UsageError(Problem("--trace", f"is a record of times, and {named.name} is emulated here", "leave it out"))
        return emulate(model, targets=[target], data=data, json=json, quiet=quiet)
    parsed = static.read(path)
    inputs, labels = (samples.random(parsed), None) if data is None else samples.read_arrays(Path(data))
    progress = reporter(quiet)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, _host(on, progress) as host:
            place = Path(folder)
            device, host = _stands_for(host, named)
            scored = [] if labels is None else _quality(path, inputs, labels, device, host, place)  # wrong labels are told before the long part
            settings = {"preset": preset, "threads": device.threads, "folder": place, "target": device.name, "host": host}
            with progress.task("time the file") as advance, _user_error():
                timed = measure.profile({path.name: path}, inputs, progress=advance, **settings)
            counted = [dataclasses.replace(m, target=device.name) for m in (*static.measure(path), *memory.measure(path))]
            recorded = measure.raw(place, path.name)
            kept = place / "job" / "out" / recorded["operators"]["trace"]
            p50 = next(m.value for m in timed[path.name] if m.name == "latency_p50_ms")
            by_operator = operators.measure(kept, warmup=recorded["operators"]["warmup"], p50_ms=p50)
            if trace is not None:
                _write(trace, tracing.chrome(path.name, operators.events(kept), recorded["time"]))
    finally:
        progress.close()
    note = "" if data is not None else f"inputs: {samples.COUNT} random samples (seed 0); --data FILE.npz measures with your own"
    found = Profile(path.name, sha256(path), (*scored, *timed[path.name], *counted), by_operator, host.facts, note)
    if json is not None:
        _write(json, {"schema": "edgekd.profile/1", **{k: v for k, v in dataclasses.asdict(found).items() if k != "exit_code"}})
    return found


def emulate(
    model: Path | str,
    *,
    targets: Sequence[str] = (),
    data: Path | str | None = None,
    seconds: float = proving.SECONDS,
    json: Path | str | None = None,
    quiet: bool = True,
) -> Emulated:
    """Runs an exported file under the instruction set of each target (default: all that can be emulated here), on as many samples as take
    `seconds` each, and holds the answers against this machine's. Raises as `profile` does, EnvironmentUnfit without an emulator."""
    facts, path = environment.describe(), Path(model)
    wanted = [devices.load(t) for t in targets] or [t for t in map(devices.load, devices.names()) if t.emulated_as]
    ready, problems = proving.launches(wanted)
    if problems and (targets or not ready):
        raise EnvironmentUnfit(*problems)
    parsed = static.read(path)
    inputs, labels = (samples.random(parsed), None) if data is None else samples.read_arrays(Path(data))
    count = len(next(iter(inputs.values())))
    order = np.random.default_rng(0).permutation(count)
    mixed = {name: a[order] for name, a in inputs.items()}
    progress = reporter(quiet)
    for problem in problems:
        progress.say(f"not run: {problem}")
    progress.say(f"emulated, not measured: {', '.join(ready)}. What a file answers there is its kernels'; how long it takes is not told")
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, progress.task("run as other CPUs") as advance, _user_error():
            here = _joined(measure.score(path, mixed, folder=Path(folder) / "here"), path, labels)

            def answer(t: Target, launch: Mapping[str, Any]) -> np.ndarray:
                return _joined(measure.score(path, mixed, folder=Path(folder) / t.name, launch=launch, cap_s=seconds), path, labels)

            found = proving.executed(ready, order, here, answer, advance)
            counted_there = _instructions(path, mixed, ready, Path(folder), progress)
    finally:
        progress.close()
    metric = None if labels is None else top1() if labels.dtype.kind in "iu" and labels.ndim == 1 else mean_error()
    try:
        made = proving.figures(found, labels, [metric] if metric else [])
    except ValueError as error:
        raise UsageError(Problem("labels", str(error), "one label per sample: class numbers, or numbers like the outputs")) from None
    counted = (*static.measure(path), *memory.measure(path))
    flat = [*counted, *(m for t in ready for m in (*made[t], *counted_there.get(t, ())) if m.name != "target_spread"), *made[""]]
    note = _sample(count, min(len(a.rows) for a in found), data is None)
    result = Emulated(path.name, sha256(path), tuple(flat), facts, note)
    if json is not None:
        _write(json, {"schema": "edgekd.profile/1", **{k: v for k, v in dataclasses.asdict(result).items() if k != "exit_code"}})
    return result


def _instructions(
    path: Path, inputs: Mapping[str, np.ndarray], ready: Mapping[str, tuple[Target, Mapping[str, Any]]], folder: Path, progress: Any
) -> dict[str, tuple[Measurement, ...]]:
    """{target: instructions per inference}, counted once per ARM core; where nothing can count, that is said."""
    taken: dict[str, tuple[Measurement, ...]] = {}
    arm = {name: pair for name, pair in ready.items() if pair[0].architecture == "aarch64"}
    try:
        for name, (target, launch) in arm.items():
            core = target.emulated_as or ""
            if core not in taken:
                with progress.task(f"count as {core}") as advance:
                    taken[core] = counts.count(path, inputs, launch, folder / f"{name}-count", progress=advance).measurements
    except EnvironmentUnfit as error:
        progress.say(f"instructions are not counted: {error}")
    found = {name: taken.get(target.emulated_as or "", ()) for name, (target, _) in arm.items()}
    return {name: tuple(dataclasses.replace(m, target=name) for m in figures) for name, figures in found.items()}


def _sample(count: int, least: int, random: bool) -> str:
    """Which samples a file was run on."""
    if random:
        return f"inputs: {samples.COUNT} random samples (seed 0); --data FILE.npz runs your own"
    return (
        f"sample: {'all' if least == count else f'at least {least:,}'} of {count:,} samples{'' if least == count else ', drawn at random (seed 0)'}"
    )


def _joined(answers: Mapping[str, np.ndarray], path: Path, labels: np.ndarray | None) -> np.ndarray:
    """The outputs of a file as one array: side by side where it has several, which labels have no meaning for."""
    if len(answers) == 1:
        return next(iter(answers.values()))
    if labels is not None:
        raise UsageError(Problem(str(path), f"has {len(answers)} outputs, and one kind of labels is given", "leave `labels` out of the data"))
    return np.concatenate([a.reshape(len(a), -1) for a in answers.values()], axis=1)


def compare(
    a: Path | str,
    b: Path | str,
    *,
    target: str = "host",
    data: Path | str | None = None,
    preset: measure.Preset = "standard",
    json: Path | str | None = None,
    on: str | None = None,
    quiet: bool = True,
) -> Compared:
    """Times two files against each other, interleaved; both take the same inputs. `on`, and what is raised: as in `profile`."""
    named, paths = _named(target), [Path(a), Path(b)]
    first = _read_all(paths)[0]
    inputs = samples.random(first) if data is None else samples.read_arrays(Path(data))[0]
    progress = reporter(quiet)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, _host(on, progress) as host:
            device, host = _stands_for(host, named)
            settings = {"preset": preset, "threads": device.threads, "folder": Path(folder), "target": device.name, "host": host}
            with progress.task("time both files") as advance, _user_error():
                compared = measure.compare(*paths, inputs, progress=advance, **settings)
            found = Compared(*(p.name for p in paths), compared, host.facts)
    finally:
        progress.close()
    if json is not None:
        _write(json, {"schema": "edgekd.comparison/1", **{k: v for k, v in dataclasses.asdict(found).items() if k != "exit_code"}})
    return found


def table(measurements: Sequence[Measurement]) -> str:
    """Measurements as lines: name, figure with interval and unit, how often taken, origin, note."""
    rows = [("", "value", "95 % interval", "n", "origin", "")]
    for m in measurements:
        interval = "exact" if m.origin == "counted" else f"[{_figure(m.low)}, {_figure(m.high)}]"
        rows.append((m.name, f"{_figure(m.value)} {m.unit}".strip(), interval, "" if m.origin == "counted" else str(m.n), m.origin, m.note))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows)


def _figure(value: float) -> str:
    """Whole numbers in groups of three; others with four digits that count."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:.4g}"


def _slowest(found: operators.Operators, count: int = 8) -> str:
    shown = sorted(found.operators, key=lambda o: -o.ms)[:count]
    width = max(len(o.kind) for o in shown)
    lines = [f"{o.kind:<{width}}  {o.ms:9.4f} ms  {100 * o.share:5.1f} %  {o.name}" for o in shown]
    more = f", {len(found.operators) - len(shown)} more" if len(found.operators) > len(shown) else ""
    return "\n".join([f"time per operator (scaled by {found.scale:.2f} to the p50 without the operators' clock{more})", *lines])


def _threads(measurements: Sequence[Measurement]) -> str:
    count = next((m.threads for m in measurements if m.threads), 1)
    return "1 thread" if count == 1 else f"{count} threads"


@contextlib.contextmanager
def _host(on: str | None, progress: Silent) -> Iterator[Host]:
    """This machine, or the board at an address."""
    if on is None:
        yield local.host()
        return
    with ssh.connect(on, progress.task) as host:
        yield host


def _named(target: str) -> Target | None:
    """The target; None for the host's own, whose facts are not known yet."""
    return None if target == devices.HOST else devices.load(target)


def _stands_for(host: Host, target: Target | None) -> tuple[Target, Host]:
    """The target, and the host held to its kind of cores, where the host can stand for it: it has the core and all features, and none more that
    kernels are chosen by."""
    device = target or devices.host(host.facts)
    lacking, more = devices.matches(device, host.facts), devices.surplus(device, host.facts)
    kinds = host.facts.get("clusters", {})
    named = all(name.startswith(("Cortex-", "Neoverse-")) for name in kinds)  # other makers' cores may be of any kind
    if device.core and kinds and named and not _cores(host, device):
        lacking = [*lacking, f"a {device.core} (it has {' and '.join(kinds)})"]
    hint = "a time that was not taken on the target's kind of machine is not measured; --target host profiles for the machine itself"
    if lacking:
        raise EnvironmentUnfit(Problem(f"target {device.name}", f"{host.name} lacks {', '.join(lacking)}", hint))
    if more:
        what = f"{host.name} also has {', '.join(more)}, by which other kernels are chosen"
        raise EnvironmentUnfit(Problem(f"target {device.name}", what, hint + ("; --on emulator runs as the target's" if device.emulated_as else "")))
    return device, dataclasses.replace(host, cores=_cores(host, device))


def _cores(host: Host, device: Target) -> tuple[int, ...]:
    """The CPUs of a board that are of the target's kind: on one with big and little cores, those that its processes are held to."""
    return next((tuple(numbers) for name, numbers in host.facts.get("clusters", {}).items() if name.lower() == device.core), ())


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


@contextlib.contextmanager
def _user_error() -> Iterator[None]:
    """A file from elsewhere that its runtime refuses is an input that is wrong, not a run that failed."""
    try:
        yield
    except RunFailed as error:
        raise UsageError(*error.problems) from error


def _quality(path: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray, device: Target, host: Host, place: Path) -> list[Measurement]:
    """Accuracy and calibration where labels are class numbers, else the mean error."""
    with _user_error():
        answered = measure.score(path, inputs, threads=device.threads, folder=place / "score", host=host)
    outputs = answered if len(answered) > 1 else next(iter(answered.values()))
    metric = top1() if labels.dtype.kind in "iu" and labels.ndim == 1 else mean_error()
    try:
        figures = quality.measure(outputs, labels, [metric], split="test", threads=device.threads, environment=environment.environment_id(host.facts))
    except ValueError as error:
        raise UsageError(Problem("labels", str(error), "one label per sample: class numbers, or numbers like the outputs")) from None
    return [dataclasses.replace(m, target=device.name) for m in figures]


def _write(path: Path | str, value: Any) -> None:
    try:
        write_atomic(path, (jsonlib.dumps(value, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(Problem(str(path), f"can't be written: {error.strerror}")) from None
