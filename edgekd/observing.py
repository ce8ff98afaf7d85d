"""Observes the exported files of a plan: what they answer, what they cost, how long they take. What was measured once is kept beside the
artifact in the store and not taken again, so that a choice does not flip on resume."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import calibrating, environment, measure, targets
from edgekd.plan import Plan, Point
from edgekd.probes import memory, quality, static
from edgekd.records import Artifact, Made, Measurement
from edgekd.resolving import Resolved
from edgekd.store import Store

if TYPE_CHECKING:
    from edgekd.report.progress import Silent

SPLITS = ("validation", "test")
PRESET = "quick"


@dataclass(frozen=True)
class Observed:
    """A point whose file was exported: the file, what it answers per split (array or {name: array}), all that is known about it."""

    point: Point
    artifact: Artifact
    outputs: Mapping[str, Any]
    measurements: tuple[Measurement, ...] = ()

    @property
    def file(self) -> Path:
        return self.artifact.folder / "model.onnx"


def observe(resolved: Resolved, plan: Plan, made: Mapping[str, Artifact], store: Store, folder: Path, progress: Silent) -> list[Observed]:
    """Every exported point with its measurements for each of its targets."""
    machine = environment.environment_id(environment.describe())
    points = [p for p in plan.points if p.export in made]
    with progress.task("score the files") as advance:
        found = []
        for number, point in enumerate(points, 1):
            found.append(Observed(point, made[point.export], answers(point, made[point.export], resolved, store, machine, folder)))
            advance(number, len(points), point.id)
    timings = times(found, resolved, store, machine, folder, progress)
    teacher = next((o for o in found if o.point.reference == "teacher"), None)
    return [dataclasses.replace(o, measurements=_all(o, teacher, timings[o.point.id], resolved, machine)) for o in found]


def answers(point: Point, artifact: Artifact, resolved: Resolved, store: Store, machine: str, folder: Path) -> dict[str, Any]:
    """What the exported file answers to validation and test, in its runtime on this machine."""
    columns = {split: resolved.data(split) for split in SPLITS}
    identity = ("outputs", artifact.key, {split: c.digest for split, c in columns.items()}, machine)
    key, parents = hashlib.sha256(repr(identity).encode()).hexdigest(), {artifact.key: store.digest(artifact)}
    kept = store.find(key, parents)
    if kept is None:

        def build(place: Path, scratch: Path) -> Made:
            parts = [c.inputs if isinstance(c.inputs, Mapping) else {resolved.task.inputs[0]: c.inputs} for c in columns.values()]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            answered = measure.score(artifact.folder / "model.onnx", joined, threads=1, folder=scratch)
            first = len(columns[SPLITS[0]])
            for split, rows in zip(SPLITS, (slice(0, first), slice(first, None)), strict=True):
                np.savez(place / f"{split}.npz", **{name: array[rows] for name, array in answered.items()})
            return Made("outputs", {})

        kept = store.make(key, stage="outputs", settings={}, seed=None, inputs={"source": (artifact.key,)}, parents=parents, build=build)
    outputs = {}
    for split in SPLITS:
        with np.load(kept.folder / f"{split}.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        outputs[split] = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    return outputs


def times(found: Sequence[Observed], resolved: Resolved, store: Store, machine: str, folder: Path, progress: Silent) -> dict[str, dict[int, tuple]]:
    """{id: {threads: latency and memory}}: one interleaved job per number of threads for all files that were not timed on this machine yet."""
    columns, taken = resolved.data("test"), {o.point.id: {} for o in found}
    inputs = columns.inputs if isinstance(columns.inputs, Mapping) else {resolved.task.inputs[0]: columns.inputs}
    for threads in sorted({t.threads for t in resolved.targets if targets.runs(t)}):
        name = f"profile-{PRESET}-{threads}-{machine}"
        missing = {}
        for o in found:
            kept = store.observed(o.artifact.key, name)
            if kept is None:
                missing[o.point.id] = o
            else:
                taken[o.point.id][threads] = tuple(Measurement(**m) for m in kept["measurements"])
        if not missing:
            continue
        place = folder / "profile" / f"{PRESET}-{threads}"
        with progress.task(f"time {len(missing)} files") as advance:
            models = {id: o.file for id, o in missing.items()}
            timed = measure.profile(models, inputs, preset=PRESET, threads=threads, folder=place, progress=advance)
        for id, o in missing.items():
            store.observe(o.artifact.key, name, {"measurements": [dataclasses.asdict(m) for m in timed[id]]})
            taken[id][threads] = timed[id]
    return taken


def _saturable(artifact: Artifact) -> tuple[Measurement, ...]:
    """How many layers of an int8 file can saturate on x86 with AVX2 and without VNNI, by its weights; what samples showed is in the note."""
    layers = artifact.facts.get("saturation")
    if layers is None:
        return ()
    most = max((layer["changed"] or 0.0 for layer in layers), default=0.0)
    note = f"up to {100 * most:.2g} % of a layer's outputs change" if layers else ""
    return (Measurement("saturable_layers", "", len(layers), len(layers), len(layers), 1, None, None, "counted", note=note),)


def _of_the_file(o: Observed, teacher: Observed | None, resolved: Resolved, machine: str) -> list[Measurement]:
    """Quality on validation by this machine's answers, as no target's: what a choice goes by for targets that this machine is none of. What the
    chosen file answers there is emulated, and judged on test."""
    reference = None if teacher is None or teacher is o else teacher.outputs["validation"]
    figures = quality.measure(
        o.outputs["validation"], resolved.data("validation").labels, resolved.task.metrics, teacher=reference, split="validation"
    )
    return [dataclasses.replace(m, environment=machine, threads=1, note=m.note or "this machine's answers") for m in figures]


def _all(o: Observed, teacher: Observed | None, timed: Mapping[int, tuple], resolved: Resolved, machine: str) -> tuple[Measurement, ...]:
    """Counted figures once; measured ones for each target whose features this machine has."""
    facts = environment.describe()
    found = [*static.measure(o.file), *memory.measure(o.file), *_saturable(o.artifact)]
    if any(targets.matches(t, facts) for t in resolved.targets if t.name in o.point.targets):
        found += _of_the_file(o, teacher, resolved, machine)
    for target in resolved.targets:
        if target.name not in o.point.targets:
            continue
        if targets.matches(target, facts):
            found += calibrating.predicted(o.file, target)
            continue
        for split in SPLITS:
            columns = resolved.data(split)
            reference = None if teacher is None or teacher is o else teacher.outputs[split]
            figures = quality.measure(o.outputs[split], columns.labels, resolved.task.metrics, teacher=reference, split=split)
            more = targets.surplus(target, facts)
            note = f"on a machine that also has {', '.join(more)}" if more else ""
            found += [dataclasses.replace(m, target=target.name, environment=machine, threads=1, note=m.note or note) for m in figures]
        if targets.surplus(target, facts):  # a machine with more would show the time of other kernels
            found += calibrating.predicted(o.file, target)
        else:
            found += [dataclasses.replace(m, target=target.name) for m in timed[target.threads]]
    return tuple(found)
