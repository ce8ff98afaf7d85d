"""The outcome of a run, for Python users."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import INCONCLUSIVE, PASSED, EnvironmentUnfit, Problem, plain
from edgekd.records import Result, Verdict
from edgekd.report import page


@dataclass(frozen=True, repr=False)
class Outcome:
    """The outcome of a run: `exit_code` 0 passed, 1 failed, 3 inconclusive; `verdict`: the same as a word; `folder`:
    the run's folder. Printed, it is the trade-off table."""

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
        """`pass`, `fail` or `inconclusive`: the worst of the targets; also `fail` where nothing was chosen."""
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
