"""The checks of a gate as text: the verdict, then a line per check, with the reason if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekd.errors import plain
from edgekd.records import Check, Verdict
from edgekd.report import machine, notes
from edgekd.report.tables import aligned


def render(
    checks: Sequence[Check],
    verdict: Verdict,
    heads: Mapping[str, str],
    skipped: Sequence[str] = (),
    basis: Sequence[str] | None = None,
) -> str:
    """`heads`: {target: its subject}; `skipped`: rules that were not judged; `basis`: per check, its basis as text."""
    lines = [headline(checks, verdict)]
    told = list(zip(checks, basis or [""] * len(checks), strict=True))
    for target, judged in heads.items():
        mine = [(c, text) for c, text in told if c.target == target]
        if not mine:
            continue
        lines += ["", f"{plain(target)}: {plain(judged)}"]
        rows = aligned([_cells(c) for c, _ in mine], indent="  ").splitlines()
        for (c, text), row in zip(mine, rows, strict=True):
            lines.append(row)
            lines += [f"      {plain(words)}" for words in (c.reason, text) if words]
    if skipped:
        lines += ["", "not judged (only deterministic measurements were): " + "; ".join(plain(s) for s in skipped)]
    return "\n".join(lines)


def headline(checks: Sequence[Check], verdict: Verdict) -> str:
    """`edgekd gate  FAIL  5 checks: 1 failed, 2 inconclusive, 1 warned`."""
    counts = {
        "failed": sum(c.verdict == "fail" and c.level == "error" for c in checks),
        "inconclusive": sum(c.verdict == "inconclusive" and c.level == "error" for c in checks),
        "warned": sum(c.verdict != "pass" and c.level == "warn" for c in checks),
    }
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "all passed"
    return f"edgekd gate  {notes.VERDICTS[verdict]}  {len(checks)} check{'s' if len(checks) > 1 else ''}: {told}"


def _cells(c: Check) -> tuple[str, ...]:
    verdict = notes.VERDICTS[c.verdict] + (" (warning)" if c.level == "warn" and c.verdict != "pass" else "")
    return verdict, plain(c.name), plain(c.rule), plain(machine.figure(c))
