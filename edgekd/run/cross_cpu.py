"""The same score on every CPU, executed: an int8 file runs under the instruction set of each target that this machine
has more than, by emulation, and what it answers there is held against what it answers here."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment, intervals, probes, results, targets
from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.files import sha256
from edgekd.hosts import counter, emulator
from edgekd.inputs import named
from edgekd.measure import instructions as counts
from edgekd.measure import jobs
from edgekd.measure.folders import identity
from edgekd.measure.machine import noted
from edgekd.probes import other_cpus, quality
from edgekd.records import Made, Measurement, Metric, Target

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.progress import Silent
    from edgekd.run.evaluate import Observed
    from edgekd.run.resolve import Resolved
    from edgekd.store.store import Store

SECONDS = 90.0  # that a file runs under one instruction set: as many samples as fit


@dataclass(frozen=True)
class Answers:
    """What a file answers here and as `target`, to the same `rows` of a split, in the same order. `kernels`: which the
    CPU can reach, as text."""

    target: str
    cpu: str
    rows: np.ndarray
    here: np.ndarray
    there: np.ndarray
    kernels: str = ""


def devices(wanted: Sequence[Target]) -> list[Target]:
    """Those of the targets that only emulation can stand for here: this machine is another, or has kernels that they
    have not."""
    facts = environment.describe()
    return [t for t in wanted if t.emulated_as and (targets.matches(t, facts) or targets.surplus(t, facts))]


def executed(
    wanted: Mapping[str, tuple[Target, Mapping[str, Any]]],
    order: np.ndarray,
    here: np.ndarray,
    answer: Callable[[Target, Mapping[str, Any]], np.ndarray],
    advance: Callable[[int, int, str], None],
    say: Callable[[str], None] | None = None,
) -> list[Answers]:
    """Runs a file as each of the targets, {name: (target, its launch)}; targets with the same CPU share one run.
    `answer` gives what the file answers to the samples in `order`, or to the first of them; `here` is this machine's,
    in the same order. A target whose run takes too long is left out, where `say` can be told so."""
    taken: dict[tuple, np.ndarray] = {}
    found = []
    for number, (name, (target, launch)) in enumerate(wanted.items(), 1):
        cpu = (target.architecture, target.emulated_as)
        try:
            if cpu not in taken:
                taken[cpu] = answer(target, launch)
        except EnvironmentUnfit as error:
            if say is None:
                raise
            say(f"not run as {name}: {error}")
            continue
        there, stands = (
            taken[cpu],
            target.core is not None and target.core != target.emulated_as and target.architecture == "aarch64",
        )
        kernels = "; ".join(
            filter(None, (f"a stand-in for {target.core}" if stands else "", launch.get("kernels", "")))
        )
        found.append(Answers(name, target.emulated_as or "", order[: len(there)], here[: len(there)], there, kernels))
        advance(number, len(wanted), name)
    return found


def launches(wanted: Sequence[Target]) -> tuple[dict[str, tuple[Target, dict[str, Any]]], list[Problem]]:
    """({name: (target, its launch)}, why the others can't be emulated: targets with the same reason in one problem)."""
    found, reasons = {}, {}
    for target in wanted:
        try:
            found[target.name] = (target, emulator.launch(target))
        except EnvironmentUnfit as error:
            for p in error.problems:
                reasons.setdefault((p.message, p.hint), []).append(target.name)
    return found, [Problem(f"target {', '.join(names)}", message, hint) for (message, hint), names in reasons.items()]


@dataclass(frozen=True)
class Proven:
    """What emulation showed of a file: {target: measurements} for the targets it is for, and {target: what it answered}
    for those alone that this machine doesn't stand for: it is another, or was answered otherwise."""

    measurements: Mapping[str, tuple[Measurement, ...]] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)


def prove(
    o: Observed, absent: Sequence[Target], int8: bool, teacher: Any, resolved: Resolved, store: Store, progress: Silent
) -> Proven:
    """Of a file on the test split: what emulation showed for its targets, and the spread over all targets of the
    recipe. Where there is no emulator, that is said. `absent`: the targets whose board is not at hand. A float file is
    run only as CPUs of another make; `teacher`: the teacher's outputs, or None."""
    columns = resolved.data("test")
    here = o.outputs["test"]
    facts = environment.describe()
    wanted = [t for t in devices(_taking(absent, o)) if int8 or targets.matches(t, facts)]
    if isinstance(here, Mapping) or not wanted:
        return Proven()
    inputs = named(columns.inputs, resolved.task.inputs[0])
    order = np.random.default_rng(0).permutation(len(columns))
    mixed = {name: a[order] for name, a in inputs.items()}
    ready, problems = launches(wanted)
    for problem in problems:
        progress.say(f"not run: {problem}")
    with progress.task(f"run {o.point.id} as other CPUs") as advance:
        answer = lambda target, launch: _kept(o, target, launch, mixed, columns.digest, store)
        found = executed(ready, order, here[order], answer, advance, progress.say)
    boards = [
        Answers(t, f"the board of {t}", order, here[order], outputs["test"][order]) for t, outputs in o.there.items()
    ]
    made = figures(found, columns.labels, resolved.task.metrics, teacher, boards)
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
    """Those of the targets that take such a file, with the runtime that opens it."""
    return [d for t in wanted if (d := targets.deployed(t, o.point.deployment)) is not None]


