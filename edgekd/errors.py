"""What edgekd raises, and the exit code that each class stands for.

    EdgekdError
    ├── UsageError         2  a recipe, task, target, model or file that is wrong; carries every problem at once
    ├── EnvironmentUnfit   4  this machine can't do it: throttled, a tool or an emulator missing
    ├── BaselineError      5  a baseline is missing, of another test set, or a digest is wrong
    └── RunFailed          6  training diverged, an export check failed, the disk is full

0 (passed), 1 (a gate or goal failed) and 3 (inconclusive) are verdicts, not errors; 130 is an interrupt.
"""

from dataclasses import dataclass

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
