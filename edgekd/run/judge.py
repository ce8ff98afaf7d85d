"""Judges a run's folder or a bundle: the checks of each of its targets."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd import results, targets
from edgekd.decisions import budget as budgets
from edgekd.decisions import judged_on, quantities
from edgekd.decisions.budget import Rule
from edgekd.delivery import bundle
from edgekd.errors import BaselineError, Problem, UsageError
from edgekd.files import sha256
from edgekd.records import Candidate, Check
from edgekd.run import baseline as baselines
from edgekd.run import evidence
from edgekd.run.baseline import Baseline
from edgekd.run.evidence import Subject

CHOICE = "chosen"  # the name of the check that a candidate was chosen


def read(folder: Path, budget: Path | str | None) -> tuple[list[Subject], Mapping[str, Any], str]:
    """(a subject per target; tables of budgets; the file with these tables) of a run's folder or a bundle. Raises
    UsageError for an invalid folder or budget, BaselineError where evidence contradicts a figure."""
    return _bundle(folder, budget) if (folder / bundle.MANIFEST).is_file() else _run(folder, budget)


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
        raise UsageError(Problem(str(folder), "has no recipe.toml with budgets", "give budgets with --budget"))
    if budget is None and sha256(file) != result.recipe_sha256:
        hint = f"give other budgets with --budget, for example --budget {shlex.quote(str(file))}"
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
        raise UsageError(*wrong or [Problem(str(folder), "has no budgets of its own", "give budgets with --budget")])
    return [subject], manifest.gate, place


def counted(rule: Rule, candidate: Candidate | None) -> bool:
    """Whether a rule is on a counted figure."""
    origins = {m.origin for m in candidate.measurements if m.name == rule.name} if candidate else set()
    return "counted" in origins or (not origins and quantities.has_origin(rule.name, "counted"))


def checks(
    subject: Subject, rules: tuple[Rule, ...], baseline: Baseline | None, other: bool = False
) -> list[tuple[Check, str]]:
    """[(check, its basis in words)] of one target; `other`: the rules are not those that the run chose by."""
    if subject.candidate is None:
        return [(_nothing(subject, other), "")]
    wanting = [r for r in rules if r.versus == "baseline" and r.level == "error"]
    if wanting and baseline is None:
        hint = "--baseline BUNDLE, for example the bundle of the last release"
        raise BaselineError(
            *(Problem(r.place, f"`{r.text}` compares with a baseline, but no baseline is given", hint) for r in wanting)
        )
    mine = baseline if baseline is not None and baseline.target == subject.target else None
    sampled = {m.name for m in subject.candidate.measurements if m.split}
    if mine is not None and any(r.versus == "baseline" and r.name in sampled for r in rules):
        mine, subject = baselines.comparable(mine, subject)
    records = subject.predictions.records if subject.predictions else {}
    references = {"teacher": subject.teacher, "baseline": mine.reference if mine else None}
    found = budgets.judge(
        rules, subject.candidate, target=subject.target, records=records, metrics=subject.metrics, **references
    )
    told = []
    for check, rule in zip(found, rules, strict=True):
        if lacking := subject.lacks(rule):
            told.append((_unjudged(check, rule, lacking), ""))
            continue
        check, reference = _remembered(check, rule, subject), references.get(rule.versus or "")
        told.append((check, judged_on.of(check, rule, subject.candidate, records, reference, subject.facts)))
    return told


def _nothing(subject: Subject, other: bool) -> Check:
    """The failed check of a target without a chosen candidate."""
    reason = subject.reason or "no candidate is within the budgets"
    if other:
        reason += (
            "; the run chose by its own budgets: to choose by others, put them into its recipe and run compress again"
        )
    rule, figures = "a candidate within the budgets", {"value": None, "low": None, "high": None}
    return Check(
        subject.target, "", CHOICE, rule, "fail", "error", **figures, unit="", origin=None, place="", reason=reason
    )


def _unjudged(check: Check, rule: Rule, reason: str) -> Check:
    figures = {"value": None, "low": None, "high": None, "origin": None}
    return replace(check, verdict="inconclusive", **figures, unit=rule.unit, reason=reason)


def _remembered(check: Check, rule: Rule, subject: Subject) -> Check:
    """The run's own check of a comparison with the teacher whose metric needs the task's code, if its predictions are
    verified."""
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
