"""The end of a run: choose on validation, emulate the chosen files, gate on test, and write the run's folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd import environment, targets
from edgekd.decisions import budget, choose, gains, quantities
from edgekd.decisions.shared_file import one_file
from edgekd.errors import FAILED, PASSED
from edgekd.hosts import local
from edgekd.records import Artifact, Candidate, Check, Host, Metric, Result, Target, TargetResult
from edgekd.report import terminal
from edgekd.run import cross_cpu, deliver
from edgekd.run.evaluate import Observed, ratio
from edgekd.run.metric_records import Answered, Records, answered
from edgekd.run.outcome import Outcome
from edgekd.run.plan import Plan
from edgekd.run.resolve import Resolved

if TYPE_CHECKING:
    from edgekd.progress import Silent
    from edgekd.store.store import Store


def conclude(
    resolved: Resolved,
    plan: Plan,
    made: Mapping[str, Artifact],
    steps: Sequence[Mapping],
    observed: Sequence[Observed],
    folder: Path,
    text: str,
    store: Store,
    progress: Silent,
    boards: Mapping[str, Host] = {},
) -> Outcome:
    """Chooses, runs the chosen int8 files as the targets' other CPUs, gates, and writes the folder. `text`: the recipe
    as resolved; `boards`: hosts of targets whose board is connected."""
    work = _Work(resolved, observed, boards, store, folder, progress)
    known = answered(resolved, observed, work.references.get("teacher", ""))
    candidates = [_candidate(o, plan, made) for o in observed]
    candidates = [_gained(c, o, known.here["test"], resolved) for c, o in zip(candidates, observed, strict=True)]
    if work.counts_all:
        candidates = [work.counted(c) for c in candidates]
    found = work.one_file(candidates, {t.name: work.choose(candidates, t, known) for t in resolved.targets}, known)
    proven = {id: work.prove(id, candidates) for id in dict.fromkeys(r.chosen for r in found.values()) if id}
    candidates = [work.added(c, proven[c.id]) if c.id in proven else c for c in candidates]
    known = dataclasses.replace(known, proven=proven)
    found = {t.name: work.judged(found[t.name], candidates, t, plan, known) for t in resolved.targets}
    machines = [environment.describe(), *(host.facts for host in boards.values())]
    run = Result(
        task=resolved.task.name,
        recipe_sha256=hashlib.sha256(text.encode()).hexdigest(),
        environment={environment.environment_id(f): dict(f) for f in machines},
        references=work.references,
        candidates=tuple(candidates),
        targets=found,
        steps=tuple(steps),
    )
    with progress.task("write the folder"):
        run = deliver.write(run, known, observed, folder)
    return Outcome(run, folder, _exit_code(found), terminal.table(run, folder))


def _exit_code(found: Mapping[str, TargetResult]) -> int:
    """The worst of the targets: failed before inconclusive before passed."""
    codes = [FAILED if t.chosen is None else budget.exit_code([t.verdict] if t.verdict else []) for t in found.values()]
    return next((c for c in (FAILED, *sorted(codes, reverse=True)) if c in codes), PASSED)


@dataclass(frozen=True)
class _Work:
    """The inputs of every step below, read only."""

    resolved: Resolved
    observed: Sequence[Observed]
    boards: Mapping[str, Host]
    store: Store
    folder: Path
    progress: Silent

    @property
    def references(self) -> dict[str, str]:
        """{teacher or alone: candidate}."""
        return {o.point.reference: o.point.id for o in reversed(self.observed) if o.point.reference}

    @property
    def absent(self) -> list[Target]:
        """The targets whose board is not connected."""
        return [t for t in self.resolved.targets if t.name not in self.boards]

    @property
    def counts_all(self) -> bool:
        """Whether the instructions of every candidate are counted: only where the choice depends on them."""
        return "instructions" in self.resolved.select.minimize

    def of(self, id: str) -> Observed:
        return next(o for o in self.observed if o.point.id == id)

    def competing(self, candidates: Sequence[Candidate], target: str) -> list[Candidate]:
        return [c for c, o in zip(candidates, self.observed, strict=True) if target in o.point.targets]

    def counted(self, candidate: Candidate) -> Candidate:
        """The candidate with its instructions per inference, on targets that can be emulated."""
        o = self.of(candidate.id)
        more = cross_cpu.instructions(o, self.absent, self.resolved, self.store, self.folder, self.progress)
        return _with(candidate, more)

    def checks(
        self, candidate: Candidate, target: str, split: str, known: Answered, point_estimate: bool = False
    ) -> tuple[Check, ...]:
        ours, theirs = known.of(candidate.id, target, split)
        # only the chosen is emulated
        early = lambda rule: split != "test" and quantities.has_origin(rule.name, "emulated")
        rules = [r for r in budget.rules(self.resolved.gate, target) if not early(r)]
        return budget.judge(
            rules,
            candidate,
            target=target,
            split=split,
            point_estimate=point_estimate,
            records=ours,
            teacher=theirs,
            metrics={m.name: m for m in self.resolved.task.metrics},
        )

    def choose(self, candidates: Sequence[Candidate], target: Target, known: Answered) -> TargetResult:
        """The choice for a target, from the validation split alone."""
        return choose.choose(
            self.competing(candidates, target.name),
            target=target.name,
            select=self.resolved.select,
            within=lambda c: self.checks(c, target.name, "validation", known, point_estimate=True),
            references=[o.point.id for o in self.observed if o.point.reference == "teacher"],
        )

    def one_file(
        self, candidates: Sequence[Candidate], found: Mapping[str, TargetResult], known: Answered
    ) -> Mapping[str, TargetResult]:
        """One file for all targets, where no target loses more than its tolerance."""
        first = next(iter(self.resolved.task.metrics), None)
        if first is None or first.unit != "%" or first.better != "higher":
            return found

        def fits(candidate: Candidate, target: str) -> bool:
            if target not in self.of(candidate.id).point.targets:
                return False
            return all(c.verdict != "fail" for c in self.checks(candidate, target, "validation", known, True))

        def pair(a: Candidate, b: Candidate, target: str) -> object:
            device = next(t for t in self.resolved.targets if t.name == target)
            host = self.boards.get(target) or local.host()
            ours, theirs = self.of(a.id), self.of(b.id)
            return ratio(ours, theirs, device, self.resolved, self.store, host, self.folder, self.progress)

        return one_file(candidates, found, first.name, fits, pair)

    def prove(self, id: str, candidates: Sequence[Candidate]) -> cross_cpu.Proven:
        """The results of emulating a chosen file, on the test split."""
        int8 = any("int8" in c.stages for c in candidates if c.id == id)
        teacher = next((o.outputs["test"] for o in self.observed if o.point.id == self.references.get("teacher")), None)
        return cross_cpu.prove(self.of(id), self.absent, int8, teacher, self.resolved, self.store, self.progress)

    def added(self, chosen: Candidate, proven: cross_cpu.Proven) -> Candidate:
        """A chosen candidate with the measurements of emulation and its instruction counts."""
        told = dataclasses.replace(chosen, measurements=cross_cpu.added(chosen.measurements, proven))
        return told if self.counts_all else self.counted(told)

    def judged(
        self, result: TargetResult, candidates: Sequence[Candidate], target: Target, plan: Plan, known: Answered
    ) -> TargetResult:
        """The verdict on a target's choice, from the test split, with notes."""
        chosen = next((c for c in candidates if c.id == result.chosen), None)
        checks = () if chosen is None else self.checks(chosen, target.name, "test", known)
        alone = [o.point.id for o in self.observed if o.point.reference == "alone"]
        reasons = (
            result.reason,
            plan.notes.get(target.name, ""),
            "" if targets.runs(target) else "edgekd has no runtime for this device: no latency is measured",
            gains.labels_did_better(self.competing(candidates, target.name), alone),
        )
        verdict = "fail" if chosen is None else budget.overall(checks)
        return dataclasses.replace(result, checks=checks, verdict=verdict, reason="; ".join(filter(None, reasons)))


