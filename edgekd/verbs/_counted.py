"""What can be told of a file for a device that no runtime of edgekd runs on: what is counted on the file, held against
flash and RAM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgekd import targets
from edgekd.decisions import budget, capacity
from edgekd.errors import PASSED, plain
from edgekd.files import sha256, write_found
from edgekd.measure import opening
from edgekd.probes import Subject, measure
from edgekd.records import Candidate, Check, Measurement, Target
from edgekd.report import notes
from edgekd.report.figures import table
from edgekd.samples.source import Source, spared

WITHOUT = "neither times nor answers: edgekd has no runtime for this device, and emulates none"


def device(name: str) -> Target | None:
    """The target, where no runtime of edgekd runs on it; None for all others."""
    target = targets.load(name)
    return None if targets.runs(target) else target


@dataclass(frozen=True)
class Sized:
    """What is counted on one file, and whether the device holds it. Prints as a table; `exit_code` 1 where the device
    does not hold it, 3 where a figure that this takes is not known."""

    model: str
    sha256: str
    target: str
    measurements: tuple[Measurement, ...]
    checks: tuple[Check, ...]
    note: str = WITHOUT
    exit_code: int = PASSED

    def __str__(self) -> str:
        self = plain(self)
        fits = [f"  {notes.check(c)}" for c in self.checks] or [
            "  the target names neither flash nor RAM: nothing to hold it against"
        ]
        return "\n\n".join(
            [f"{self.model}, for {self.target}", table(self.measurements), "\n".join(["fits:", *fits]), self.note]
        )


def sizes(
    model: Path | str,
    target: Target,
    source: Source = Source(),  # noqa: B008  (frozen)
    *,
    json: Path | str | None = None,
) -> Sized:
    """Counts bytes, parameters, MACs and planned activation bytes of an exported file, and judges them by the device's
    memories. `source`: samples, whose shape is that of dimensions which the file leaves open.

    Raises UsageError for a file that is no ONNX, and where `json` can't be written."""
    path = Path(model)
    spared(json, [path], source)
    form = targets.deployment(target).format
    shape, at = opening.shapes(path, source, target)
    figures = measure(Subject(file=path, format=form, sample=shape))
    counted = tuple(dataclasses.replace(m, target=target.name) for m in figures)
    digest = sha256(path)
    subject = Candidate(path.name, path.name, 0, (), (), form, path.name, digest, counted)
    rules = budget.rules({target.name: capacity.budgets(target)}, target.name, "target")
    checks = tuple(budget.judge(rules, subject, target=target.name))
    code = budget.exit_code(c.verdict for c in checks)
    note = "; ".join(filter(None, (at, WITHOUT)))
    found = Sized(path.name, digest, target.name, counted, checks, note, code)
    write_found(json, "edgekd.profile/1", found, "exit_code")
    return found
