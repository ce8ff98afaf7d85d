"""The verb `profile`: an exported file of anybody's making, measured on this machine or on a board, emulated, or
counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgekd.errors import PASSED, Problem, UsageError, plain
from edgekd.store.scratch import scratch
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.measure import operators, session
    from edgekd.records import Host, Measurement, Target
    from edgekd.samples.rows import Samples
    from edgekd.verbs._emulated import Emulated


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="T",
    help="A target's name or file [default: host]; several with --on emulator.",
)
@click.option(
    "--on",
    type=_options.Where(),
    metavar="WHERE",
    help=f"{_options.BOARD} Or `emulator`: run as the target's CPU, no times.",
)
@_options.samples(
    "Samples: an .npz with `inputs` and optionally `labels`, a folder with one .npz per sample, of images or of .wav "
    "files; or random, which it is by default."
)
@_options.preset
@_options.json_file("Write the measurements to this file.")
@click.option("--trace", type=click.Path(), help="Write a Chrome trace of the operators to this file.")
@_options.quiet
def command(model, targets, on, data, axes, preprocess, states, preset, json, trace, quiet):
    """Measure an exported MODEL: latency, load, memory, operators; and accuracy where the data has labels.

    \b
    With --on ssh://user@host[:port]: on that board, by your ssh configuration and keys; nothing is left there.
      ?python=~/venv/bin/python after it, or EDGEKD_REMOTE_PYTHON, names another interpreter there;
      EDGEKD_SSH_CONFIG another ssh configuration here.

    With --on emulator, or for a target that this machine does not match: its outputs under each target's
    instruction set, compared with this machine; its latency predicted, not timed. Without an emulator what is counted
    and predicted remains, with exit code 4.
    """
    from edgekd.samples.source import Source
    from edgekd.verbs import _counted, _emulated

    read = {"data": data, "axes": axes, "preprocess": preprocess, "states": states}
    if on is None and len(targets) == 1 and (device := _counted.device(targets[0])) is not None:
        if trace is not None:
            raise UsageError(Problem("--trace", f"nothing runs as {device.name} here", "leave it out"))
        return _options.finish(_counted.sizes(model, device, Source(**read), json=json))
    if on == "emulator":
        outcome = _emulated.emulate(model, Source(**read), targets=targets, json=json, quiet=quiet)
    elif len(targets) > 1:
        hint = "--on emulator runs as several"
        raise UsageError(Problem("--target", f"{len(targets)} are given, and times are taken for one", hint))
    else:
        settings = {**read, "preset": preset, "json": json, "trace": trace, "on": on}
        outcome = profile(model, target=targets[0] if targets else "host", **settings, quiet=quiet)
    code = _options.finish(outcome)
    if code and isinstance(outcome, _emulated.Emulated):
        click.echo("\n".join(f"error: {p}" for p in outcome.problems), err=True)
    return code


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
        from edgekd.report.figures import table

        self = plain(self)
        parts = [f"{self.model} ({self.environment['cpu']}, {_threads(self.measurements)})", table(self.measurements)]
        if self.operators:
            parts.append(_slowest(self.operators))
        return "\n\n".join([*parts, *([self.note] if self.note else [])])


def profile(
    model: Path | str,
    *,
    target: str = "host",
    data: Path | str | None = None,
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    states: Mapping[str, str] = MappingProxyType({}),
    preset: session.Preset = "standard",
    json: Path | str | None = None,
    trace: Path | str | None = None,
    on: str | None = None,
    quiet: bool = True,
) -> Profile | Emulated:
    """Measures an exported file. `data`, `axes`, `preprocess`, `states`: as in `quantize`; without `data`, or with
    "random": seeded random inputs. `on`: the address of a board (hosts/address.py); default: this machine. Where this
    machine does not match the target, the file runs under emulation instead, and nothing is timed.

    Raises UsageError for a file, data, target or address that is wrong, EnvironmentUnfit where the machine lacks what
    the target has."""

    from edgekd.files import sha256, write_found, write_json
    from edgekd.measure import emulation, jobs, opening, operators, session
    from edgekd.measure import trace as tracing
    from edgekd.measure.machine import host_of, named, noted, stands_for, user_error
    from edgekd.probes import Subject, measure
    from edgekd.progress import reporter
    from edgekd.samples.source import Source, spared
    from edgekd.verbs._emulated import SOME, emulate, untimed

    path, source = Path(model), Source(data, axes, preprocess, states)
    spared(json, [path], source)
    spared(trace, [path], source, option="--trace")
    wanted = opening.taking(named(target), path)
    if on is None and wanted and _elsewhere(wanted):
        problems = emulation.launches([wanted])[1]
        if trace is not None:
            raise UsageError(
                Problem("--trace", f"is a record of times, and {wanted.name} is not timed here", "leave it out")
            )
        if not problems:
            return emulate(model, source, targets=[target], json=json, quiet=quiet)
        return untimed(model, wanted, problems, source=source, json=json)
    subject = Subject(file=path, format=opening.form(wanted))
    if subject.model is None:
        opening.check([path], wanted)
    progress = reporter(quiet)
    try:
        with scratch() as folder, host_of(on, progress) as host:
            place = Path(folder)
            device, host = stands_for(host, wanted)
            runtime = device.runtime.name
            with progress.task("open the file"), user_error():
                given = opening.given(path, source, wanted, place / "signature", host, subject.model)
                inputs = given.samples
                sized = subject.at({} if source.random else inputs.shapes)
                counted = [dataclasses.replace(m, target=device.name) for m in measure(sized)]
                ran = []
                if on is None:  # a file that comes to no end, or breaks its runtime, before it is run hundreds of times
                    ran = jobs.tried({path.name: path}, inputs, runtime=runtime, folder=place / "tried")
            # wrong labels are told before the long part
            scored = [] if inputs.labels is None else _quality(path, inputs, device, host, place)
            session.announce(progress, ran, preset)
            with progress.task("time the file") as advance, user_error():
                timed = jobs.profile(
                    {path.name: path}, inputs, jobs.Session(place, preset, device.threads, device, host, advance)
                )
            recorded = jobs.raw(place, path.name)
            p50 = next(m.value for m in timed[path.name] if m.name == "latency_p50_ms")
            by_operator, kept = (
                None,
                recorded["operators"]["trace"] and recorded["out"] / recorded["operators"]["trace"],
            )
            if kept:
                by_operator = operators.measure(kept, warmup=recorded["operators"]["warmup"], p50_ms=p50)
            if trace is not None:
                events = operators.events(kept) if kept else []
                write_json(trace, tracing.chrome(path.name, events, recorded["time"]))
    finally:
        progress.close()
    note = f"inputs: {SOME}; --data FILE.npz measures with your own" if source.random else given.note
    over = "scored over the same" if scored and inputs.states else ""
    note = "; ".join(filter(None, (note, over, inputs.counted)))
    figures = noted((*scored, *timed[path.name]), wanted, host.facts)
    found = Profile(path.name, sha256(path), (*figures, *counted), by_operator, host.facts, note)
    write_found(json, "edgekd.profile/1", found, "exit_code")
    return found


def _elsewhere(target: Target) -> bool:
    """Whether a target is another machine than this one as far as answers go, and something can be told of it
    without."""
    from edgekd import environment
    from edgekd import targets as devices
    from edgekd.predicting import of_file

    facts = environment.describe()
    lacking, more = devices.lacking(target, facts), devices.surplus(target, facts)
    return bool(target.emulated_as and (lacking or more) or lacking and of_file.known_as(target)[0])


def _slowest(found: operators.Operators, count: int = 8) -> str:
    from edgekd.report.tables import aligned

    shown = sorted(found.operators, key=lambda o: -o.ms)[:count]
    rows = [(o.kind, f"{o.ms:.4f} ms", f"{100 * o.share:.1f} %", o.name) for o in shown]
    more = f", {len(found.operators) - len(shown)} more" if len(found.operators) > len(shown) else ""
    head = f"time per operator (scaled by {found.scale:.2f} to the p50 without the operators' clock{more})"
    return f"{head}\n{aligned(rows, right=(1, 2))}"


def _threads(measurements: Sequence[Measurement]) -> str:
    count = next((m.threads for m in measurements if m.threads), 1)
    return "1 thread" if count == 1 else f"{count} threads"


def _quality(path: Path, inputs: Samples, device: Target, host: Host, place: Path) -> list[Measurement]:
    """Accuracy and calibration where labels are class numbers, else the mean error."""
    import numpy as np

    from edgekd import environment
    from edgekd.inputs import bare
    from edgekd.measure import jobs
    from edgekd.measure.machine import noted, user_error
    from edgekd.metrics import suiting
    from edgekd.probes import Subject, measure
    from edgekd.samples import values

    labels = np.concatenate(inputs.labels) if inputs.labels.dtype == object else inputs.labels
    with user_error():
        asked = {"runtime": device.runtime.name, "threads": device.threads, "folder": place / "score", "host": host}
        answered = jobs.score(path, inputs, **asked)
    only = bare({name: a for name, a in answered.items() if name not in inputs.states.values()})
    if not isinstance(only, dict) and only.ndim == 2 and only.dtype.kind == "f":
        problems = values.labels(labels, "labels", max(2, only.shape[1]), inputs.names)
        if problems:
            raise UsageError(*problems)
    try:
        figures = measure(Subject(outputs=only, labels=labels, metrics=[suiting(labels)], split="test"))
    except ValueError as error:
        raise UsageError(
            Problem("labels", str(error), "one label per sample: class numbers, or numbers like the outputs")
        ) from None
    own = {
        "target": device.name,
        "threads": device.threads,
        "environment": environment.environment_id(host.facts),
    }
    told = jobs.ran(place / "score", device.runtime.name)
    return noted((dataclasses.replace(m, **own) for m in figures), None, host.facts, told)
