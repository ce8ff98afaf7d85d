"""The same score on every CPU: an int8 file runs as the CPU of each target that this machine does not match, by
emulation; its answers there are compared with its answers here. What was run once is kept in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment, results, targets
from edgekd.files import sha256
from edgekd.hosts import counter
from edgekd.inputs import bare, each, length
from edgekd.measure import instructions as counts
from edgekd.measure import jobs
from edgekd.measure.cpu_agreement import figures
from edgekd.measure.emulation import SECONDS, Answers, Emulation, devices, emulation, launches
from edgekd.measure.folders import identity
from edgekd.measure.machine import noted
from edgekd.models import streams
from edgekd.models.scores import file_of
from edgekd.records import Made, Measurement, Target
from edgekd.run import feeds
from edgekd.samples.rows import of as samples

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.progress import Silent
    from edgekd.run.evaluate import Observed
    from edgekd.run.resolve import Resolved
    from edgekd.store.store import Store


@dataclass(frozen=True)
class Proven:
    """Results of emulating a file: {target: measurements} for the file's targets, and {target: outputs} only for
    targets that this machine does not match, or whose outputs differ from this machine's."""

    measurements: Mapping[str, tuple[Measurement, ...]] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)


def prove(
    o: Observed, absent: Sequence[Target], int8: bool, teacher: Any, resolved: Resolved, store: Store, progress: Silent
) -> Proven:
    """Emulates a file on the test split: the results for its targets, and the spread over all targets of the recipe. A
    missing emulator is reported. `absent`: the targets whose board is not connected. A float file runs only as CPUs of
    another architecture; `teacher`: the teacher's outputs, or None."""
    columns = resolved.data("test")
    here = o.outputs["test"]
    facts = environment.describe()
    wanted = [t for t in devices(_taking(absent, o)) if int8 or targets.matches(t, facts)]
    if (
        isinstance(here, Mapping)
        and not resolved.task.heads
        or not wanted
        or columns.stepwise
        or "stream" in o.artifact.facts
    ):
        return Proven()
    inputs = feeds.of(resolved.task, columns)
    ready, problems = launches(wanted)
    for problem in problems:
        progress.say(f"not run: {problem}")
    run = emulation(o.file, o.point.deployment.runtime, inputs, ready)
    order = run.order
    with progress.task(f"run {o.point.id} as other CPUs") as advance:
        answer = lambda target, launch: _kept(o, run, target, launch, columns.digest, store)
        ordered = lambda values: each(values, lambda array: array[order])
        found = run.answers(ordered(here), answer, advance, progress.say)
    boards = [
        Answers(t, f"the board of {t}", order, ordered(here), ordered(outputs["test"]))
        for t, outputs in o.there.items()
    ]
    made = figures(found, columns.labels, resolved.task.metrics, teacher, boards, resolved.task.declared)
    spread = made.get("", ())
    if not made:
        return Proven()
    mine = {t.name: t for t in _taking(resolved.targets, o) if t.name in o.point.targets}
    alone = {
        a.target: a for a in found if a.target in mine and (targets.matches(mine[a.target], facts) or not _same(a))
    }
    return Proven(
        {
            n: tuple(noted((replace(m, target=n) for m in made.get(n, spread)), t, facts, jobs.made_by(t.runtime.name)))
            for n, t in mine.items()
        },
        alone,
    )


def _taking(wanted: Sequence[Target], o: Observed) -> list[Target]:
    """The targets that run the file's format, each with the runtime that opens it."""
    return [d for t in wanted if (d := targets.deployed(t, o.point.deployment)) is not None]


def _same(a: Answers) -> bool:
    """Whether each output (class, or number) equals this machine's."""
    classes = lambda x: x.argmax(1) if x.ndim == 2 and x.shape[1] > 1 else x
    return all(bool((classes(here) == classes(there)).all()) for _, here, there in a.pairs())


def instructions(
    o: Observed, absent: Sequence[Target], resolved: Resolved, store: Store, folder: Path, progress: Silent
) -> tuple[Measurement, ...]:
    """Instructions per inference of the file on each of its ARM targets, counted once per core and kept in the store.
    `prove` reports why a target can't be emulated."""
    absent = _taking(absent, o)
    wanted = [t for t in devices(absent) if t.name in o.point.targets and t.architecture == "aarch64"]
    columns = resolved.data("test")
    stream = streams.of_fact(o.artifact.facts)
    few = samples(feeds.of(resolved.task, columns, stream=stream)).take(slice(jobs.ROWS))
    run = emulation(o.file, o.point.deployment.runtime, few, launches(wanted)[0])

    def work(target: Target, launch: Mapping[str, Any]) -> Sequence[Measurement]:
        counted_as = (
            "count",
            counts.INFERENCES,
            columns.digest,
            target.emulated_as,
            launch.get("identity", ""),
            sha256(counter.SOURCE),
            identity(run.runtime),
        )
        name = hashlib.sha256(repr(counted_as).encode()).hexdigest()[:32]
        kept = store.observed(o.artifact.key, f"count-{name}")
        if kept is not None:
            return results.measurements(kept["measurements"])
        place = folder / "profile" / f"count-{o.artifact.key[:12]}-{target.emulated_as}"
        found = run.count(place, launch, few)
        store.observe(o.artifact.key, f"count-{name}", {"measurements": [asdict(m) for m in found]})
        return found

    return tuple(m for found in run.instructions(work, progress).values() for m in found)


def added(measured: Sequence[Measurement], proven: Proven) -> tuple[Measurement, ...]:
    """A candidate's measurements with those of emulation. Where a target's outputs differ from this machine's, figures
    of the test split measured here are not the target's and are removed."""
    kept = [m for m in measured if not (m.target in proven.answers and m.split == "test" and m.origin == "measured")]
    return (*kept, *(m for figures in proven.measurements.values() for m in figures))


def _kept(o: Observed, run: Emulation, device: Target, launch: Mapping[str, Any], digest: str, store: Store) -> Any:
    """The outputs of the file as `device`, computed once and kept in the store: an array, or {output: array}."""
    machine, ran = environment.environment_id(environment.describe()), identity(run.runtime)
    taken = repr(
        ("emulated", o.artifact.key, digest, device.emulated_as, launch.get("identity", ""), machine, SECONDS, ran)
    )
    key, parents = hashlib.sha256(taken.encode()).hexdigest(), {o.artifact.key: store.digest(o.artifact)}
    kept = store.find(key, parents)
    if kept is None:

        def build(place: Path, scratch: Path) -> Made:
            answered = run.score(scratch, launch)
            for name, array in answered.items():
                np.save(place / file_of("outputs", name if len(answered) > 1 else ""), array, allow_pickle=False)
            return Made("outputs", {"samples": length(answered)})

        kept = store.make(
            key,
            stage="outputs",
            settings={},
            seed=None,
            inputs={"source": (o.artifact.key,)},
            parents=parents,
            build=build,
        )
    names = o.outputs["test"] if isinstance(o.outputs["test"], Mapping) else ("",)
    return bare({n: np.load(kept.folder / file_of("outputs", n), allow_pickle=False) for n in names})
