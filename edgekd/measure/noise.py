"""Whether times mean anything: what a session's control and the conditions of its processes say against them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd import intervals

Interval = tuple[float, float, float]  # value, low, high
CORE = 0.95  # the share of a core below which a process waited for it


def agrees(ratio: Interval) -> bool:
    """Whether two times may be the same: the interval of their ratio holds 1, as that of an A/A control has to."""
    return ratio[1] <= 1 <= ratio[2]


def settled(processes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the p50 of a file is known to 1 %."""
    value, low, high = intervals.median([p["p50_ms"] for p in processes])
    return (high - low) / 2 <= 0.01 * value


def noise(processes: Sequence[Mapping[str, Any]], control: Interval, threads: int) -> str:
    """Why these times are not to be trusted to the per cent; empty where nothing speaks against them."""
    p50, reasons = [p["p50_ms"] for p in processes], []
    middle, low, high = intervals.median(p50)
    if abs(control[0] - 1) > 0.02 and not agrees(control):
        reasons.append(f"the same file took {100 * (control[0] - 1):+.1f} % in the A/A control")
    if (high - low) / 2 > 0.05 * middle:
        reasons.append(f"p50 varies by {50 * (high - low) / middle:.0f} % between processes")
    reasons += starved([p["cpu_share"] for p in processes if p["cpu_share"] is not None], threads)
    clocks = [p["after"]["mhz"][1] for p in processes if p["after"]["mhz"]]
    if clocks and min(clocks) < 0.95 * max(clocks):
        reasons.append(f"clocks between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    unsettled = sum(not p["warmup"]["stable"] for p in processes)
    if unsettled > len(processes) / 2:
        reasons.append(f"the warm-up did not settle in {unsettled} of {len(processes)} processes")
    reasons += held_back([p["after"] for p in processes], processes[0].get("before", {}))
    return f"noisy: {', '.join(reasons)}" if reasons else ""


def starved(shares: Sequence[float], threads: int) -> list[str]:
    """That processes of one thread had to wait for a core: by `shares`, their CPU time over what went by."""
    if threads != 1 or not shares or statistics.median(shares) >= CORE:
        return []
    return [f"the process had {100 * statistics.median(shares):.0f} % of a core"]


def held_back(conditions: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> list[str]:
    """What keeps a board from its clock. Bits 0 to 3 of `throttled` are now, 16 to 19 since the start
    (runtimes/facts.py): what came up meanwhile counts, what was there before does not."""
    found = []
    if any(c.get("governor") == "powersave" for c in conditions):
        found.append("governor powersave")
    flags = [c["throttled"] for c in conditions if c.get("throttled") is not None]
    seen = 0
    for flag in flags:
        seen |= (flag & 0xF) | ((flag >> 16) & ~((first.get("throttled") or 0) >> 16) & 0xF)
    names = ("under-voltage", "clock capped", "throttled", "at the soft limit of temperature")
    return found + [name for bit, name in enumerate(names) if seen >> bit & 1]
