"""The verbs `gate` and `report`: they need the folder of a run, or a bundle, and nothing else of the machine that made
it."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekd import results, targets
from edgekd.decisions import budget as budgets
from edgekd.decisions import capacity, judged_on
from edgekd.decisions.budget import Rule
from edgekd.decisions.rules import COUNTED
from edgekd.delivery import bundle
from edgekd.errors import BaselineError, Problem, UsageError
from edgekd.files import sha256, write_atomic
from edgekd.records import Candidate, Check, Verdict
from edgekd.report import checks as table
from edgekd.report import machine, markdown, page
from edgekd.report import rows as shown
from edgekd.run import baseline as baselines
from edgekd.run import evidence
from edgekd.run.baseline import Baseline
from edgekd.run.evidence import Subject

CHOICE = "chosen"  # the name of the check that there is something to judge


@dataclass(frozen=True)
class Gated:
    """What a gate came to. Prints as the checks and the verdict; `skipped`: rules that were not judged; `notes`: what
    could not be verified."""

    checks: tuple[Check, ...]
    verdict: Verdict
    exit_code: int
    skipped: tuple[str, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()

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
    """Judges what a run chose, or a bundle, by the rules of `budget`, or its own. `markdown` is added to its file, the
    others replace theirs.

    Raises UsageError for a folder or budget that is wrong, BaselineError where a digest is wrong or evidence
    contradicts a figure, or the baseline is missing or of another test set."""
    folder = Path(path)
    subjects, tables, place = _bundle(folder, budget) if (folder / bundle.MANIFEST).is_file() else _run(folder, budget)
    if budget is not None:  # a run's own recipe has them already; a target of one's own is not here
        tables = capacity.added(
            tables,
            [targets.load(s.target) for s in subjects if s.target in targets.names() and s.target != targets.HOST],
        )
    against = None if baseline is None else baselines.read(Path(baseline), [s.target for s in subjects])
    checks: list[Check] = []
    skipped: list[str] = []
    told: list[str] = []
    for subject in subjects:
        rules = budgets.rules(tables, subject.target, place)
        if only == "deterministic":
            kept = tuple(r for r in rules if _counted(r, subject.candidate))
            skipped += [f"{subject.target}: {r.name} {r.text}" for r in rules if r not in kept]
            rules = kept
        for check, text in _judge(subject, rules, against, budget is not None):
            told.append(text)
            checks.append(check)
    if not checks:
        hint = (
            "a budget on file_bytes, macs, parameters or activation_bytes"
            if skipped
            else f"[any] or [{subjects[0].target}] of {place}"
        )
        what = "no budget is on counted figures" if skipped else "the budget has no line for these targets"
        raise UsageError(Problem(place, f"{what}: nothing is judged", hint))
    verdict = budgets.overall(checks)
    code = budgets.exit_code([verdict], inconclusive)
    heads = {s.target: s.candidate.id if s.candidate else "nothing chosen" for s in subjects}
    text = table.render(checks, verdict, heads, skipped, told if why else None)
    others = [name for name in tables if name != budgets.ANY and name not in heads]
    if others and budget is not None:
        text += f"\n\nnot judged: {place} also has budgets for {', '.join(others)}, which {folder} is not for"
    if verdict != "pass" and not why and any(s.candidate for s in subjects):
        same = [*(["--budget", str(budget)] if budget else []), *(["--baseline", str(baseline)] if baseline else [])]
        text += f"\n\nnext: {shlex.join(['edgekd', 'gate', str(folder), *same, '--why'])}"
    notes = (evidence.UNVERIFIED,) if any(s.stored is None for s in subjects) else ()
    text += "".join(f"\n\nnote: {note}" for note in notes)
    gated = Gated(tuple(checks), verdict, code, tuple(skipped), text, notes)
    _machines(gated, junit, markdown, sarif, json)
    return gated


def report(run: Path | str) -> str:
    """Writes RUN/report.html and RUN/report.md again; returns where they are, and what is missing or can't be verified.

    Raises UsageError for what is no run, BaselineError where its evidence contradicts its figures."""
    folder = Path(run)
    if not (folder / "result.json").is_file():
        raise UsageError(
            Problem(str(folder), "is not the folder of a run: it has no result.json", "for example runs/digits")
        )
    result = results.read(folder)
    subjects = evidence.of_run(folder, result)
    told = [
        f"note: {file} is missing: figures that rest on it can't be verified"
        for s in subjects
        for file in s.missing.values()
    ]
    told += [] if result.predictions is not None else [f"note: {evidence.UNVERIFIED}"]
    return "\n".join([*(str(write(folder)) for write in (page.write, markdown.write)), *dict.fromkeys(told)])


# ---------------------------------------------------------------- what is judged


def _run(folder: Path, budget: Path | str | None) -> tuple[list[Subject], Mapping[str, Any], str]:
    if not (folder / "result.json").is_file():
        hint = "for example runs/digits, or runs/digits/bundles/host"
        raise UsageError(
            Problem(str(folder), "is neither the folder of a run (result.json) nor a bundle (manifest.json)", hint)
        )
    result = results.read(folder)
    if not result.targets:
        raise UsageError(Problem(str(folder), "the run has no target"))
    known = {m.name: m.unit for c in result.candidates for m in c.measurements}
    file = folder / "recipe.toml" if budget is None else Path(budget)
    if not file.is_file() and budget is None:
        raise UsageError(Problem(str(folder), "has no recipe.toml to take budgets from", "give one with --budget"))
    if budget is None and sha256(file) != result.recipe_sha256:
        hint = f"other budgets are given with --budget, for example --budget {shlex.quote(str(file))}"
        raise BaselineError(
            Problem(str(file), "differs from its digest in result.json: not the recipe of this run", hint)
        )
    tables, place = budgets.read(file, {*result.targets, *targets.names()}, known)
    return evidence.of_run(folder, result), tables, place


def _bundle(folder: Path, budget: Path | str | None) -> tuple[list[Subject], Mapping[str, Any], str]:
    manifest = bundle.read(folder)
    known = {m.name: m.unit for m in manifest.measurements}
    subject = evidence.of_bundle(folder, manifest)
    if budget is not None:
        return [subject], *budgets.read(budget, {manifest.target, *targets.names()}, known)
    place = f"{folder / bundle.MANIFEST}: gate"
    wrong = budgets.problems(manifest.gate, place)
    if wrong or not manifest.gate:
        raise UsageError(*wrong or [Problem(str(folder), "has no budget of its own", "give one with --budget")])
    return [subject], manifest.gate, place


# ---------------------------------------------------------------- judging


def _counted(rule: Rule, candidate: Candidate | None) -> bool:
    origins = {m.origin for m in candidate.measurements if m.name == rule.name} if candidate else set()
    return "counted" in origins or (not origins and rule.name in COUNTED)


def _judge(
    subject: Subject, rules: tuple[Rule, ...], baseline: Baseline | None, other: bool = False
) -> list[tuple[Check, str]]:
    """[(check, what it is judged on)] of one target; `other`: the rules are not those that the run chose by."""
    if subject.candidate is None:
        reason = subject.reason or "no candidate is within the budgets"
        reason += (
            "; the run chose by its own budgets, and there is nothing to judge by others: put these into its recipe "
            "and compress again" * other
        )
        check = Check(
            subject.target,
            "",
            CHOICE,
            "a candidate within the budgets",
            "fail",
            "error",
            None,
            None,
            None,
            "",
            None,
            "",
            reason,
        )
        return [(check, "")]
    wanting = [r for r in rules if r.versus == "baseline" and r.level == "error"]
    if wanting and baseline is None:
        hint = "--baseline BUNDLE, for example the bundle of the last release"
        raise BaselineError(
            *(Problem(r.place, f"`{r.text}` compares with a baseline, and none is given", hint) for r in wanting)
        )
    mine = baseline if baseline is not None and baseline.target == subject.target else None
    sampled = {m.name for m in subject.candidate.measurements if m.split}
    if mine is not None and any(r.versus == "baseline" and r.name in sampled for r in rules):
        mine, subject = baselines.comparable(mine, subject)
    ours = subject.predictions
    found = budgets.judge(
        rules,
        subject.candidate,
        target=subject.target,
        records=ours.records if ours else {},
        teacher=subject.teacher,
        baseline=mine.reference if mine else None,
        metrics=subject.metrics,
    )
    told = []
    for check, rule in zip(found, rules, strict=True):
        lacking, reference = (
            subject.lacks(rule),
            {"teacher": subject.teacher, "baseline": mine.reference if mine else None}.get(rule.versus or ""),
        )
        if lacking:
            told.append(
                (
                    replace(
                        check,
                        verdict="inconclusive",
                        value=None,
                        low=None,
                        high=None,
                        origin=None,
                        unit=rule.unit,
                        reason=lacking,
                    ),
                    "",
                )
            )
            continue
        check = _remembered(check, rule, subject)
        told.append(
            (
                check,
                judged_on.of(check, rule, subject.candidate, ours.records if ours else {}, reference, subject.facts),
            )
        )
    return told


def _remembered(check: Check, rule: Rule, subject: Subject) -> Check:
    """A comparison with the teacher by a metric that its task alone can make: as the run itself judged it, where its
    predictions are the run's."""
    if (
        check.verdict != "inconclusive"
        or check.value is not None
        or rule.versus != "teacher"
        or rule.name in subject.metrics
    ):
        return check
    if subject.stored is None:
        return replace(check, reason=f"{check.reason}; {evidence.UNVERIFIED}")
    same = [
        c
        for c in subject.stored
        if (c.candidate, c.name, c.rule) == (check.candidate, check.name, check.rule) and c.value is not None
    ]
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
