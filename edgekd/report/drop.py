"""What came of the search for a file that loses no more than it may: text."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.errors import FAILED, PASSED
from edgekd.report.tables import aligned


@dataclass(frozen=True)
class Row:
    """A setting that was tried, and its figures on the samples that select and on those that judge, if selected."""

    setting: str
    selected: str
    judged: str


@dataclass(frozen=True)
class Held:
    """Whether a file holds what was `asked` for, by `judged`, its figure on samples apart from those that select; what
    was `tried`; `samples` (that select, that judge); `command`: makes the file that was taken, or else the nearest."""

    held: bool
    asked: str
    tried: tuple[Row, ...]
    judged: str
    samples: tuple[int, int]
    command: str

    @property
    def looks(self) -> int:
        """How many files were judged: each further one makes a figure that holds by chance more likely."""
        return sum(row.judged != "" for row in self.tried)

    @property
    def exit_code(self) -> int:
        return PASSED if self.held else FAILED

    def __str__(self) -> str:
        head = f"{self.asked}: {'held' if self.held else 'not held, nothing is written'}"
        rows = [("tried", f"{self.samples[0]} samples that select", f"{self.samples[1]} that judge")]
        rows += [(r.setting, r.selected, r.judged) for r in self.tried]
        lines = [head, aligned(rows, indent="  ", right=(1, 2))]
        if self.held and self.looks > 1:
            text = f"the first of {self.looks} files to hold on the samples that judge, so chance may have a part in it"
            lines.append(f"{text}: more samples make it smaller")
        last = "made by" if self.held else f"the nearest, {self.judged} on the samples that judge, is made by"
        return "\n".join([*lines, f"{last}: {self.command}"])
