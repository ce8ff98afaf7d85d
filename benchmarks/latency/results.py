"""RESULTS.md from result.json: nothing in it that isn't there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WAYS = {
    "models": "networks left out, the board calibrated by its other rows",
    "both": "network and board unknown to everything learned; the board calibrated by its rows of other networks",
    "boards 3": "boards left out, then calibrated by 3 rows of each precision",
    "boards 5": "boards left out, then calibrated by 5 rows of each precision",
    "boards 0": "boards left out, known by core, clock and threads alone (`transferred`; cores of no other board get a bound, and aren't here)",
    "runtimes 0": "other runtimes (XNNPACK, TFLite, TNN, MNN), known by core, clock and threads alone (`transferred`)",
    "runtimes 3": "other runtimes, calibrated by 3 rows of each precision",
}
HEAD = "| | rows | error: median | p90 | in the 95 % interval | interval: x or / | rank | MACs: median | p90 | rank |"
HEAD += "\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def markdown(found: Mapping[str, Any]) -> str:
    ways, noise, least = found["ways"], found["noise"], found["bounds"]
    lines = [
        "# Predicted latency against published latencies",
        "",
        "Written by `python benchmarks/latency/validate.py PUBLISHED.csv`; do not edit.",
        "",
    ]
    lines += [
        f"{found['rows']['used']} rows of ncnn's benchmark page ({found['rows']['tables']} tables of {found['rows']['boards']} boards, "
        f"{found['networks']} networks in float and int8) and {found['other_runtimes']} rows of other runtimes. Networks are counted by operator "
        "from their public definitions (`networks.py`); no name of a network or board reaches the predictor. Left out, because the file lacks what "
        "is needed or the device is no such CPU: " + ", ".join(f"{k} {v}" for k, v in found["left_out"].items()) + ".",
        "",
        "An error is |prediction / published - 1|. MACs: one throughput per table and precision, from the same rows (for boards that were not "
        "timed: by regression on the same traits). Intervals of a row use a width that was fixed without its fold.",
        "",
        HEAD,
    ]
    lines += [_line(text, ways[way]["all"]) for way, text in WAYS.items() if way in ways]
    lines += ["", "## Is int8 faster than float here?", "", "Both rows of a pair are left out.", ""]
    lines += ["| | pairs | right | right where they differ by 10 % | MACs right | the commoner answer |", "|---|---:|---:|---:|---:|---:|"]
    for way, text in WAYS.items():
        sign = ways.get(way, {}).get("signs", {"pairs": 0})
        if sign["pairs"]:
            figures = " | ".join(f"{100 * sign[k]:.0f} %" for k in ("right", "right_where_10_percent", "macs_right", "always"))
            lines.append(f"| {text} | {sign['pairs']} | {figures} |")
    for way in ("models", "boards 3", "boards 0"):
        for key in ("precision", "threads", "core", "board"):
            lines += ["", f"## {way}, by {key}", "", HEAD]
            lines += [_line(name, figures) for name, figures in ways[way][key].items()]
    lines += ["", "## What the rows say of themselves", ""]
    lines += [
        f"{noise['pairs']} pairs of rows have the same network, precision, core, clock and number of threads. They differ by "
        f"{100 * noise['median_difference']:.0f} % in the median, {100 * noise['p90_difference']:.0f} % at the 90th percentile: versions of ncnn, "
        "cooling, memory. All such rows are kept. A prediction that knows the table has this as its floor in part only; one that knows "
        "core and clock alone can't be better than it.",
        "",
        f"No published time should lie below the bound that is shown where nothing was timed: {least['below']} of {least['rows']} do, all of "
        f"{', '.join(least['networks'])}, at up to {1 / least['least']:.1f} times the multiply-accumulates that the core's float units can do: "
        f"those rows can't be what they say. The others take "
        f"up to {least['most']:.0f} times as long as the bound, in the median {least['median']:.1f} times.",
        "",
        "Other runtimes on cores that ncnn was timed on, truth over prediction from core and clock (factor, and its spread over networks): "
        + "; ".join(f"{s} {p} {math.exp(m):.2f} (x or / {math.exp(d):.2f})" for s, p, m, d in found["offsets"])
        + ". The spread over networks is small, the factor is not: three rows timed with the runtime remove most of it, no rows don't. "
        "Their root mean square is what a `transferred` prediction adds to its interval. No row is of onnxruntime.",
        "",
        "## What was chosen on what",
        "",
        "The eleven costs were chosen by trying about a dozen lists with networks left out, on these rows of ncnn: the first had a median error of "
        "11.0 %, the chosen one 8.9 %, so the figures of ncnn's rows are a little better than those of rows that nobody has seen. The rows of other "
        "runtimes were not looked at for it. The 25 rounds of the fit were chosen on them too: with fewer, the 90th percentile was 30.3 %, not "
        "28.7 %, so that its staying below 30 % owes something to this choice. Priors and their strengths were set once (halving or doubling one "
        "moves the median by at most 0.3 points); the likeness of devices of one core was read off left-out boards (0.5 to 0.85 "
        "make no difference). The population's costs, "
        "its spread and noise, the width of intervals and the offsets of runtimes are learned inside each fold.",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, f: Mapping[str, Any]) -> str:
    def percent(key: str) -> str:
        return f"{100 * f[key]:.1f} %"

    def rank(key: str) -> str:
        return "" if f[key] is None else f"{f[key]:.3f}"

    own = [percent("median_error"), percent("p90_error"), percent("inside"), f"{f['interval_factor']:.2f}", rank("rank_correlation")]
    baseline = [percent("macs_median_error"), percent("macs_p90_error"), rank("macs_rank_correlation")]
    return f"| {name} | {f['rows']} | {' | '.join([*own, *baseline])} |"
