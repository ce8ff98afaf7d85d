"""From observed files to a run's folder: the choice on validation, the gate on test, bundles, reports, result.json."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment, intervals, results, targets
from edgekd.decisions import budget, choose, gains
from edgekd.decisions.rules import EMULATED
from edgekd.decisions.shared_file import one_file
from edgekd.delivery import bundle
from edgekd.errors import FAILED, INCONCLUSIVE, PASSED, EnvironmentUnfit, Problem, plain
from edgekd.files import write_atomic
from edgekd.hosts import local
from edgekd.records import Artifact, Candidate, Host, Result, TargetResult, Verdict
from edgekd.report import markdown, page, terminal
from edgekd.run import cross_cpu
from edgekd.run.evaluate import Observed, ratio
from edgekd.run.plan import Plan
from edgekd.run.resolve import Resolved

if TYPE_CHECKING:
    from edgekd.progress import Silent
    from edgekd.store.store import Store

GOLDEN = 8  # samples in a bundle's golden vectors


@dataclass(frozen=True, repr=False)
class Outcome:
    """What a run came to: `exit_code` 0 passed, 1 failed, 3 inconclusive; `verdict` the same in a word; `folder` the
    run's folder; printed: the trade-off table."""

    result: Result
    folder: Path
    exit_code: int
    text: str = ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        chosen = ", ".join(f"{target}: {found.chosen or 'nothing'}" for target, found in self.result.targets.items())
        return plain(
            f"<run of {self.result.task}, {self.verdict}, {len(self.result.candidates)} candidates, chosen {chosen}, "
            f"in {self.folder}>"
        )

    def _repr_html_(self) -> str:
        return page.brief(self.result)

    @property
    def verdict(self) -> Verdict:
        """`pass`, `fail` or `inconclusive`: the worst of the targets; `fail` too where nothing was chosen."""
        return {PASSED: "pass", INCONCLUSIVE: "inconclusive"}.get(self.exit_code, "fail")

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each measurement of each candidate. Raises EnvironmentUnfit where pandas is
        not installed."""
        try:
            import pandas
        except ImportError:
            raise EnvironmentUnfit(Problem("", "pandas is not installed", "pip install pandas")) from None
        chosen = {
            c.id: tuple(t for t, found in self.result.targets.items() if found.chosen == c.id)
            for c in self.result.candidates
        }
        whose = lambda c: {
            "candidate": c.id,
            "point": c.point,
            "seed": c.seed,
            "stages": c.stages,
            "file": c.file,
            "chosen_for": chosen[c.id],
        }
        return pandas.DataFrame(
            [{**whose(c), **dataclasses.asdict(m)} for c in self.result.candidates for m in c.measurements]
        )


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
    boards: Mapping[str, Host] = {},  # noqa: B006  (read only)
) -> Outcome:
    """Chooses, runs the chosen int8 files as the targets' other CPUs, gates, and writes the folder. `text`: the recipe
    as resolved; `boards`: hosts of targets that were at hand."""
    records = {split: {o.point.id: _records(o, split, resolved) for o in observed} for split in ("validation", "test")}
    candidates = [_gained(_candidate(o, plan, made), o, records["test"], resolved) for o in observed]
    references = {o.point.reference: o.point.id for o in reversed(observed) if o.point.reference}
    metrics = {m.name: m for m in resolved.task.metrics}
    teacher = references.get("teacher", "")
    at_hand = {split: _on_boards(observed, split) for split in records}
    proven: dict[str, cross_cpu.Proven] = {}

    def judged(candidate: Candidate, target: str, split: str, point_estimate: bool):
        ours, theirs = records[split][candidate.id], records[split].get(teacher)
        answers = at_hand[split].get((candidate.id, target))
        if answers is None and split == "test" and candidate.id in proven:
            answers = proven[candidate.id].answers.get(target)
        if answers is not None:
            ours, theirs = (
                _executed(answers, resolved, split),
                None if theirs is None else {name: r[answers.rows] for name, r in theirs.items()},
            )
        given = {"records": ours, "teacher": theirs, "metrics": metrics}
        # only the chosen is emulated
        lines = [r for r in budget.rules(resolved.gate, target) if split == "test" or r.name not in EMULATED]
        return budget.judge(lines, candidate, target=target, split=split, point_estimate=point_estimate, **given)

    absent = [t for t in resolved.targets if t.name not in boards]
    if "instructions" in resolved.select.minimize:
        for i, o in enumerate(observed):
            more = cross_cpu.instructions(o, absent, resolved, store, folder, progress)
            candidates[i] = dataclasses.replace(candidates[i], measurements=(*candidates[i].measurements, *more))
    found: dict[str, TargetResult] = {}
    for target in resolved.targets:
        competing = [c for c, o in zip(candidates, observed, strict=True) if target.name in o.point.targets]
        found[target.name] = choose.choose(
            competing,
            target=target.name,
            select=resolved.select,
            within=lambda c, t=target.name: judged(c, t, "validation", True),
            references=[o.point.id for o in observed if o.point.reference == "teacher"],
        )
    first = resolved.task.metrics[0] if resolved.task.metrics else None
    if first is not None and first.unit == "%" and first.better == "higher":
        made_for = {o.point.id: o.point.targets for o in observed}
        fits = lambda c, t: (
            t in made_for[c.id] and all(check.verdict != "fail" for check in judged(c, t, "validation", True))
        )
        by_id, devices = {o.point.id: o for o in observed}, {t.name: t for t in resolved.targets}
        pair = lambda a, b, t: ratio(
            by_id[a.id], by_id[b.id], devices[t], resolved, store, boards.get(t) or local.host(), folder, progress
        )
        found = one_file(candidates, found, first.name, fits, pair)
    for target in resolved.targets:
        result = found[target.name]
        chosen = next((c for c in candidates if c.id == result.chosen), None)
        if chosen is not None and chosen.id not in proven:
            o = next(o for o in observed if o.point.id == chosen.id)
            taught = next((t.outputs["test"] for t in observed if t.point.id == teacher), None)
            proven[chosen.id] = cross_cpu.prove(o, absent, "int8" in chosen.stages, taught, resolved, store, progress)
            more = (
                ()
                if "instructions" in resolved.select.minimize
                else cross_cpu.instructions(o, absent, resolved, store, folder, progress)
            )
            chosen = dataclasses.replace(
                chosen, measurements=(*cross_cpu.added(chosen.measurements, proven[chosen.id]), *more)
            )
            candidates = [chosen if c.id == chosen.id else c for c in candidates]
        checks = judged(chosen, target.name, "test", False) if chosen is not None else ()
        verdict = budget.overall(checks) if chosen is not None else "fail"
        competing = [c for c, o in zip(candidates, observed, strict=True) if target.name in o.point.targets]
        better = gains.labels_did_better(competing, [o.point.id for o in observed if o.point.reference == "alone"])
        untimed = "" if targets.runs(target) else "edgekd has no runtime for this device: nothing is timed"
        reason = "; ".join(filter(None, (result.reason, plan.notes.get(target.name, ""), untimed, better)))
        found[target.name] = dataclasses.replace(result, checks=checks, verdict=verdict, reason=reason)
    machines = [environment.describe(), *(host.facts for host in boards.values())]
    digest = hashlib.sha256(text.encode()).hexdigest()
    run = Result(
        resolved.task.name,
        digest,
        {environment.environment_id(f): dict(f) for f in machines},
        references,
        tuple(candidates),
        found,
        tuple(steps),
    )
    with progress.task("write the folder"):
        run = _write(run, resolved, observed, records["test"], proven, folder)
    codes = [FAILED if t.chosen is None else budget.exit_code([t.verdict] if t.verdict else []) for t in found.values()]
    code = next((c for c in (FAILED, *sorted(codes, reverse=True)) if c in codes), PASSED)
    return Outcome(run, folder, code, terminal.table(run, folder))


def _gained(
    candidate: Candidate, o: Observed, records: Mapping[str, Mapping[str, np.ndarray]], resolved: Resolved
) -> Candidate:
    """A candidate with what its last stage brought, by the task's first metric."""
    if o.point.beside not in records or not resolved.task.metrics:
        return candidate
    metric = resolved.task.metrics[0]
    ours, theirs = records[candidate.id][metric.name], records[o.point.beside][metric.name]
    found = gains.gain(metric, ours, theirs, o.point.beside, environment.environment_id(environment.describe()))
    kept = (found,) if np.isfinite([found.value, found.low, found.high]).all() else ()
    return dataclasses.replace(candidate, measurements=(*candidate.measurements, *kept))


