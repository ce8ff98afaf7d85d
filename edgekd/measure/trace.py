"""A Chrome trace (chrome://tracing, Perfetto): the operators of one inference, and what each process spent on load,
first inference, steady state.

Trace Event Format, Google 2016: complete events (`ph` X) with `ts` and `dur` in microseconds, metadata events (`ph` M)
for the names of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def chrome(
    name: str, recorded: Sequence[Mapping[str, Any]], processes: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The trace as a JSON value. `recorded`: a runtime's events (`operators.events`); `processes`: lines of a job's
    timing processes.

    Nothing but names, times and operator types is taken over: a runtime's trace also holds file paths."""
    rows = [_row(0, f"{name}: one inference, operator by operator"), *_inference(recorded)]
    for number, line in enumerate(processes, 1):
        rows.append(_row(number, f"process {number}: {line['n']} inferences, p50 {line['p50_ms']:.4g} ms"))
        now = 0.0
        for part, spent in (
            ("load", line["load_ms"]),
            ("first inference", line["first_ms"]),
            ("steady state", line["wall_ms"]),
        ):
            rows.append(_event(part, "process", now, spent * 1000, number, {}))
            now += spent * 1000
    return {"displayTimeUnit": "ms", "traceEvents": rows}


def _inference(recorded: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """The operators of the last whole inference, starting at 0."""
    runs = [e for e in recorded if e.get("cat") == "Session" and e.get("name") == "model_run"]
    if not runs:
        return
    last = max(runs, key=lambda e: e["ts"])
    begun, ended = last["ts"], last["ts"] + last["dur"]
    yield _event("inference", "inference", 0, last["dur"], 0, {})
    for event in recorded:
        if (
            event.get("cat") == "Node"
            and str(event.get("name", "")).endswith("_kernel_time")
            and begun <= event["ts"] <= ended
        ):
            kind = str(event["args"].get("op_name", ""))
            yield _event(
                event["name"].removesuffix("_kernel_time"),
                "operator",
                event["ts"] - begun,
                event["dur"],
                0,
                {"type": kind},
            )


def _row(number: int, text: str) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": text}}


def _event(name: str, category: str, start: float, spent: float, row: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start,
        "dur": spent,
        "pid": 1,
        "tid": row,
        "args": dict(facts),
    }