def _same(a: Answers) -> bool:
    """Whether each answer (class, or number) is this machine's."""
    if a.here.ndim == 2 and a.here.shape[1] > 1:
        return bool((a.here.argmax(1) == a.there.argmax(1)).all())
    return bool((a.here == a.there).all())


def counted(
    ready: Mapping[str, tuple[Target, Mapping[str, Any]]],
    work: Callable[[Target, Mapping[str, Any]], Sequence[Measurement]],
    progress: Silent,
) -> dict[str, tuple[Measurement, ...]]:
    """{target: instructions of an inference}, by `work` once per ARM core; where nothing can count, that is said."""
    taken: dict[str, tuple[Measurement, ...]] = {}
    arm = {name: pair for name, pair in ready.items() if pair[0].architecture == "aarch64"}
    if not arm:
        return {}
    try:
        with progress.task("count instructions") as advance:
            for number, (name, (target, launch)) in enumerate(arm.items(), 1):
                core = target.emulated_as or ""
                if core not in taken:
                    taken[core] = tuple(work(target, launch))
                advance(number, len(arm), name)
    except EnvironmentUnfit as error:
        progress.say(f"instructions are not counted: {error}")
    return {
        name: tuple(replace(m, target=name) for m in taken.get(t.emulated_as or "", ())) for name, (t, _) in arm.items()
    }


def instructions(
    o: Observed, absent: Sequence[Target], resolved: Resolved, store: Store, folder: Path, progress: Silent
) -> tuple[Measurement, ...]:
    """Instructions of an inference of the file on each of its ARM targets, counted once per core and kept in the store.
    Why nothing can be run as a target is said by `prove`."""
    absent = _taking(absent, o)
    wanted = [t for t in devices(absent) if t.name in o.point.targets and t.architecture == "aarch64"]
    ready, columns = launches(wanted)[0], resolved.data("test")
    inputs = named(columns.inputs, resolved.task.inputs[0])

    def work(target: Target, launch: Mapping[str, Any]) -> Sequence[Measurement]:
        counted_as = (
            "count",
            counts.INFERENCES,
            columns.digest,
            target.emulated_as,
            launch.get("identity", ""),
            sha256(counter.SOURCE),
            identity(o.point.deployment.runtime),
        )
        name = hashlib.sha256(repr(counted_as).encode()).hexdigest()[:32]
        kept = store.observed(o.artifact.key, f"count-{name}")
        if kept is not None:
            return results.measurements(kept["measurements"])
        few = {n: a[: jobs.ROWS] for n, a in inputs.items()}
        place = folder / "profile" / f"count-{o.artifact.key[:12]}-{target.emulated_as}"
        found = counts.count(o.file, few, launch, place, runtime=o.point.deployment.runtime).measurements
        store.observe(o.artifact.key, f"count-{name}", {"measurements": [asdict(m) for m in found]})
        return found

    return tuple(m for figures in counted(ready, work, progress).values() for m in figures)


def added(measured: Sequence[Measurement], proven: Proven) -> tuple[Measurement, ...]:
    """A candidate's measurements and what emulation showed. Where a target's answers are others than this machine's,
    what was taken of them on the test split here is none of the target's, and goes."""
    kept = [m for m in measured if not (m.target in proven.answers and m.split == "test" and m.origin == "measured")]
    return (*kept, *(m for figures in proven.measurements.values() for m in figures))


