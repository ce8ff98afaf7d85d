"""`profile` without the target's machine: what a file answers as the target's CPU, how many instructions it takes
there, what is counted on the file, and how long it will take as far as that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import environment
from edgekd import targets as devices
from edgekd.errors import PASSED, UNFIT, EnvironmentUnfit, Problem, UsageError, plain
from edgekd.files import sha256, write_found
from edgekd.hosts import local
from edgekd.measure import cpu_agreement, emulation, jobs, opening
from edgekd.measure.machine import noted, user_error
from edgekd.metrics import suiting
from edgekd.predicting import of_file
from edgekd.probes import Subject, measure
from edgekd.progress import reporter
from edgekd.records import Measurement, Target
from edgekd.report.figures import table
from edgekd.samples.generated import COUNT
from edgekd.samples.rows import Samples
from edgekd.samples.source import Source, spared
from edgekd.store.scratch import scratch

SOME = f"{COUNT} random samples (seed 0)"


@dataclass(frozen=True)
class Emulated:
    """What `profile` found out about one file without the target's machine: what is counted, per target what was
    emulated, and the spread over all. `problems`: why the exit code is none of success. Prints as tables."""

    model: str
    sha256: str
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    note: str = ""
    problems: tuple[Problem, ...] = ()
    exit_code: int = PASSED

    def __str__(self) -> str:
        note, self = "\n".join(map(plain, self.note.split("\n"))), plain(self)
        names = list(dict.fromkeys(m.target for m in self.measurements if m.target))
        counted = [m for m in self.measurements if m.origin == "counted"]
        over_all = [m for m in self.measurements if m.target is None and m not in counted]
        ran = any(m.origin == "emulated" for m in self.measurements)
        how = f"answers emulated on {self.environment['cpu']}" if ran else "not run"
        parts = [f"{self.model}: {how}; nothing is timed", table(counted)]
        parts += [f"{name}\n{table([m for m in self.measurements if m.target == name])}" for name in names]
        parts.append(table(over_all) if over_all else "")
        return "\n\n".join(p for p in (*parts, note) if p)


def emulate(
    model: Path | str,
    source: Source,
    *,
    targets: Sequence[str] = (),
    json: Path | str | None = None,
    quiet: bool = True,
) -> Emulated:
    """Runs an exported file under the instruction set of each target (default: all that can be emulated here), on as
    many samples as take emulation.SECONDS each, and holds the answers against this machine's. Raises as `profile` does,
    EnvironmentUnfit without an emulator."""
    facts, path = environment.describe(), Path(model)
    spared(json, [path], source)
    wanted = [devices.load(t) for t in targets] or [t for t in map(devices.load, devices.names()) if t.emulated_as]
    wanted = [opening.taking(t, path) or t for t in wanted]
    one = _alike(wanted)
    ready, problems = emulation.launches(wanted)
    if problems and (targets or not ready):
        raise EnvironmentUnfit(*problems)
    opening.check([path], one)
    with scratch() as folder, user_error():
        given = opening.given(path, source, one, Path(folder), local.host())
    inputs = given.samples
    count, labels = len(inputs), inputs.labels
    run = emulation.emulation(path, one.runtime.name, inputs, ready)
    progress = reporter(quiet)
    for problem in problems:
        progress.say(f"not run: {problem}")
    progress.say(
        f"emulated, not measured: {', '.join(ready)}. What a file answers there is its kernels'; how long it takes "
        "here tells nothing of it"
    )
    try:
        with (
            scratch() as folder,
            progress.task("run as other CPUs") as advance,
            user_error(),
        ):
            runtime = one.runtime.name
            jobs.tried({path.name: path}, run.inputs, runtime=runtime, folder=Path(folder) / "tried")
            here = _joined(run.score(Path(folder) / "here"), path, inputs)
            answer = lambda t, launch: _joined(run.score(Path(folder) / t.name, launch), path, inputs)
            if len(here) != count:
                text = f"has {len(here)} rows of answers for {count} samples of different shapes"
                raise UsageError(Problem(str(path), text, "give samples of one shape: rows are compared between CPUs"))
            found = run.answers(here, answer, advance)
            work = lambda t, launch: run.count(Path(folder) / f"{t.name}-count", launch)
            counted_there = run.instructions(work, progress)
    finally:
        progress.close()
    metrics = [] if labels is None else [suiting(labels)]
    try:
        made = cpu_agreement.figures(found, labels, metrics)
    except ValueError as error:
        raise UsageError(
            Problem("labels", str(error), "one label per sample: class numbers, or numbers like the outputs")
        ) from None
    shape = {} if source.random else inputs.shapes
    counted = measure(Subject(file=path, format=opening.form(one), sample=shape))
    told = jobs.made_by(runtime)
    ran = {n: noted(made[n], t, facts, told) + noted(counted_there.get(n, ()), t, facts) for n, (t, _) in ready.items()}
    guessed = {name: of_file.told(path, t, shape) for name, (t, _) in ready.items()}
    there = {name: (*ran[name], *guessed[name][0]) for name in ready}
    flat = [*counted, *(m for figures in there.values() for m in figures if m.name != "target_spread"), *made[""]]
    note = _sample(count, min(len(a.rows) for a in found), source.random)
    left = next((why for _, why in guessed.values() if why), "")
    note = "; ".join(filter(None, (note, given.note, inputs.counted, left)))
    return _written(Emulated(path.name, sha256(path), tuple(flat), facts, note), json)


def _alike(wanted: Sequence[Target]) -> Target:
    """One of the targets, where all have the same runtime. Raises UsageError where they don't: what a file answers in
    one runtime is not held against what it answers in another."""
    names = sorted({t.runtime.name for t in wanted})
    if len(names) > 1:
        text = f"are of several runtimes: {', '.join(names)}"
        raise UsageError(Problem("--target", text, "run the file for those of one runtime at a time"))
    return wanted[0]


def untimed(
    model: Path | str,
    target: Target,
    problems: Sequence[Problem],
    *,
    source: Source = Source(),  # noqa: B008  (frozen)
    json: Path | str | None = None,
) -> Emulated:
    """What can be told of an exported file for a target that nothing here runs as, for these problems: counts, and the
    latency that is predicted. `source`: samples, for their shape. The exit code is 4 where an emulator is missing, or
    answers were asked for by these, else 0.
    Raises EnvironmentUnfit where no latency is known."""
    path = Path(model)
    target = opening.taking(target, path) or target
    shape, at = opening.shapes(path, source, target)
    guessed, left = of_file.told(path, target, shape)
    if not guessed and not left:
        raise EnvironmentUnfit(*problems)
    counted = measure(Subject(file=path, format=opening.form(target), sample=shape))
    why = "\n".join([*filter(None, (at, left)), *(f"not run: {p.message}" for p in problems)])
    code = UNFIT if source.data is not None or target.emulated_as else PASSED
    return _written(
        Emulated(
            path.name,
            sha256(path),
            (*counted, *guessed),
            environment.describe(),
            why,
            tuple(problems) if code else (),
            code,
        ),
        json,
    )


def _written(found: Emulated, json: Path | str | None) -> Emulated:
    write_found(json, "edgekd.profile/1", found, "problems", "exit_code")
    return found


def _sample(count: int, least: int, random: bool) -> str:
    """Which samples a file was run on."""
    if random:
        return f"inputs: {SOME}; --data FILE.npz runs your own"
    if least == count:
        return f"sample: all of {count:,} samples"
    return f"sample: at least {least:,} of {count:,} samples, drawn at random (seed 0)"


def _joined(answers: Mapping[str, np.ndarray], path: Path, inputs: Samples) -> np.ndarray:
    """The outputs of a file as one array: side by side where it has several, which labels have no meaning for; states
    have none."""
    if inputs.labels is not None:
        answers = {name: a for name, a in answers.items() if name not in inputs.states.values()}
    if len(answers) == 1:
        return next(iter(answers.values()))
    if inputs.labels is not None:
        raise UsageError(
            Problem(
                str(path),
                f"has {len(answers)} outputs, and one kind of labels is given",
                "leave `labels` out of the data",
            )
        )
    return np.concatenate([a.reshape(len(a), -1) for a in answers.values()], axis=1)