def _executed(answers: cross_cpu.Answers, resolved: Resolved, split: str = "test") -> dict[str, np.ndarray]:
    """{metric: records} of what a file answered as another CPU or on a board, to the samples that it saw there."""
    labels = resolved.data(split).labels
    given = answers.there, None if labels is None else labels[answers.rows]
    return {m.name: np.asarray(m.records(*given), np.float64) for m in resolved.task.metrics}


def _on_boards(observed: Sequence[Observed], split: str) -> dict[tuple[str, str], cross_cpu.Answers]:
    """{(candidate, target): what it answered on the target's board}, to all samples of a split."""
    found = {}
    for o in observed:
        for target, outputs in o.there.items():
            first = next(iter(outputs[split].values())) if isinstance(outputs[split], Mapping) else outputs[split]
            found[o.point.id, target] = cross_cpu.Answers(
                target, "", np.arange(len(first)), o.outputs[split], outputs[split]
            )
    return found


def _records(o: Observed, split: str, resolved: Resolved) -> dict[str, np.ndarray]:
    labels = resolved.data(split).labels
    return {m.name: np.asarray(m.records(o.outputs[split], labels), np.float64) for m in resolved.task.metrics}


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
        "onnx",
        None,
        o.artifact.files["model.onnx"],
        o.measurements,
    )


