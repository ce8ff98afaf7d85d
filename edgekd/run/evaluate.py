"""Measures the exported files of a plan: outputs, sizes and latency. A measurement is taken once and kept beside the
artifact in the store, so that a choice does not change when a run is resumed."""

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

from edgekd import components, environment, probes, results, targets
from edgekd.hosts import local
from edgekd.inputs import bare
from edgekd.inputs import sample as sample_of
from edgekd.measure import jobs
from edgekd.measure.folders import identity
from edgekd.measure.machine import noted
from edgekd.models import streams
from edgekd.predicting import of_file
from edgekd.probes import Subject, measure
from edgekd.records import Artifact, Deployment, Host, Made, Measurement, Split, Target
from edgekd.run import feeds
from edgekd.run.plan import Plan, Point
from edgekd.run.resolve import Resolved
from edgekd.samples.rows import Samples
from edgekd.store.store import Store

if TYPE_CHECKING:
    from edgekd.progress import Silent

SPLITS: tuple[Split, ...] = ("validation", "test")
PRESET = "quick"


@dataclass(frozen=True)
class Observed:
    """An exported point: its file, its outputs per split (array or {name: array}), its measurements; `there` {target:
    outputs per split} for targets whose board is connected; `ran` {target: note on the runtime there}, under "" for
    this machine."""

    point: Point
    artifact: Artifact
    outputs: Mapping[str, Any]
    measurements: tuple[Measurement, ...] = ()
    there: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ran: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return file_of(self.artifact, self.point.deployment)

    def told(self, target: str) -> str:
        """A note on the runtime of its outputs for a target."""
        return self.ran.get(target, self.ran.get("", ""))


def suffix(how: Deployment) -> str:
    """Of the name of a file in a deployment's format."""
    return components.find("formats", how.format).SUFFIX


def file_of(artifact: Artifact, how: Deployment) -> Path:
    """The exported file of an artifact; a format may write others beside it."""
    return artifact.folder / f"model{suffix(how)}"


def observe(
    resolved: Resolved,
    plan: Plan,
    made: Mapping[str, Artifact],
    store: Store,
    folder: Path,
    progress: Silent,
    boards: Mapping[str, Host] = {},
) -> list[Observed]:
    """Every exported point with its measurements for each of its targets: taken on the target's board for those of
    `boards`, else on this machine."""
    here, points = local.host(), [p for p in plan.points if p.export in made]
    with progress.task("score the files") as advance:
        found = []
        for number, point in enumerate(points, 1):
            artifact, hosts = made[point.export], {"": here} | {t: h for t, h in boards.items() if t in point.targets}
            answered = {t: answers(artifact, point.deployment, resolved, store, host) for t, host in hosts.items()}
            outputs, ran = ({t: pair[i] for t, pair in answered.items()} for i in (0, 1))
            found.append(Observed(point, artifact, outputs.pop(""), there=outputs, ran=ran))
            advance(number, len(points), point.id)
    of_targets = {t.name: boards.get(t.name, here) for t in resolved.targets if targets.runs(t)}
    timings: dict[str, dict[str, tuple[Measurement, ...]]] = {}
    for device in (d for t in resolved.targets for d in targets.each(t)):
        host = of_targets.get(device.name)
        if host is not None and targets.times(device, host.facts):
            taken = times(found, device, resolved, store, host, folder, progress)
            timings[device.name] = timings.get(device.name, {}) | taken
    teacher = next((o for o in found if o.point.reference == "teacher"), None)
    timed = {o.point.id: {t: taken.get(o.point.id, ()) for t, taken in timings.items()} for o in found}
    return [
        dataclasses.replace(o, measurements=described(o, teacher, timed[o.point.id], resolved, of_targets))
        for o in found
    ]


