"""Time per operator, from onnxruntime's own clock in a run of its own: the clock perturbs, so the times are scaled to
the p50 taken without it."""

from __future__ import annotations

import bisect
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import Problem, RunFailed

SUBGRAPHS = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True)
class Operator:
    """One operator of the optimized graph. `ms` per inference, scaled; `share` of all operators' time, a fraction."""

    name: str
    kind: str
    ms: float
    share: float


@dataclass(frozen=True)
class Operators:
    """All operators in the order in which they ran. `scale` = p50 without the clock over the operators' sum with it:
    below 1 where the clock itself costs, above 1 where time goes by between operators. `gap_ms`: that p50 minus the
    sum, what no operator accounts for."""

    operators: tuple[Operator, ...]
    scale: float
    gap_ms: float


def measure(trace: Path, *, warmup: int, p50_ms: float) -> Operators:
    """Reads a trace of onnxruntime; the first `warmup` inferences in it don't count. Raises RunFailed where it can't be
    read."""
    found = events(trace)
    nodes = _kernels(found)
    windows = sorted(
        (e["ts"], e["ts"] + e["dur"]) for e in found if e.get("cat") == "Session" and e.get("name") == "model_run"
    )[warmup:]
    if not windows or not nodes:
        raise RunFailed(Problem(trace.name, "the runtime's trace holds no inference"))
    times, starts = defaultdict(float), [begun for begun, _ in windows]
    for event, own in nodes:
        window = bisect.bisect_right(starts, event["ts"]) - 1
        if window >= 0 and event["ts"] <= windows[window][1]:
            key = event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", "")
            times[key] += own / 1000 / len(windows)
    total = sum(times.values())
    scale = p50_ms / total if total else 1.0
    return Operators(
        tuple(Operator(*key, ms * scale, ms / total if total else 0.0) for key, ms in times.items()),
        scale,
        p50_ms - total,
    )


def medians(trace: Path, *, warmup: int) -> list[tuple[str, float]]:
    """[(operator, the median of its milliseconds)] in the order in which they ran: a burst of noise in one inference
    does not move it. The first `warmup` inferences don't count. Raises RunFailed where the trace can't be read."""
    times: dict[str, list[float]] = {}
    for event, own in _kernels(events(trace)):
        times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(own / 1000)
    return [(name, statistics.median(each[warmup:] or each)) for name, each in times.items()]


def _kernels(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """The operators' events as they begin, each with its microseconds: those of an If, a Loop or a Scan without what
    ran inside of it, which has events of its own."""
    nodes = [e for e in found if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")]
    nodes.sort(key=lambda e: (e["ts"], -e["dur"]))
    own = [float(e["dur"]) for e in nodes]
    around: list[int] = []
    for i, event in enumerate(nodes):
        ends = event["ts"] + event["dur"]
        while around and nodes[around[-1]]["ts"] + nodes[around[-1]]["dur"] < ends:
            around.pop()
        if around:
            own[around[-1]] -= event["dur"]
        if event.get("args", {}).get("op_name") in SUBGRAPHS:
            around.append(i)
    return [(event, max(0.0, time)) for event, time in zip(nodes, own, strict=True)]


def events(trace: Path) -> list[dict[str, Any]]:
    """The events of a trace file. Raises RunFailed where it can't be read."""
    try:
        found = json.loads(trace.read_text(encoding="utf-8"))
        return [event for event in found if isinstance(event, dict)]
    except (OSError, ValueError, TypeError) as error:
        raise RunFailed(Problem(trace.name, f"the runtime's trace can't be read: {error}")) from None