def _kept(
    o: Observed, device: Target, launch: Mapping[str, Any], inputs: Mapping[str, np.ndarray], digest: str, store: Store
) -> np.ndarray:
    """The file's answers as `device`, taken once and kept in the store."""
    machine, ran = environment.environment_id(environment.describe()), identity(o.point.deployment.runtime)
    taken = repr(
        ("emulated", o.artifact.key, digest, device.emulated_as, launch.get("identity", ""), machine, SECONDS, ran)
    )
    key, parents = hashlib.sha256(taken.encode()).hexdigest(), {o.artifact.key: store.digest(o.artifact)}
    kept = store.find(key, parents)
    if kept is None:

        def build(place: Path, scratch: Path) -> Made:
            runtime = o.point.deployment.runtime
            asked = {"runtime": runtime, "folder": scratch, "launch": launch, "cap_s": SECONDS}
            (answered,) = jobs.score(o.file, inputs, **asked).values()
            np.save(place / "outputs.npy", answered, allow_pickle=False)
            return Made("outputs", {"samples": len(answered)})

        kept = store.make(
            key,
            stage="outputs",
            settings={},
            seed=None,
            inputs={"source": (o.artifact.key,)},
            parents=parents,
            build=build,
        )
    return np.load(kept.folder / "outputs.npy", allow_pickle=False)


def figures(
    found: Sequence[Answers],
    labels: np.ndarray | None,
    metrics: Sequence[Metric],
    teacher: np.ndarray | None = None,
    boards: Sequence[Answers] = (),
) -> dict[str, tuple[Measurement, ...]]:
    """{target: measurements}, all `emulated`: the metrics, with a `teacher`'s outputs also fidelity; host_agreement,
    the share of answers that are this machine's (equal_outputs, the share of numbers, where the answers are no
    classes); and target_spread, the greatest difference in the first metric between this machine and all targets, those
    that answered on their `boards` among them, on the samples that all of them saw (under "" as well).

    Agreement and spread are exact for their samples; the spread's note has the 95 % interval, simultaneous over the
    pairs, of the difference on all data."""
    spread, made = _spread([*found, *boards] if found else (), labels, metrics), {}
    for a in found:
        same = float((a.here == a.there).mean())
        cpu = f"{a.cpu} ({a.kernels})" if a.kernels else a.cpu
        note = (
            f"as {cpu}: {'all outputs equal' if same == 1 else f'{100 * same:.2f} % of the outputs equal'} to this "
            "machine's"
        )
        note += "" if same == 1 else f", the others within {_apart(a):.2g}"
        truth, names = None if labels is None else labels[a.rows], {metric.name for metric in metrics}
        there = probes.Subject(outputs=a.there, labels=truth, metrics=metrics, split="test")
        told = probes.measure(replace(there, teacher=None if teacher is None else teacher[a.rows]))
        same_answers = quality.agreement(replace(there, teacher=a.here))
        taken = [m for m in told if teacher is not None or m.name in names]
        share = 100 * same if same_answers is None else same_answers.value
        # answers that nobody said to be classes: how many of the numbers are the same
        own = other_cpus.EQUAL if same_answers is None else other_cpus.HOST_AGREEMENT
        taken.append(probes.figure(own, share, n=len(a.there), split="test"))
        made[a.target] = (*(replace(m, target=a.target, origin="emulated", note=note) for m in taken), *spread)
    return {"": spread, **made} if made else {}


def _apart(a: Answers) -> float:
    """The greatest difference between an output here and there."""
    return float(np.abs(np.asarray(a.there, np.float64) - a.here).max())


def _spread(found: Sequence[Answers], labels: np.ndarray | None, metrics: Sequence[Metric]) -> tuple[Measurement, ...]:
    if not found or labels is None or not metrics:
        return ()
    one = {a.cpu: a for a in reversed(found)}  # targets with one CPU have one answer
    found = [a for a in found if one[a.cpu] is a]
    metric, n = metrics[0], min(len(a.rows) for a in found)
    rows = found[0].rows[:n]  # all go through the samples in one order
    records: dict[str, Any] = {"here": metric.records(found[0].here[:n], labels[rows])}
    records |= {a.target: metric.records(a.there[:n], labels[rows]) for a in found}
    values = {name: intervals.figure(metric.value, np.asarray(r, np.float64)) for name, r in records.items()}
    if not np.isfinite(list(values.values())).all():  # so few samples may have none of a class
        return ()
    pairs = list(itertools.combinations(records.values(), 2))
    limits = [intervals.paired_of(metric, a, b, 1 - 0.05 / len(pairs)) for a, b in pairs]
    widest = max(max(abs(low), abs(high)) for _, low, high in limits)
    spread = max(values.values()) - min(values.values())
    unit = "pt" if metric.unit == "%" else metric.unit
    text = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    note = f"{metric.name} {text}; on all data at most {widest:.2g} {unit} (95 %)"
    return (probes.figure(other_cpus.SPREAD, spread, n=n, unit=unit, split="test", note=note),)