def answers(
    artifact: Artifact, how: Deployment, resolved: Resolved, store: Store, host: Host
) -> tuple[dict[str, Any], str]:
    """(the exported file's outputs for validation and test, in its runtime on `host`; a note on the runtime)."""
    columns, machine = {split: resolved.data(split) for split in SPLITS}, _machine(host)
    digests = {split: c.digest for split, c in columns.items()}
    taken = ("outputs", artifact.key, digests, machine, identity(how.runtime, host))
    key, parents = hashlib.sha256(repr(taken).encode()).hexdigest(), {artifact.key: store.digest(artifact)}
    kept = store.find(key, parents)
    if kept is None:

        def build(place: Path, scratch: Path) -> Made:
            task, splits = resolved.task, tuple(columns.values())
            file, stream = file_of(artifact, how), streams.of_fact(artifact.facts)
            given = feeds.of(task, *splits, stream=stream)
            found = jobs.score(file, given, runtime=how.runtime, folder=scratch, host=host)
            for split, arrays in zip(SPLITS, feeds.answered(task, found, *splits, stream=stream), strict=True):
                np.savez(place / f"{split}.npz", **arrays)
            return Made("outputs", {"ran": jobs.ran(scratch, how.runtime)})

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
    return outputs, kept.facts.get("ran", "")


def _machine(host: Host) -> str:
    """The kind of machine and the cores used: big and little cores differ in kernels and times."""
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
    """{id: latency and memory} on `host` with the target's threads, in its runtime. One interleaved job measures all
    files that were not measured so before."""
    how = targets.deployment(target)
    taken, machine = {}, f"{_machine(host)}{identity(how.runtime, host)}"
    name, missing = f"profile-{PRESET}-{target.threads}-{machine}-{probes.timed()}", {}
    for o in [o for o in found if target.name in o.point.targets and o.point.deployment == how]:
        kept = store.observed(o.artifact.key, name)
        if kept is None:
            missing[o.point.id] = o
        else:
            taken[o.point.id] = results.measurements(kept["measurements"])
    if not missing:
        return taken
    plain = target.name == targets.HOST and not host.cores and how == Deployment()
    place = folder / "profile" / f"{PRESET}-{target.threads}{'' if plain else f'-{machine}'}"
    with progress.task(
        f"time {len(missing)} files{'' if host.name == local.host().name else f' on {host.name}'}"
    ) as advance:
        own = {"preset": PRESET, "threads": target.threads, "progress": advance, "target": target, "host": host}
        timed: dict[str, tuple[Measurement, ...]] = {}
        for steps in (False, True):  # what takes a step isn't timed beside what takes a sequence
            few = [o for o in missing.values() if (streams.of_fact(o.artifact.facts) is not None) == steps]
            if few:
                session = jobs.Session(folder=place.with_name(f"{place.name}-steps") if steps else place, **own)
                timed |= jobs.profile({o.point.id: o.file for o in few}, _inputs(resolved, few[0]), session)
    for id, o in missing.items():
        timed[id] = tuple(_of_what(m, o, resolved) for m in timed[id])
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
    """The ratio of `a`'s latency to `b`'s on `host` with the target's threads, measured interleaved; NaN where the A/A
    control excludes 1, or their runtimes differ. A ratio is kept, like all times; an inconclusive one is measured again
    by the next run."""
    device = targets.deployed(target, a.point.deployment)
    incomparable = (streams.of_fact(a.artifact.facts) is None) != (streams.of_fact(b.artifact.facts) is None)
    if device is None or incomparable or a.point.deployment.runtime != b.point.deployment.runtime:
        return math.nan
    machine = f"{_machine(host)}{identity(a.point.deployment.runtime, host)}"
    name = f"pair-{PRESET}-{target.threads}-{machine}-{b.artifact.key}"
    kept = store.observed(a.artifact.key, name)
    if kept is None or kept["ratio"] is None:
        place = folder / "profile" / f"pair-{target.name}-{a.artifact.key[:12]}-{b.artifact.key[:12]}"
        with progress.task(f"time {a.point.id} against {b.point.id}") as advance:
            session = jobs.Session(place, PRESET, target.threads, device, host, advance)
            compared = jobs.compare(b.file, a.file, _inputs(resolved, a), session)
        if compared.verdict == "inconclusive":
            shutil.rmtree(place, ignore_errors=True)  # its finished processes would be taken for those of the next time
            return math.nan
        kept = {"ratio": compared.ratio}
        store.observe(a.artifact.key, name, kept)
    return kept["ratio"][0]


def _inputs(resolved: Resolved, o: Observed) -> Any:
    """{input: samples} that files are timed with; steps of sequences for a file that takes these."""
    return feeds.of(resolved.task, resolved.data("test"), stream=streams.of_fact(o.artifact.facts))


