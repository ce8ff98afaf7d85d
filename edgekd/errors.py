"""The errors that edgekd raises, and the exit code of each class.

    EdgekdError
    ├── UsageError         2  an invalid recipe, task, target, model or file; carries every problem at once
    ├── EnvironmentUnfit   4  this machine can't do it: throttled, or a tool or an emulator is missing
    ├── BaselineError      5  a baseline is missing, of another test set, or a digest is wrong
    └── RunFailed          6  training diverged, an export check failed, the disk is full

0 (passed), 1 (a gate or goal failed) and 3 (inconclusive) are verdicts, not errors; 130 is an interrupt.
"""

import contextlib
import dataclasses
import difflib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# errors of a user's code: a task module that calls sys.exit() has failed like any other
THEIRS = (Exception, SystemExit)
PASSED, FAILED, USAGE, INCONCLUSIVE, UNFIT, BASELINE, BROKEN, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130


def first_line(error: object, most: int = 300) -> str:
    """The first line of what an error of a library says, at most so many characters; its type where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:most] if said else type(error).__name__


def plain(value: Any) -> Any:
    """Text on one line, with control characters, ANSI sequences and direction marks shown instead of sent to a
    terminal; of a record, a list or a table, with all texts in it changed so."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(plain, value)) if isinstance(value, tuple) else list(map(plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        )
    return value


@dataclass(frozen=True)
class Problem:
    """One problem: its place (`recipe.toml: stage 2 (prune): macs`), a message, and a hint on how to fix it."""

    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        # a name from a file must not forge another line
        place, message, hint = plain(self.place), plain(self.message), plain(self.hint)
        text = f"{place}: {message}" if place else message
        return f"{text}\n  hint: {hint}" if hint else text

    def within(self, place: str) -> "Problem":
        """The same problem of a part of `place`.

        >>> print(Problem("macs", "is missing").within("stage 2"))
        stage 2: macs: is missing
        """
        return dataclasses.replace(self, place=": ".join(filter(None, (place, self.place))))


def closest(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `count` of the `known` words that `word` may be a misspelling of, the closest first."""
    return difflib.get_close_matches(word, list(known), count, cutoff)


def near(word: str, known: Iterable[str], otherwise: str = "", count: int = 1) -> str:
    """A hint on an unknown name: the closest known one, or `otherwise` (by default all known names).

    >>> near("epoch", ["epochs", "lr"])
    'did you mean `epochs`?'
    >>> near("momentum", ["epochs", "lr"])
    'known: epochs, lr'
    """
    known = list(dict.fromkeys(known))
    return meant(closest(word, known, count), otherwise or f"known: {', '.join(known)}")


def meant(found: Iterable[str], otherwise: str) -> str:
    """The hint "did you mean ...?" for the names `found`, or `otherwise` if there are none."""
    names = " or ".join(f"`{name}`" for name in found)
    return f"did you mean {names}?" if names else otherwise


class EdgekdError(Exception):
    """The base class of edgekd's errors: one or more problems, and an exit code."""

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


def gathered(work: Callable[[], T], problems: list[Problem], place: str = "") -> T | None:
    """What `work` returns, or None if it raises a UsageError, whose problems are added to `problems` as those of a part
    of `place`: the caller reports all problems at once."""
    try:
        return work()
    except UsageError as error:
        problems += [p.within(place) for p in error.problems]
        return None


@contextlib.contextmanager
def exits(kind: type[EdgekdError]) -> Iterator[None]:
    """Turns a sys.exit() in a recipe's code, with any exit code, into an error of this `kind` that names the line."""
    try:
        yield
    except SystemExit as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        hint = "raise an exception with a message instead"
        raise kind(
            Problem(f"{Path(last.filename).name}:{last.lineno}", f"calls sys.exit({error.code!r})", hint)
        ) from error
