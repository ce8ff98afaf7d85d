"""Progress on stderr: bars for a person, plain lines for a log, nothing when quiet. Results never go here."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from edgekd.errors import plain

LONG = 10.0  # s: what takes longer is said before
Advance = Callable[[int, int, str], None]


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Advance]:
        def advance(done: int, total: int, text: str = "") -> None:
            pass

        yield advance

    def close(self) -> None:
        pass


class Lines(Silent):
    """One line per finished task: for logs."""

    def say(self, text: str) -> None:
        print(plain(text), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Advance]:
        begun, last = time.monotonic(), [""]

        def advance(done: int, total: int, text: str = "") -> None:
            last[0] = text

        yield advance
        self.say(f"{label}: {last[0] + ', ' if last[0] else ''}{time.monotonic() - begun:.1f} s")


class Bars(Silent):
    """Live bars of a terminal; a finished task leaves one line."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        texts = (
            TextColumn("{task.description:<22}", markup=False),
            TextColumn("{task.fields[text]}", style="dim", markup=False),
        )
        columns = (SpinnerColumn(), texts[0], BarColumn(24), texts[1])
        self.progress = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=False
        )
        self.progress.start()

    def say(self, text: str) -> None:
        self.progress.console.print(plain(text), markup=False, highlight=False)

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Advance]:
        handle = self.progress.add_task(plain(label), total=None, text="")
        drawn = [0.0]

        def advance(done: int, total: int, text: str = "") -> None:
            now = time.monotonic()
            if now - drawn[0] > 0.05 or done >= total:  # a training step may take a millisecond
                drawn[0] = now
                self.progress.update(handle, completed=done, total=total, text=plain(text))

        yield advance
        row = self.progress.tasks[-1]
        self.progress.update(handle, total=row.total or 1, completed=row.total or 1)

    def close(self) -> None:
        self.progress.stop()


def foretold(progress: Silent, advance: Advance, what: str) -> Advance:
    """`advance`, which after the first part of the work says how long the others will take, where that is long."""
    begun: list[float] = []

    def told(done: int, total: int, text: str = "") -> None:
        now = time.monotonic()
        if done == 0:
            begun[:] = [now]
        elif begun:
            left = (now - begun.pop()) / done * (total - done)
            if left > LONG:
                progress.say(f"{what} will take about {left:.0f} s ({total} of them)")
        advance(done, total, text)

    return told


def reporter(quiet: bool) -> Silent:
    """Bars on a terminal; lines where stderr is none; nothing when quiet."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()
