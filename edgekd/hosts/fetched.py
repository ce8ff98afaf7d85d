"""What a device sends is data: read strictly, for it may be broken, or not ours. Names of files are made here, never
taken from there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEXT = 500  # characters of a text that is shown
LINES = 2**26  # bytes of results.jsonl
BYTES = {"time": 2**26, "outputs": 2**34, "operators": 2**28}
CLOCKS = {
    "time": ("load_ms", "first_ms", "p50_ms", "p90_ms", "wall_ms"),
    "memory": ("peak_rss_bytes",),
    "bare": ("peak_rss_bytes",),
}
_FACTS: Mapping[str, tuple[type, ...]] = {
    "cpu": (str,), "architecture": (str,), "features": (list,), "virtual": (bool,), "cores": (int,),
    "max_mhz": (int, float, type(None)), "mhz": (int, float, type(None)), "governor": (str, type(None)),
    "celsius": (int, float, type(None)), "throttled": (int, type(None)), "caches": (dict,),
    "ram_bytes": (int, type(None)), "system": (str,), "kernel": (str,), "python": (str,), "versions": (dict,),
}  # fmt: skip


class Damaged(Exception):
    """What came is not what a worker writes."""


def text(value: Any, limit: int = TEXT) -> str:
    """Of a device, for a terminal: one line without control characters."""
    return "".join(c if c.isprintable() else " " for c in str(value))[:limit].strip()


def parsed(data: bytes | str) -> Any:
    """Strict JSON: no NaN, and no number beyond what a computer counts. Raises Damaged."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    def bounded(number: str) -> float:
        return value if abs(value := float(number)) < 1e18 else refuse(number)

    def whole(number: str) -> int:
        return int(number) if len(number) < 20 else refuse(number[:20])

    try:
        return json.loads(data, parse_constant=refuse, parse_float=bounded, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"invalid JSON: {text(error, 80)}") from None


def facts(raw: Any) -> dict[str, Any]:
    """Those of environment.describe(), each of its kind. Raises Damaged."""
    if not isinstance(raw, dict) or raw.keys() - {"clusters"} != _FACTS.keys():
        raise Damaged("other facts than a machine has")
    for name, kinds in _FACTS.items():
        if type(raw[name]) not in kinds:
            raise Damaged(f"fact {name}")
    if not all(
        raw[name] is None or 0 <= raw[name] < most
        for name, most in (("max_mhz", 1e5), ("mhz", 1e5), ("ram_bytes", 2**50), ("throttled", 2**32))
    ):
        raise Damaged("fact clocks, RAM or throttled")
    for name, value in (("features", raw["features"]), ("versions", raw["versions"].values())):
        if not all(isinstance(v, str) for v in value):
            raise Damaged(f"fact {name}")
    if (
        not all(type(size) is int and 0 < size < 2**50 for size in raw["caches"].values())
        or not 0 < raw["cores"] < 2**16
    ):
        raise Damaged("fact caches or cores")
    kinds = raw.get("clusters", {})
    if not isinstance(kinds, dict) or not all(
        isinstance(n, list) and n and all(map(_count, n)) for n in kinds.values()
    ):
        raise Damaged("fact clusters")
    return _cleaned(raw)