def _of_what(m: Measurement, o: Observed, resolved: Resolved) -> Measurement:
    """A latency of a task of streams with what it is of: a step, or a whole sequence."""
    if resolved.task.stream is None or not m.name.startswith("latency"):
        return m
    of = "of a step" if streams.of_fact(o.artifact.facts) is not None else "of a whole sequence"
    return dataclasses.replace(m, note=_joined(of, m.note))


def _shapes(resolved: Resolved, o: Observed) -> Mapping[str, tuple[int, ...]]:
    """{input: shape of one sample} that a file takes, with an axis of 1 in front."""
    given, stream = _inputs(resolved, o), streams.of_fact(o.artifact.facts)
    if not isinstance(given, Samples):
        return sample_of(given)
    states = {} if stream is None else {name: (1, *shape) for name, shape in stream.shapes.items()}
    return {**given.take(slice(1)).shapes, **states} if states else given.shapes


def _quality(
    outputs: Mapping[str, Any], o: Observed, teacher: Observed | None, split: Split, resolved: Resolved
) -> tuple[Measurement, ...]:
    """The quality of a point's outputs for a split, compared with the teacher's on this machine."""
    beside = None if teacher is None or teacher is o else teacher.outputs[split]
    labels, metrics = resolved.data(split).labels, resolved.task.metrics
    own = {"labels": labels, "metrics": metrics, "output": resolved.task.declared}
    return measure(Subject(outputs=outputs[split], teacher=beside, split=split, **own))


def _joined(*texts: str) -> str:
    return "; ".join(filter(None, texts))


def _of_the_file(o: Observed, teacher: Observed | None, resolved: Resolved, machine: str) -> list[Measurement]:
    """Quality on validation from this machine's outputs, for no target: the choice uses it for targets that this
    machine does not match. The chosen file is then emulated as the target and gated on test."""
    figures = _quality(o.outputs, o, teacher, "validation", resolved)
    told = _joined("this machine's outputs", o.told(""))
    return [dataclasses.replace(m, environment=machine, threads=1, note=_joined(m.note, told)) for m in figures]


def _by_reference(o: Observed, teacher: Observed | None, target: Target, resolved: Resolved) -> list[Measurement]:
    """Quality of a file for a target without a runtime: its outputs in the format's reference runtime, on this
    machine."""
    facts, found = environment.describe(), []
    own = {"target": target.name, "origin": "emulated", "threads": 1, "environment": environment.environment_id(facts)}
    name = o.point.deployment.runtime
    opened = o.told("").removeprefix("in ") or f"{name} {facts['versions'].get(name, '')}".rstrip()
    note = f"{targets.REFERENCE}: {opened} on this machine"
    for split in SPLITS:
        figures = _quality(o.outputs, o, teacher, split, resolved)
        found += [dataclasses.replace(m, **own, note=_joined(note, m.note)) for m in figures]
    return found


def described(
    o: Observed, teacher: Observed | None, timed: Mapping[str, tuple], resolved: Resolved, hosts: Mapping[str, Host]
) -> tuple[Measurement, ...]:
    """All measurements of a file: counted ones once, measured ones for each target whose host has its features."""
    how = o.point.deployment
    wanted = [d for t in resolved.targets if t.name in o.point.targets and (d := targets.deployed(t, how))]
    sample = _shapes(resolved, o)
    found = [*measure(Subject(file=o.file, format=how.format, facts=o.artifact.facts, sample=sample))]
    absent = [t for t in wanted if t.name not in hosts or targets.matches(t, hosts[t.name].facts)]
    if any(map(targets.runs, absent)):
        found += _of_the_file(o, teacher, resolved, environment.environment_id(environment.describe()))
    for target in wanted:
        if target in absent:
            found += (
                of_file.predicted(o.file, target, sample)
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
            found += noted((dataclasses.replace(m, **own) for m in figures), target, facts, also, o.told(target.name))
        if targets.times(target, facts):
            found += noted((dataclasses.replace(m, target=target.name) for m in timed[target.name]), target, facts)
        else:
            found += of_file.predicted(o.file, target, sample)
    return tuple(found)
