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
    """Whether a file holds what was `asked` for, by `judged`, its figure on samples that nothing was selected by; what
    was `tried`; `samples` (that select, that judge); `command`: makes the file that was taken, or else the nearest."""

    held: bool
    asked: str
    tried: tuple[Row, ...]
    judged: str
    samples: tuple[int, int]
    command: str

    @property
    def exit_code(self) -> int:
        return PASSED if self.held else FAILED

    def __str__(self) -> str:
        head = f"{self.asked}: {'held' if self.held else 'not held, nothing is written'}"
        rows = [("tried", f"{self.samples[0]} samples that select", f"{self.samples[1]} that judge")]
        rows += [(r.setting, r.selected, r.judged) for r in self.tried]
        last = "made by" if self.held else f"the nearest, {self.judged} on the samples that judge, is made by"
        return "\n".join([head, aligned(rows, indent="  ", right=(1, 2)), f"{last}: {self.command}"])