def lines(data: bytes, schedule: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{entry: line} of a results file, for the entries of a schedule {id: entry}; a torn last line is none. Raises
    Damaged."""
    found = {}
    for raw in data.split(b"\n")[:-1]:
        line = parsed(raw)
        entry = schedule.get(line.get("id")) if isinstance(line, dict) and isinstance(line.get("id"), str) else None
        if entry is not None:
            found[line["id"]] = _line(line, entry)
        elif not isinstance(line, dict):
            raise Damaged("a result that is not a record")
    return found


def _line(line: dict[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    kind = entry["pass"]
    good = line.get("subject") == entry["subject"] and line.get("pass") == kind
    good = good and all(_number(line.get(name)) for name in CLOCKS.get(kind, ()))
    if kind == "time":
        warm, share = line.get("warmup"), line.get("cpu_share")
        good = (
            good
            and line.get("times") == f"{entry['id']}.npy"
            and _count(line.get("n"))
            and (share is None or _number(share))
        )
        good = good and isinstance(warm, dict) and _count(warm.get("runs")) and isinstance(warm.get("stable"), bool)
        good = good and _condition(line.get("before")) and _condition(line.get("after")) and line["p50_ms"] > 0
    elif kind == "outputs":
        names = line.get("outputs")
        good = (
            good
            and _count(line.get("n"))
            and isinstance(names, list)
            and 0 < len(names) <= 1000
            and all(isinstance(n, str) for n in names)
        )
    elif kind == "operators":
        traced = line.get("trace") == f"{entry['id']}.json" and _count(line.get("warmup"))
        good = good and (traced or line.get("trace", 0) is None)
    elif kind == "signature":
        good = good and _signature(line.get("signature"))
    if not good:
        raise Damaged(f"the result of {entry['id']}")
    # a model's own names: the file's, whatever they are made of
    kept = {name: line[name] for name in ("outputs", "signature") if line.get(name)}
    return {**_cleaned(line), **kept}


def files(line: Mapping[str, Any]) -> list[str]:
    """What belongs to a line, relative to `out`."""
    if line["pass"] == "outputs":
        return [f"{line['id']}/{i}.npy" for i in range(len(line["outputs"]))]
    return [name for name in (line.get("times"), line.get("trace")) if name]


def check(path: Path, line: Mapping[str, Any]) -> None:
    """Raises Damaged where a file that came is not what its line says: plain arrays, a row per sample or run; JSON."""
    if path.suffix != ".npy":
        _trace(path, parsed(path.read_bytes()))
        return
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # over a damaged header numpy's parser raises nearly anything
        raise Damaged(f"{path.name} is not an array: {text(error, 80)}") from None
    if array.ndim == 0 or len(array) != line["n"] or array.dtype.kind not in "fiub":
        raise Damaged(f"{path.name} has not {line['n']} rows of numbers")


def _trace(path: Path, events: Any) -> None:
    """Raises Damaged where a trace is not a list of events with times."""
    for event in events if isinstance(events, list) else [None]:
        good = (
            isinstance(event, dict)
            and isinstance(event.get("name", ""), str)
            and isinstance(event.get("args", {}), dict)
        )
        if not good or not all(_number(event.get(name)) for name in ("ts", "dur")):
            raise Damaged(f"{path.name} is not a trace")


def failures(data: bytes | None, ids: set[str]) -> dict[str, str]:
    """{entry: why it failed} of done.json."""
    done = parsed(data) if data else {}
    failed = done.get("failed") if isinstance(done, dict) else None
    return {id: text(reason, 2000) for id, reason in failed.items() if id in ids} if isinstance(failed, dict) else {}


def full(message: str) -> bool:
    """Whether a full disk, a quota or a limit of file sizes is behind a message. numpy says "8 requested and 0 written"
    and no more."""
    return re.search(r"No space left|quota exceeded|File too large|requested and \d+ written", message) is not None


def _signature(value: Any) -> bool:
    """Whether it is {input: [type or None, [dimension or None]]}."""
    if not isinstance(value, dict):
        return False
    pairs = [v for v in value.values() if isinstance(v, list) and len(v) == 2 and isinstance(v[1], list)]
    return len(pairs) == len(value) and all(
        isinstance(kind, str | None) and all(d is None or _count(d) for d in shape) for kind, shape in pairs
    )


def _condition(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    mhz, flags = value.get("mhz"), value.get("throttled")
    clocks = mhz is None or isinstance(mhz, list) and len(mhz) == 2 and all(map(_number, mhz))
    return clocks and (flags is None or _count(flags)) and isinstance(value.get("governor"), str | None)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _cleaned(value: Any) -> Any:
    """The same without control characters in its texts."""
    if isinstance(value, dict):
        return {text(name): _cleaned(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_cleaned(v) for v in value]
    return text(value, 2000) if isinstance(value, str) else value
