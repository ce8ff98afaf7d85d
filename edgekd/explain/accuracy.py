"""Where along its line a run lost accuracy: the first metric of each candidate that a chosen one was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from edgekd.records import Candidate, Measurement, Result
from edgekd.report.numbers import number
from edgekd.report.rows import figures
from edgekd.report.tables import aligned

Split = Literal["test", "validation"]


def nearest(result: Result, target: str) -> str | None:
    """The int8 candidate whose file was kept that is best in the first metric on validation, for a target that none was
    chosen for."""
    kept = {
        c.id: m
        for c in result.candidates
        if "int8" in c.stages and c.file is not None and (m := _validated(c, target)) is not None
    }
    return max(kept, key=lambda id: kept[id].value, default=None)


def _validated(c: Candidate, target: str) -> Measurement | None:
    """Its first metric there: of the target, else of the file itself where no machine stands for the target."""
    found = [m for m in c.measurements if m.split == "validation" and m.target in (target, None)]
    return min(found, key=lambda m: m.target is None, default=None)


def line(candidates: Mapping[str, Candidate], last: Candidate) -> list[Candidate]:
    """A candidate after those that it was made from, the first one (its teacher) first; the first parent where there
    are several."""
    found = [last]
    while found[0].parents and (before := candidates.get(found[0].parents[0])) is not None and before not in found:
        found.insert(0, before)
    return found


def _way(result: Result, last: Candidate) -> tuple[list[Candidate], Candidate | None]:
    """(a candidate's line, with the student that learned alone beside it; that student)."""
    candidates = {c.id: c for c in result.candidates}
    way = line(candidates, last)
    alone = candidates.get(result.references.get("alone", ""))
    if alone is not None and alone not in way:
        way.insert(min(1, len(way) - 1), alone)
    return way, alone


def split_of(result: Result, last: Candidate, names: Sequence[str]) -> tuple[Split, str]:
    """(split, target) by which most of a candidate's line has figures: of a target that is emulated, test knows the
    chosen file alone, and validation what this machine answers."""
    way = _way(result, last)[0]
    ways = [(split, name) for split in ("test", "validation") for name in names]
    # the first of those that have as many
    return max(ways, key=lambda w: sum(_metric(c, w[1], w[0]) is not None for c in way))


def described(split: Split, where: str, names: Sequence[str]) -> str:
    if split == "validation":
        return f"validation, as the machine of the run answers: as {where} the chosen file alone was run"
    return f"test, of {where}" if len(names) > 1 else "test"


def lost(result: Result, last: Candidate, target: str, split: Split = "test") -> list[tuple[str, ...]]:
    """Rows of the first metric along a candidate's line, with the change at each step; the student that learned alone
    is beside it."""
    way, alone = _way(result, last)
    rows, before = [("step", "metric", "value", "95 % interval", "change")], None
    for c in way:
        m = _metric(c, target, split)
        if m is None:
            rows.append((c.id, "", "not measured", "", ""))
            continue
        unit = "pt" if m.unit == "%" else m.unit
        change = "" if before is None else f"{m.value - before:+.2f} {unit}"
        rows.append(
            (
                c.id,
                m.name,
                f"{number(m.value, 2)} {m.unit}",
                f"[{number(m.low, 2)}, {number(m.high, 2)}]",
                f"(beside: {change})" if c is alone and change else change,
            )
        )
        before = before if c is alone and before is not None else m.value
    return rows


def _metric(c: Candidate, target: str, split: Split) -> Measurement | None:
    """The first metric of a split."""
    found = (
        figures(c, target).values() if split == "test" else [m for m in c.measurements if m.target in (None, target)]
    )
    return next((m for m in found if m.split == split), None)


def emulated(c: Candidate, target: str) -> str:
    """What it answers as the target's CPU, where that was emulated."""
    found = [m for m in c.measurements if m.origin == "emulated" and m.target == target]
    if not found:
        return ""
    rows = [(m.name, f"{number(m.value, 2 if m.unit else None)} {m.unit}", str(m.n), m.note) for m in found]
    return f"as {target}, emulated\n{aligned([('', 'value', 'n', ''), *rows])}"
