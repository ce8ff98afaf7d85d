"""Observes the exported files of a plan: what they answer, what they cost, how long they take. What was measured once
is kept beside the artifact in the store and not taken again, so that a choice does not flip on resume."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment, results, targets
from edgekd.hosts import local
from edgekd.inputs import bare, named
from edgekd.measure import jobs
from edgekd.measure.machine import noted
from edgekd.predicting import of_file
from edgekd.probes import Subject, measure
from edgekd.records import Artifact, Host, Made, Measurement, Split, Target
from edgekd.run.plan import Plan, Point
from edgekd.run.resolve import Resolved
from edgekd.store.store import Store

if TYPE_CHECKING:
    from edgekd.progress import Silent

SPLITS: tuple[Split, ...] = ("validation", "test")
PRESET = "quick"


@dataclass(frozen=True)
class Observed:
    """A point whose file was exported: the file, what it answers per split (array or {name: array}), all that is known
    about it; `there` {target: what it answers per split} of targets whose board was at hand."""

    point: Point
    artifact: Artifact
    outputs: Mapping[str, Any]
    measurements: tuple[Measurement, ...] = ()
    there: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.artifact.folder / "model.onnx"


def observe(
    resolved: Resolved,
    plan: Plan,
    made: Mapping[str, Artifact],
    store: Store,
    folder: Path,
    progress: Silent,
    boards: Mapping[str, Host] = {},  # noqa: B006  (read only)
) -> list[Observed]:
    """Every exported point with its measurements for each of its targets: taken on this machine, for the targets of
    `boards` on theirs."""
    here, points = local.host(), [p for p in plan.points if p.export in made]
    with progress.task("score the files") as advance:
        found = []
        for number, point in enumerate(points, 1):
            artifact = made[point.export]
            there = {t: answers(artifact, resolved, store, host) for t, host in boards.items() if t in point.targets}
            found.append(Observed(point, artifact, answers(artifact, resolved, store, here), there=there))
            advance(number, len(points), point.id)
    of_targets = {t.name: boards.get(t.name, here) for t in resolved.targets if targets.runs(t)}
    timings = {}
    for target in resolved.targets:
        host = of_targets.get(target.name)
        if host is not None and targets.times(target, host.facts):
            timings[target.name] = times(found, target, resolved, store, host, folder, progress)
    teacher = next((o for o in found if o.point.reference == "teacher"), None)
    timed = {o.point.id: {t: taken.get(o.point.id, ()) for t, taken in timings.items()} for o in found}
    return [
        dataclasses.replace(o, measurements=described(o, teacher, timed[o.point.id], resolved, of_targets))
        for o in found
    ]


def answers(artifact: Artifact, resolved: Resolved, store: Store, host: Host) -> dict[str, Any]:
    """What the exported file answers to validation and test, in its runtime on `host`."""
    columns, machine = {split: resolved.data(split) for split in SPLITS}, _machine(host)
    identity = ("outputs", artifact.key, {split: c.digest for split, c in columns.items()}, machine)
    key, parents = hashlib.sha256(repr(identity).encode()).hexdigest(), {artifact.key: store.digest(artifact)}
    kept = store.find(key, parents)
    if kept is None:

        def build(place: Path, scratch: Path) -> Made:
            parts = [named(c.inputs, resolved.task.inputs[0]) for c in columns.values()]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            answered = jobs.score(artifact.folder / "model.onnx", joined, threads=1, folder=scratch, host=host)
            first = len(columns[SPLITS[0]])
            for split, rows in zip(SPLITS, (slice(0, first), slice(first, None)), strict=True):
                np.savez(place / f"{split}.npz", **{name: array[rows] for name, array in answered.items()})
            return Made("outputs", {})

        kept = store.make(
            key,
            stage="outputs",
            settings={},
            seed=None,
            inputs={"source": (artifact.key,)},
            parents=parents,
            build=build,
        )
    outputs = {}
    for split in SPLITS:
        with np.load(kept.folder / f"{split}.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        outputs[split] = bare(arrays)
    return outputs


def _machine(host: Host) -> str:
    """The kind of machine, and which of its cores: big and little ones have kernels and times of their own."""
    return environment.environment_id(host.facts) + "".join(f"-{c}" for c in host.cores)


def times(
    found: Sequence[Observed],
    target: Target,
    resolved: Resolved,
    store: Store,
    host: Host,
    folder: Path,
    progress: Silent,
) -> dict[str, tuple[Measurement, ...]]:
    """{id: latency and memory} on `host` with the target's threads: one interleaved job for all files that were not
    timed so yet."""
    inputs, taken, machine = _inputs(resolved), {}, _machine(host)
    name, missing = f"profile-{PRESET}-{target.threads}-{machine}", {}
    for o in [o for o in found if target.name in o.point.targets]:
        kept = store.observed(o.artifact.key, name)
        if kept is None:
            missing[o.point.id] = o
        else:
            taken[o.point.id] = results.measurements(kept["measurements"])
    if not missing:
        return taken
    place = (
        folder
        / "profile"
        / f"{PRESET}-{target.threads}{f'-{machine}' if host.cores or target.name != targets.HOST else ''}"
    )
    with progress.task(
        f"time {len(missing)} files{'' if host.name == local.host().name else f' on {host.name}'}"
    ) as advance:
        models = {id: o.file for id, o in missing.items()}
        timed = jobs.profile(
            models, inputs, preset=PRESET, threads=target.threads, folder=place, progress=advance, host=host
        )
    for id, o in missing.items():
        store.observe(o.artifact.key, name, {"measurements": [dataclasses.asdict(m) for m in timed[id]]})
        taken[id] = timed[id]
    return taken


def ratio(
    a: Observed,
    b: Observed,
    target: Target,
    resolved: Resolved,
    store: Store,
    host: Host,
    folder: Path,
    progress: Silent,
) -> float:
    """The time of `a` over that of `b` on `host` with the target's threads, of the two interleaved; NaN where the A/A
    control excludes 1. A ratio is kept, as all times are; where noise hid it, nothing was decided, and the next run
    times the pair again."""
    name = f"pair-{PRESET}-{target.threads}-{_machine(host)}-{b.artifact.key}"
    kept = store.observed(a.artifact.key, name)
    if kept is None or kept["ratio"] is None:
        place = folder / "profile" / f"pair-{target.name}-{a.artifact.key[:12]}-{b.artifact.key[:12]}"
        with progress.task(f"time {a.point.id} against {b.point.id}") as advance:
            given = {"preset": PRESET, "threads": target.threads, "folder": place, "progress": advance, "host": host}
            compared = jobs.compare(b.file, a.file, _inputs(resolved), **given)
        if compared.verdict == "inconclusive":
            shutil.rmtree(place, ignore_errors=True)  # its finished processes would be taken for those of the next time
            return math.nan
        kept = {"ratio": compared.ratio}
        store.observe(a.artifact.key, name, kept)
    return kept["ratio"][0]


def _inputs(resolved: Resolved) -> Mapping[str, Any]:
    """{input: samples} that files are timed with."""
    return named(resolved.data("test").inputs, resolved.task.inputs[0])


def _quality(
    outputs: Mapping[str, Any], o: Observed, teacher: Observed | None, split: Split, resolved: Resolved
) -> tuple[Measurement, ...]:
    """What the answers of a point to a split come to, beside those of the teacher here."""
    beside = None if teacher is None or teacher is o else teacher.outputs[split]
    labels, metrics = resolved.data(split).labels, resolved.task.metrics
    return measure(Subject(outputs=outputs[split], labels=labels, metrics=metrics, teacher=beside, split=split))


def _noted(m: Measurement, more: str) -> str:
    return "; ".join(filter(None, (m.note, more)))


def _of_the_file(o: Observed, teacher: Observed | None, resolved: Resolved, machine: str) -> list[Measurement]:
    """Quality on validation by this machine's answers, as no target's: what a choice goes by for targets that this
    machine is none of. What the chosen file answers there is emulated, and judged on test."""
    figures = _quality(o.outputs, o, teacher, "validation", resolved)
    return [
        dataclasses.replace(m, environment=machine, threads=1, note=_noted(m, "this machine's answers"))
        for m in figures
    ]


def _by_reference(o: Observed, teacher: Observed | None, target: Target, resolved: Resolved) -> list[Measurement]:
    """Quality of a file for a target that nothing runs: what it answers in its format's reference runtime, on this
    machine."""
    facts, found = environment.describe(), []
    own = {"target": target.name, "origin": "emulated", "threads": 1, "environment": environment.environment_id(facts)}
    note = f"{targets.REFERENCE}: onnxruntime {facts['versions'].get('onnxruntime', '')}".rstrip() + " on this machine"
    for split in SPLITS:
        figures = _quality(o.outputs, o, teacher, split, resolved)
        found += [dataclasses.replace(m, **own, note="; ".join(filter(None, (note, m.note)))) for m in figures]
    return found


def described(
    o: Observed, teacher: Observed | None, timed: Mapping[str, tuple], resolved: Resolved, hosts: Mapping[str, Host]
) -> tuple[Measurement, ...]:
    """All that is known of a file. Counted figures once; measured ones for each target whose features its host has."""
    wanted = [t for t in resolved.targets if t.name in o.point.targets]
    found = [*measure(Subject(file=o.file, facts=o.artifact.facts))]
    absent = [t for t in wanted if t.name not in hosts or targets.matches(t, hosts[t.name].facts)]
    if any(map(targets.runs, absent)):
        found += _of_the_file(o, teacher, resolved, environment.environment_id(environment.describe()))
    for target in wanted:
        if target in absent:
            found += (
                of_file.predicted(o.file, target)
                if targets.runs(target)
                else _by_reference(o, teacher, target, resolved)
            )
            continue
        facts = hosts[target.name].facts
        more, outputs = targets.surplus(target, facts), o.there.get(target.name, o.outputs)
        also = f"on a machine that also has {', '.join(more)}" if more else ""
        for split in SPLITS:
            figures = _quality(outputs, o, teacher, split, resolved)
            own = {"target": target.name, "environment": environment.environment_id(facts), "threads": 1}
            found += noted((dataclasses.replace(m, **own) for m in figures), target, facts, also)
        if targets.times(target, facts):
            found += noted((dataclasses.replace(m, target=target.name) for m in timed[target.name]), target, facts)
        else:
            found += of_file.predicted(o.file, target)
    return tuple(found)