def _with(candidate: Candidate, more: Sequence) -> Candidate:
    return dataclasses.replace(candidate, measurements=(*candidate.measurements, *more))


def _gained(candidate: Candidate, o: Observed, records: Mapping[str, Records], resolved: Resolved) -> Candidate:
    """A candidate with the gain of its last stage in the task's first metric."""
    if o.point.beside not in records or not resolved.task.metrics:
        return candidate
    metric: Metric = resolved.task.metrics[0]
    ours, theirs = records[candidate.id][metric.name], records[o.point.beside][metric.name]
    found = gains.gain(metric, ours, theirs, o.point.beside, environment.environment_id(environment.describe()))
    return _with(candidate, (found,) if np.isfinite([found.value, found.low, found.high]).all() else ())


def _candidate(o: Observed, plan: Plan, made: Mapping[str, Artifact]) -> Candidate:
    source = made[plan.steps[o.point.export].source]
    form = {"quantized": "int8", "weight_only": f"int{source.facts.get('bits')}_weights"}.get(source.form, "float32")
    stages = (*o.point.stages, form)
    return Candidate(
        o.point.id,
        o.point.point,
        o.point.seed,
        o.point.parents,
        stages,
        o.point.deployment.format,
        None,
        o.artifact.files[o.file.name],
        o.measurements,
        o.point.deployment.runtime,
    )
