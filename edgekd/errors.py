"""What edgekd raises, and the exit code that each class stands for.

    EdgekdError
    ├── UsageError         2  a recipe, task, target, model or file that is wrong; carries every problem at once
    ├── EnvironmentUnfit   4  this machine can't do it: throttled, a tool or an emulator missing
    ├── BaselineError      5  a baseline is missing, of another test set, or a digest is wrong
    └── RunFailed          6  training diverged, an export check failed, the disk is full

0 (passed), 1 (a gate or goal failed) and 3 (inconclusive) are verdicts, not errors; 130 is an interrupt.
"""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

THEIRS = (Exception, SystemExit)  # what code of somebody else may end with: a task module that calls sys.exit() has failed like any other
PASSED, FAILED, USAGE, INCONCLUSIVE, UNFIT, BASELINE, BROKEN, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (`recipe.toml: stage 2 (prune): macs`), what, and what to do about it."""

    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class EdgekdError(Exception):
    """Base of what edgekd raises on purpose: one or more problems, and an exit code."""

    exit_code = BROKEN

    def __init__(self, *problems: "Problem | str"):
        self.problems = tuple(p if isinstance(p, Problem) else Problem("", p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class UsageError(EdgekdError):
    exit_code = USAGE


class EnvironmentUnfit(EdgekdError):
    exit_code = UNFIT


class BaselineError(EdgekdError):
    exit_code = BASELINE


class RunFailed(EdgekdError):
    exit_code = BROKEN


@contextlib.contextmanager
def exits(kind: type[EdgekdError]) -> Iterator[None]:
    """Code of a recipe that calls sys.exit() has failed, whatever the number it gives: an error of that `kind`, with the line that did it."""
    try:
        yield
    except SystemExit as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        hint = "raise an exception that says what is wrong"
        raise kind(Problem(f"{Path(last.filename).name}:{last.lineno}", f"sys.exit({error.code!r}) was called", hint)) from error