def _write(
    run: Result,
    resolved: Resolved,
    observed: Sequence[Observed],
    records: Mapping[str, Any],
    proven: Mapping[str, cross_cpu.Proven],
    folder: Path,
) -> Result:
    """Models and predictions of the front, the choice and the references; bundles; reports; result.json last."""
    shown = {id for t in run.targets.values() for id in (*t.front, t.chosen)} | set(run.references.values())
    test, by_id = resolved.data("test"), {o.point.id: o for o in observed}
    for name in ("models", "predictions", "bundles"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    kept = []
    for candidate in run.candidates:
        if candidate.id in shown:
            o, file = by_id[candidate.id], f"models/{candidate.id}.onnx"
            write_atomic(folder / file, o.file.read_bytes())
            path = folder / "predictions" / f"{candidate.id}.npz"
            results.save_predictions(
                path, test.ids, test.digest, o.outputs["test"], records[candidate.id], resolved.task.metrics
            )
            executed = {t: a for (id, t), a in _on_boards(observed, "test").items() if id == candidate.id}
            for target, a in (executed | dict(proven[candidate.id].answers if candidate.id in proven else {})).items():
                theirs = {name: r[a.rows] for name, r in records.get(run.references.get("teacher", ""), {}).items()}
                path = folder / "predictions" / results.executed(candidate.id, target)
                at = [test.ids[i] for i in a.rows]
                results.save_predictions(
                    path, at, test.digest, a.there, _executed(a, resolved), resolved.task.metrics, theirs
                )
            candidate = dataclasses.replace(candidate, file=file)
        kept.append(candidate)
    means = _means(resolved, [records[c.id] for c in kept if c.id in shown])
    run = dataclasses.replace(
        run, candidates=tuple(kept), predictions=results.digests(folder / "predictions"), means=means
    )
    results.write(run, folder / "result.json")
    for target, found in run.targets.items():
        if found.chosen is not None:
            inputs, outputs = golden(by_id[found.chosen], resolved)
            kind = "samples" if resolved.task.shareable else "synthetic"
            before = None if resolved.task.before is None else resolved.task.before()
            bundle.write(
                folder,
                run,
                found.chosen,
                target,
                golden_inputs=inputs,
                golden_outputs=outputs,
                golden=kind,
                before=before,
            )
    markdown.write(folder)
    page.write(folder)
    return run


def _means(resolved: Resolved, records: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """{metric: c} of those that are c times the mean of their records: what a gate can hold to the records without the
    task's code."""
    found = {}
    for metric in resolved.task.metrics:
        times = {intervals.multiple_of_mean(metric, r[metric.name]) for r in records}
        if len(times) == 1 and None not in times:
            found[metric.name] = times.pop()
    return found


def golden(o: Observed, resolved: Resolved) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and what the file answers to them: real samples if the task says that they may be shared, else noise of
    their shape."""
    from edgekd.runtimes.onnxruntime import load

    columns = resolved.data("test")
    arrays = columns.inputs if isinstance(columns.inputs, Mapping) else {resolved.task.inputs[0]: columns.inputs}
    rows = {name: a[:GOLDEN] for name, a in arrays.items()}
    if not resolved.task.shareable:
        rows = {name: _noise(a, i) for i, (name, a) in enumerate(rows.items())}
    return rows, load(str(o.file), 1)(rows)


def _noise(like: np.ndarray, seed: int) -> np.ndarray:
    """Seeded values that tell nothing of the data but its shape and type."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=like.shape).astype(like.dtype)
        if like.dtype.kind == "f"
        else rng.integers(0, 2, like.shape).astype(like.dtype)
    )
