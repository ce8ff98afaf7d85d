"""The verbs `gate` and `report`: they need the folder of a run, or a bundle, and nothing else of the machine that made it."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekd import results, targets
from edgekd.decisions import basis, capacity
from edgekd.decisions import budget as budgets
from edgekd.decisions.budget import Reference, Rule
from edgekd.decisions.rules import COUNTED
from edgekd.delivery import bundle
from edgekd.errors import BaselineError, Problem, UsageError
from edgekd.files import sha256, write_atomic
from edgekd.records import Candidate, Check, Metric, Result, Verdict
from edgekd.report import checks as table
from edgekd.report import machine, markdown, page
from edgekd.report import rows as shown

CHOICE = "chosen"  # the name of the check that there is something to judge


@dataclass(frozen=True)
class Subject:
    """What is judged for one target. `candidate` None: nothing was chosen, for the `reason`. `facts` {environment: facts of the machine}."""

    target: str
    candidate: Candidate | None
    teacher: Reference | None = None
    predictions: results.Predictions | None = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stored: tuple[Check, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Gated:
    """What a gate came to. Prints as the checks and the verdict; `skipped`: rules that were not judged."""

    checks: tuple[Check, ...]
    verdict: Verdict
    exit_code: int
    skipped: tuple[str, ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return self.text


def gate(
    path: Path | str,
    *,
    budget: Path | str | None = None,
    baseline: Path | str | None = None,
    only: Literal["deterministic"] | None = None,
    inconclusive: Literal["fail", "warn"] = "fail",
    why: bool = False,
    junit: Path | str | None = None,
    markdown: Path | str | None = None,
    sarif: Path | str | None = None,
    json: Path | str | None = None,
) -> Gated:
    """Judges what a run chose, or a bundle, by the rules of `budget`, or its own. `markdown` is added to its file, the others replace theirs.

    Raises UsageError for a folder or budget that is wrong, BaselineError where a digest is wrong, or the baseline missing or of another test set."""
    folder = Path(path)
    subjects, tables, place = _bundle(folder, budget) if (folder / bundle.MANIFEST).is_file() else _run(folder, budget)
    if budget is not None:  # a run's own recipe has them already; a target of one's own is not here
        tables = capacity.added(tables, [targets.load(s.target) for s in subjects if s.target in targets.names() and s.target != targets.HOST])
    against = None if baseline is None else _baseline(Path(baseline), [s.target for s in subjects])
    checks: list[Check] = []
    skipped: list[str] = []
    told: list[str] = []
    for subject in subjects:
        rules = budgets.rules(tables, subject.target, place)
        if only == "deterministic":
            kept = tuple(r for r in rules if _counted(r, subject.candidate))
            skipped += [f"{subject.target}: {r.name} {r.text}" for r in rules if r not in kept]
            rules = kept
        for check, text in _judge(subject, rules, against):
            told.append(text)
            checks.append(check)
    if not checks:
        hint = "a budget on file_bytes, macs, parameters or activation_bytes" if skipped else f"[any] or [{subjects[0].target}] of {place}"
        what = "no budget is on counted figures" if skipped else "the budget has no line for these targets"
        raise UsageError(Problem(place, f"{what}: nothing is judged", hint))
    verdict = budgets.overall(checks)
    code = budgets.exit_code([verdict], inconclusive)
    heads = {s.target: s.candidate.id if s.candidate else "nothing chosen" for s in subjects}
    text = table.render(checks, verdict, heads, skipped, told if why else None)
    others = [name for name in tables if name != budgets.ANY and name not in heads]
    if others and budget is not None:
        text += f"\n\nnot judged: {place} also has budgets for {', '.join(others)}, which {folder} is not for"
    if verdict != "pass" and not why:
        same = [*(["--budget", str(budget)] if budget else []), *(["--baseline", str(baseline)] if baseline else [])]
        text += f"\n\nnext: {shlex.join(['edgekd', 'gate', str(folder), *same, '--why'])}"
    gated = Gated(tuple(checks), verdict, code, tuple(skipped), text)
    _machines(gated, junit, markdown, sarif, json)
    return gated


def report(run: Path | str) -> str:
    """Writes RUN/report.html and RUN/report.md again; returns where they are."""
    folder = Path(run)
    if not (folder / "result.json").is_file():
        raise UsageError(Problem(str(folder), "is not the folder of a run: it has no result.json", "for example runs/digits"))
    return "\n".join(str(write(folder)) for write in (page.write, markdown.write))


# ---------------------------------------------------------------- what is judged


def _run(folder: Path, budget: Path | str | None) -> tuple[list[Subject], Mapping[str, Any], str]:
    if not (folder / "result.json").is_file():
        hint = "for example runs/digits, or runs/digits/bundles/host"
        raise UsageError(Problem(str(folder), "is neither the folder of a run (result.json) nor a bundle (manifest.json)", hint))
    result = results.read(folder)
    if not result.targets:
        raise UsageError(Problem(str(folder), "the run has no target"))
    known = {m.name: m.unit for c in result.candidates for m in c.measurements}
    file = folder / "recipe.toml" if budget is None else Path(budget)
    if not file.is_file() and budget is None:
        raise UsageError(Problem(str(folder), "has no recipe.toml to take budgets from", "give one with --budget"))
    if budget is None and sha256(file) != result.recipe_sha256:
        hint = f"other budgets are given with --budget, for example --budget {shlex.quote(str(file))}"
        raise BaselineError(Problem(str(file), "differs from its digest in result.json: not the recipe of this run", hint))
    tables, place = budgets.read(file, {*result.targets, *targets.names()}, known)
    return [_of_run(folder, result, name) for name in result.targets], tables, place


def _of_run(folder: Path, result: Result, target: str) -> Subject:
    found = result.targets[target]
    candidate = next((c for c in result.candidates if c.id == found.chosen), None)
    if candidate is None:
        return Subject(target, None, reason=found.reason)
    file = folder / candidate.file if candidate.file else None
    if file is not None and file.is_file() and sha256(file) != candidate.sha256:
        raise BaselineError(Problem(str(file), "differs from its digest in result.json: not the file that was measured"))
    executed = folder / "predictions" / results.executed(candidate.id, target)
    ours = results.load_predictions(executed) if executed.is_file() else _predictions(folder, candidate.id)
    teacher = next((c for c in result.candidates if c.id == result.references.get("teacher")), None)
    reference = None
    if teacher is not None and executed.is_file():
        reference = Reference(teacher.measurements, results.load_teacher(executed))
    elif teacher is not None:
        theirs = _predictions(folder, teacher.id)
        if ours is not None and theirs is not None:
            _same_test(ours, theirs, f"{folder}/predictions/{teacher.id}.npz", "the candidate")
        reference = Reference(teacher.measurements, {} if theirs is None else theirs.records)
    return Subject(target, candidate, reference, ours, result.environment, found.checks)


def _predictions(folder: Path, id: str) -> results.Predictions | None:
    path = folder / "predictions" / f"{id}.npz"
    return results.load_predictions(path) if path.is_file() else None


def _bundle(folder: Path, budget: Path | str | None) -> tuple[list[Subject], Mapping[str, Any], str]:
    manifest = bundle.read(folder)
    candidate, predictions, teacher = _unpacked(folder, manifest)
    known = {m.name: m.unit for m in manifest.measurements}
    subject = Subject(manifest.target, candidate, None if teacher is None else Reference((), teacher), predictions)
    if budget is not None:
        return [subject], *budgets.read(budget, {manifest.target, *targets.names()}, known)
    place = f"{folder / bundle.MANIFEST}: gate"
    wrong = budgets.problems(manifest.gate, place)
    if wrong or not manifest.gate:
        raise UsageError(*wrong or [Problem(str(folder), "has no budget of its own", "give one with --budget")])
    return [subject], manifest.gate, place


def _unpacked(folder: Path, manifest: bundle.Manifest) -> tuple[Candidate, results.Predictions | None, dict[str, np.ndarray] | None]:
    """A bundle's candidate, its predictions, and the teacher's records."""
    m = manifest
    made = Candidate(m.candidate, m.candidate, 0, (), m.stages, m.form, m.model, m.files[m.model].sha256, m.measurements)
    if "predictions.npz" not in m.files:
        return made, None, None
    path = folder / "predictions.npz"
    return made, results.load_predictions(path), results.load_teacher(path) or None


@dataclass(frozen=True)
class Baseline:
    """A bundle to compare with."""

    path: Path
    target: str
    reference: Reference
    predictions: results.Predictions | None


def _baseline(folder: Path, names: list[str]) -> Baseline:
    """Raises BaselineError whatever is wrong with it."""
    try:
        manifest = bundle.read(folder)
        candidate, predictions, _ = _unpacked(folder, manifest)
    except UsageError as error:
        problems = (Problem(p.place.replace(str(folder), f"baseline {folder}", 1), p.message, p.hint) for p in error.problems)
        raise BaselineError(*problems) from None
    if manifest.target not in names:
        hint = f"give the bundle of {' or '.join(names)}"
        raise BaselineError(Problem(f"baseline {folder}", f"is for {manifest.target}, and what is judged for {', '.join(names)}", hint))
    return Baseline(folder, manifest.target, Reference(candidate.measurements, predictions.records if predictions else {}), predictions)


def _comparable(baseline: Baseline, subject: Subject) -> tuple[Baseline, Subject]:
    """The baseline, once it is found to be of the same test set; without its quality where ours isn't known. Of one test set, an emulator may
    have had time for more samples then than now, and takes them in an order of its own: both are looked at on those that both have."""
    ours = subject.predictions
    if baseline.predictions is None:
        raise BaselineError(Problem(f"baseline {baseline.path}", "keeps no predictions: of which test set it is isn't known"))
    if ours is None:
        return replace(baseline, reference=Reference(tuple(m for m in baseline.reference.measurements if not m.split))), subject
    theirs = baseline.predictions
    both = np.intersect1d(ours.ids, theirs.ids)
    if ours.digest == theirs.digest and len(both) and not np.array_equal(ours.ids, theirs.ids):
        mine, others = (results.of_samples(p, both) for p in (ours, theirs))
        teacher = subject.teacher
        if teacher is not None and teacher.records:
            rows = results.places(ours.ids, both)
            teacher = replace(teacher, records={name: r[rows] for name, r in teacher.records.items()})
        baseline = replace(baseline, reference=replace(baseline.reference, records=others.records), predictions=others)
        subject, ours = replace(subject, predictions=mine, teacher=teacher), mine
    _same_test(ours, baseline.predictions, f"baseline {baseline.path}", "what is judged")
    return baseline, subject


def _same_test(ours: results.Predictions, theirs: results.Predictions, place: str, what: str) -> None:
    if ours.digest != theirs.digest or not np.array_equal(ours.ids, theirs.ids):
        raise BaselineError(Problem(place, f"is of another test set than {what}", "measure both on the same test samples"))


# ---------------------------------------------------------------- judging


def _counted(rule: Rule, candidate: Candidate | None) -> bool:
    origins = {m.origin for m in candidate.measurements if m.name == rule.name} if candidate else set()
    return "counted" in origins or (not origins and rule.name in COUNTED)


def _judge(subject: Subject, rules: tuple[Rule, ...], baseline: Baseline | None) -> list[tuple[Check, str]]:
    """[(check, what it is judged on)] of one target."""
    if subject.candidate is None:
        reason = subject.reason or "no candidate is within the budgets"
        check = Check(subject.target, "", CHOICE, "a candidate within the budgets", "fail", "error", None, None, None, "", None, "", reason)
        return [(check, "")]
    wanting = [r for r in rules if r.versus == "baseline" and r.level == "error"]
    if wanting and baseline is None:
        hint = "--baseline BUNDLE, for example the bundle of the last release"
        raise BaselineError(*(Problem(r.place, f"`{r.text}` compares with a baseline, and none is given", hint) for r in wanting))
    mine = baseline if baseline is not None and baseline.target == subject.target else None
    sampled, metrics = {m.name for m in subject.candidate.measurements if m.split}, _metrics(subject)
    if mine is not None and any(r.versus == "baseline" and r.name in sampled for r in rules):
        mine, subject = _comparable(mine, subject)
    ours = subject.predictions
    found = budgets.judge(
        rules,
        subject.candidate,
        target=subject.target,
        records=ours.records if ours else {},
        teacher=subject.teacher,
        baseline=mine.reference if mine else None,
        metrics=metrics,
    )
    checks = [_remembered(check, rule, subject, metrics) for check, rule in zip(found, rules, strict=True)]
    told = []
    for check, rule in zip(checks, rules, strict=True):
        reference = {"teacher": subject.teacher, "baseline": mine.reference if mine else None}.get(rule.versus or "")
        told.append((check, basis.of(check, rule, subject.candidate, ours.records if ours else {}, reference, subject.facts)))
    return told


def _metrics(subject: Subject) -> dict[str, Metric]:
    """The metrics that are the mean of their records; how another is made is known to its task, whose code isn't run here."""
    if subject.predictions is None or subject.candidate is None:
        return {}
    found = {}
    for name, records in subject.predictions.records.items():
        figures = [m for m in subject.candidate.measurements if m.name == name and m.split == "test" and m.target in (None, subject.target)]
        figure = max(figures, key=lambda m: len(records) == m.n, default=None)  # of the samples that the records are of
        metric = None if figure is None else budgets.as_mean(figure, records, subject.predictions.better.get(name))  # type: ignore[arg-type]
        if metric is not None:
            found[name] = metric
    return found


