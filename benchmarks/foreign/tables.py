"""RESULTS.md from result.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TITLES = {
    "edgekd": "edgekd",
    "static": "onnxruntime static",
    "tuned": "onnxruntime static, tuned",
    "dynamic": "onnxruntime dynamic",
    "nncf": "NNCF",
}
OTHERS = [way for way in TITLES if way != "edgekd"]
RUINED = 10.0  # dB below which nothing is left of a file's answers
LARGE = 5e6  # bytes from which making may take what onnxruntime takes; below, SECONDS
SECONDS = 5.0
Row = Mapping[str, Any]


def write(result: Mapping[str, Any], path: Path) -> None:
    path.write_text("\n".join(lines(result)) + "\n")


def lines(result: Mapping[str, Any]) -> list[str]:
    files: Mapping[str, Row] = result["files"]
    machine = result["environment"]
    return [
        "# Other people's files: results",
        "",
        "Written by `run.py --tables` from `result.json`; don't edit. Static, tuned: unsigned activations, per "
        "channel, reduced range, after `quant_pre_process`. dB: signal to noise beside the float file on held-out "
        "samples, of the worst output or group of channels; %: equal answers there. Time: one thread, float = 1, with "
        "95 % interval. AVX2: dB on an emulated CPU without VNNI, the first held-out samples. Making: CPU seconds and "
        "peak memory of the largest process.",
        "",
        "## What edgekd does not reach",
        "",
        *(f"- {text}" for text in missed(files)),
        "",
        "## Sums",
        "",
        "| | files that work | lowest dB | median dB | slower than float | CPU s in all |",
        "|---|---:|---:|---:|---:|---:|",
        *(_sums(way, files) for way in TITLES if any(way in f["ways"] for f in files.values())),
        "",
        "## Files",
        "",
        "| file | way | dB | % | dB, AVX2 | bytes, float = 1 | time, float = 1 | CPU s | MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row for name, told in ordered(files) for row in _rows(name, told)),
        "",
        f"Again: `{result['command']}`, seed {result['seed']}. "
        + ", ".join(f"{k} {machine[k]}" for k in machine if isinstance(machine[k], (str, int, float)))
        + ".",
    ]


def ordered(files: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """Those of packages first."""
    return sorted(files.items(), key=lambda pair: (not pair[1]["package"], pair[0]))


def missed(files: Mapping[str, Row]) -> list[str]:
    """Every aim that a file misses, in words."""
    found = []
    for name, told in ordered(files):
        ours, others = told["ways"].get("edgekd", {}), {w: told["ways"].get(w, {}) for w in OTHERS}
        plain = told["ways"]["float"]
        if "error" in ours:
            working = ", ".join(TITLES[w] for w, f in others.items() if f and "error" not in f)
            found.append(f"{name}: fails ({ours['error']}); works: {working or 'none'}")
            continue
        found += [f"{name}: {text}" for text in _behind(ours, others, plain["bytes"])]
    return found


def _behind(ours: Row, others: Mapping[str, Row], size: int) -> list[str]:
    found, best = [], _best(others, "db", max)
    if ours.get("db") is not None and ours["db"] < RUINED:
        found.append(f"ruined, {ours['db']:.1f} dB" + (f"; {TITLES[best[0]]} has {best[1]:.1f}" if best else ""))
    elif best and ours.get("db") is not None and ours["db"] < best[1] - 1:
        found.append(f"{ours['db']:.1f} dB, {TITLES[best[0]]} {best[1]:.1f}")
    if ours.get("avx2", {}).get("db") is not None and ours["avx2"]["db"] < ours["db"] - 3:
        found.append(f"{ours['avx2']['db']:.1f} dB with AVX2, {ours['db']:.1f} here")
    if (time := ours.get("time_to_float")) and time[1] > 1:
        found.append(f"{time[0]:.2f} times float's time [{time[1]:.2f}, {time[2]:.2f}]")
    quick = [(w, f["time_to_float"]) for w, f in others.items() if w != "dynamic" and "time_to_float" in f]
    quick = [(w, t) for w, t in quick if time and t[2] < time[1] and others[w].get("db", 0) >= RUINED]
    if quick and time:
        way, theirs = min(quick, key=lambda pair: pair[1][0])
        found.append(f"{time[0]:.2f} of float's time, {TITLES[way]} {theirs[0]:.2f}")
    static = others["tuned"] if "error" not in others["tuned"] else {}
    if size > LARGE and static and ours["cpu_s"] > 1.05 * static["cpu_s"]:
        found.append(f"made in {ours['cpu_s']:.1f} s of CPU, onnxruntime {static['cpu_s']:.1f}")
    if size > LARGE and static and ours["peak_mb"] > 1.05 * static["peak_mb"]:
        found.append(f"made in {ours['peak_mb']} MB, onnxruntime {static['peak_mb']}")
    if size <= LARGE and ours["cpu_s"] > SECONDS:
        found.append(f"made in {ours['cpu_s']:.1f} s of CPU")
    return found


def _best(others: Mapping[str, Row], figure: str, choose: Callable[..., Any]) -> tuple[str, float] | None:
    """(way, value) of the static ways that have the figure."""
    found = [(w, f[figure]) for w, f in others.items() if w != "dynamic" and "error" not in f and figure in f]
    return choose(found, key=lambda pair: pair[1]) if found else None


def _sums(way: str, files: Mapping[str, Row]) -> str:
    all_ = [f["ways"][way] for f in files.values() if way in f["ways"]]
    worked = [f for f in all_ if "error" not in f]
    db = sorted(f["db"] for f in worked if "db" in f)
    slow = sum(f["time_to_float"][1] > 1 for f in worked if "time_to_float" in f)
    low, middle = (f"{db[0]:.1f}", f"{db[len(db) // 2]:.1f}") if db else ("", "")
    cpu = sum(f["cpu_s"] for f in all_)
    return f"| {TITLES[way]} | {len(worked)} of {len(all_)} | {low} | {middle} | {slow} | {cpu:.0f} |"


def _rows(name: str, told: Row) -> list[str]:
    ways, plain = told["ways"], told["ways"]["float"]
    title = f"{name} ({told['package']})" if told["package"] else name
    found = [f"| {title} | float |  |  |  | {plain['bytes']:,} | {plain['ms']:.2f} ms |  |  |"]
    for way in (w for w in TITLES if w in ways):
        f = ways[way]
        making = f"{f['cpu_s']:.1f} | {f['peak_mb']}"
        if "error" in f:
            found.append(f"| | {TITLES[way]} | {_short(f['error'])} | | | | | {making} |")
            continue
        time = f.get("time_to_float")
        shown = [
            f"{f['db']:.1f}" if "db" in f else "",
            f"{f['equal']:.1f}" if "equal" in f else "",
            f"{f['avx2']['db']:.1f}" if "db" in f.get("avx2", {}) else "",
            f"{f['bytes'] / plain['bytes']:.2f}",
            f"{time[0]:.2f} [{time[1]:.2f}, {time[2]:.2f}]" if time else "",
        ]
        found.append(f"| | {TITLES[way]} | {' | '.join(shown)} | {making} |")
    return found


def _short(text: str) -> str:
    return text.replace("|", "/")[:110]
