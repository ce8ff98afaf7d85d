"""The verb `gate`: needs the folder of a run, or a bundle, and nothing else of the machine that made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgekd.errors import Problem, UsageError
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.records import Check, Verdict


@click.command()
@click.argument("path", type=click.Path())
@click.option(
    "--budget", type=click.Path(), help="A TOML file with [any] and [TARGET] tables [default: the run's own gate]."
)
@click.option("--baseline", type=click.Path(), help="A bundle to compare with.")
@click.option("--only", type=click.Choice(["deterministic"]), help="Judge counted numbers only.")
@click.option("--inconclusive", type=click.Choice(["fail", "warn"]), default="fail", show_default=True)
@click.option("--why", is_flag=True, help="Say what every line was judged on.")
@click.option("--junit", type=click.Path(), help="Write JUnit XML.")
@click.option("--markdown", type=click.Path(), help="Append a summary in Markdown.")
@click.option("--sarif", type=click.Path(), help="Write SARIF.")
@_options.json_file("Write the checks as JSON.")
def command(path, **settings):
    """Judge a RUN or BUNDLE folder against budgets. Exit code 0 passed, 1 failed, 3 inconclusive, 5 baseline
    unusable."""
    return _options.finish(gate(path, **settings))


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
    import shlex

    from edgekd import targets
    from edgekd.decisions import budget as budgets
    from edgekd.decisions import capacity, quantities
    from edgekd.report import checks as table
    from edgekd.run import baseline as baselines
    from edgekd.run import evidence, judge

    folder = Path(path)
    subjects, tables, place = judge.read(folder, budget)
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
            kept = tuple(r for r in rules if judge.counted(r, subject.candidate))
            skipped += [f"{subject.target}: {r.name} {r.text}" for r in rules if r not in kept]
            rules = kept
        for check, text in judge.checks(subject, rules, against, budget is not None):
            told.append(text)
            checks.append(check)
    if not checks:
        hint = f"a budget on {quantities.counted()}" if skipped else f"[any] or [{subjects[0].target}] of {place}"
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


def _machines(gated: Gated, junit: Any, markdown: Any, sarif: Any, json: Any) -> None:
    """Writes what was asked for. Raises UsageError where a file can't be written."""
    from edgekd.files import write_atomic, write_found, writing
    from edgekd.report import machine, notes

    write_found(json, "edgekd.gate/1", gated, "text")
    for path, text in ((junit, machine.junit), (sarif, machine.sarif)):
        if path is not None:
            with writing(path):
                write_atomic(path, text(gated.checks).encode())
    if markdown is not None:
        heading = f"### edgekd gate: {notes.VERDICTS[gated.verdict]}\n\n"
        with writing(markdown), open(markdown, "a", encoding="utf-8") as file:
            file.write(heading + machine.summary(gated.checks))