def _remembered(check: Check, rule: Rule, subject: Subject, metrics: Mapping[str, Metric]) -> Check:
    """A comparison with the teacher by a metric that its task alone can make: as the run itself judged it."""
    if check.verdict != "inconclusive" or check.value is not None or rule.versus != "teacher" or rule.name in metrics:
        return check
    same = [c for c in subject.stored if (c.candidate, c.name, c.rule) == (check.candidate, check.name, check.rule) and c.value is not None]
    return replace(same[0], place=check.place, level=check.level) if same else check


def _machines(gated: Gated, junit: Any, markdown: Any, sarif: Any, json: Any) -> None:
    """Writes what was asked for. Raises UsageError where a file can't be written."""
    record = {"schema": "edgekd.gate/1", **{k: v for k, v in dataclasses.asdict(gated).items() if k != "text"}}
    wanted = [(junit, lambda: machine.junit(gated.checks)), (sarif, lambda: machine.sarif(gated.checks))]
    wanted += [(json, lambda: jsonlib.dumps(record, indent=1) + "\n")]
    for path, text in wanted:
        if path is not None:
            _writing(path, lambda path=path, text=text: write_atomic(path, text().encode()))
    if markdown is not None:
        heading = f"### edgekd gate: {shown.VERDICTS[gated.verdict]}\n\n"

        def append() -> None:
            with open(markdown, "a", encoding="utf-8") as file:
                file.write(heading + machine.summary(gated.checks))

        _writing(markdown, append)


def _writing(path: Any, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise UsageError(Problem(str(path), f"can't be written: {error.strerror}")) from None
