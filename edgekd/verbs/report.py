"""The verb `report`: the reports of a run, written again."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.errors import PASSED, Problem, UsageError
from edgekd.verbs import _options


@click.command()
@click.argument("run", type=click.Path())
def command(run):
    """Write report.html and report.md of a RUN folder again."""
    _options.show(report(run))
    return PASSED


def report(run: Path | str) -> str:
    """Writes RUN/report.html and RUN/report.md again; returns where they are, and what is missing or can't be verified.

    Raises UsageError for a folder that is not a run's, BaselineError where its evidence contradicts its figures."""
    from edgekd import results
    from edgekd.report import markdown, page
    from edgekd.run import evidence

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
