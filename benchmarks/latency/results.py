"""RESULTS.md and the paragraph of docs/targets-and-boards.md from result.json: nothing in them that isn't there."""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WAYS = {
    "boards 0, networks": "**no row of the board, network never seen**",
    "boards 3, networks": "3 rows of each precision, network never seen",
    "boards 5, networks": "5 rows of each precision, network never seen",
    "boards 0": "no row of the board; the network was timed on other boards",
    "boards 3": "3 rows of each precision; the network was timed on other boards",
    "boards 5": "5 rows of each precision; the network was timed on other boards",
    "networks": "a known board's other rows, network never seen",
    "runtimes 0": "another runtime (XNNPACK, TFLite, TNN, MNN), no row of the board",
    "runtimes 3": "another runtime, 3 rows of each precision",
    "cores 0": "no row, and no other board of its core (a bound is shown, and no prediction)",
    "cores 0, networks": "no row, no other board of its core, network never seen (a bound is shown, and no prediction)",
}
SHOWN = ("boards 0, networks", "boards 3, networks", "boards 0", "boards 3")  # by family, core and board
HEAD = (
    "| | boards | rows | error: median | p90 | in the 95 % interval | of boards, resampled | interval: x or / | "
    "rank | additive | pooled | MACs |"
)
HEAD += "\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
ENOUGH = 5  # boards from which a family or core is judged


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def markdown(found: Mapping[str, Any]) -> str:
    ways, rows = found["ways"], found["rows"]
    corrected = "; ".join(f"{board} ({source})" for board, source in found["corrected"].items())
    lines = ["# Predicted latency against published latencies", ""]
    lines += ["Written by `python benchmarks/latency/validate.py PUBLISHED.csv MORE.csv`; do not edit.", ""]
    lines += [
        f"{rows['used']:,} rows of ncnn's benchmark page ({rows['tables']} tables of {rows['boards']} boards, "
        f"{found['networks']} networks in float and int8) and {found['other_runtimes']} rows of other runtimes. "
        "Networks are counted by operator from their public definitions (`networks.py`); no name of a network or "
        "board reaches the predictor. Left out, because the file lacks what is needed or the device is no such CPU: "
        f"{', '.join(f'{k} {v}' for k, v in found['left_out'].items())}. Facts of boards that had been written by "
        f"hand and were others: {corrected}. Clocks of x86 are base clocks.",
        "",
        "Every board is left out of all that is learned. **A user's network is one that nobody timed, so the lines "
        "with `network never seen` are the ones to go by**; in the others the population knows the network's rows on "
        "other boards.",
        "",
        "An error is |prediction / published - 1|. An interval's width is that of the other boards: the standard "
        "deviations that hold 95 % of their rows, every board counting once. Beside the share of rows inside stands "
        "its own 95 % interval, by drawing whole boards. Baselines (median error, on the rows where they say "
        "something): additive, log t = board + network; pooled, the predictor's eleven costs with one set for all "
        "boards, and a level; MACs, one throughput. Their boards without rows get a level by regression on the "
        "predictor's traits.",
        "",
        HEAD,
    ]
    lines += [_line(text, ways[way]["all"]) for way, text in WAYS.items() if way in ways]
    lines += _signs(ways)
    for way in SHOWN:
        title = WAYS[way].strip("*")
        for key in ("family", "core"):
            chosen = ways[way][key].items()
            lines += ["", f"## By {key}: {title}", "", HEAD]
            lines += [_line(name, f) for name, f in chosen if f["boards"] >= ENOUGH]
            few = [f"{name} {percent(f['inside'], 0)} ({f['boards']})" for name, f in chosen if f["boards"] < ENOUGH]
            lines += (
                ["", f"Of fewer than {ENOUGH} boards, rows inside the interval (boards): {'; '.join(few)}."]
                if few
                else []
            )
    for way in SHOWN[:2]:
        lines += ["", f"## By board: {WAYS[way].strip('*')}", "", HEAD]
        lines += [_line(name, f) for name, f in ways[way]["board"].items()]
    return "\n".join([*lines, *_closing(found)]) + "\n"


def _signs(ways: Mapping[str, Any]) -> list[str]:
    lines, pc = ["", "## Is int8 faster than float here?", ""], ways["boards 3"]["signs"]["x86"]
    lines += [
        "Neither row of a pair is given. `right`: the sign of the predicted difference, whether it is clear or not; "
        "`decided`: the interval of the ratio excludes 1, elsewhere the answer is that it is not known. On x86 the "
        f"facts of a board don't tell, VNNI among them: by board, the median network in int8 takes {pc['least']:.2f} "
        f"to {pc['most']:.2f} times as long as in float (ncnn's versions and builds).",
        "",
        "| | boards | pairs | right | the commoner answer | decided | right where decided | ratio in its interval |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for way, text in WAYS.items():
        for family, s in ways.get(way, {}).get("signs", {}).items():
            name = text if family == "all" else f"... {family}"
            figures = " | ".join(percent(s[k], 0) for k in ("right", "always", "decided", "right_decided", "inside"))
            lines.append(f"| {name} | {s['boards']} | {s['pairs']} | {figures} |")
    return lines


def _closing(found: Mapping[str, Any]) -> list[str]:
    noise, least, ways = found["noise"], found["bounds"], found["ways"]
    terms = "; ".join(f"{family}: {t['spread']:.2f} and {t['int8']:.2f}" for family, t in found["boards"].items())
    below = (
        f" ({', '.join(least['of'])}; at up to {1 / least['least']:.1f} times what the core's units can do)"
        if least["below"]
        else ""
    )
    offsets = "; ".join(f"{s} {p} {math.exp(m):.2f} (x or / {math.exp(d):.2f})" for s, p, m, d in found["offsets"])
    widths = ", ".join(f"{ways[w]['reach']:.2f}" for w in CALIBRATED)
    return [
        "",
        "## What the rows say of themselves",
        "",
        "Rows of one network, precision, core, clock and number of threads in two tables of one board differ by "
        f"{percent(noise['median of one board'], 0)} in the median ({noise['pairs of one board']} pairs), in tables "
        f"of two boards by {percent(noise['median of two boards'], 0)} ({noise['pairs of two boards']} pairs): "
        "versions of ncnn, memory, cooling. A prediction that knows core and clock alone can't be better than the "
        "second. Whole tables are off together, so what boards of one core share and what each has for itself are "
        "terms of their own. How many times the population's covariance the boards of a family differ by, and the "
        f"variance of what all costs of int8 share besides, read off left-out boards: {terms}.",
        "",
        f"No published time should lie below the bound that is shown where nothing was timed: {least['below']} of "
        f"{least['rows']:,} do{below}. The others take up to {least['most']:.0f} times as long as the bound, in the "
        f"median {least['median']:.1f} times.",
        "",
        "Other runtimes on cores that ncnn was timed on, truth over prediction from core and clock (factor, its spread "
        f"over networks): {offsets}. The spread over networks is small, the factor is not: three rows timed with the "
        "runtime remove most of it, no rows don't. Their root mean square is what a `transferred` prediction adds to "
        "its interval. No row is of onnxruntime.",
        "",
        "## What was chosen on what",
        "",
        "The eleven costs were chosen earlier, by trying about a dozen lists with networks left out on 13 of these "
        "boards, and stay. With all boards at hand and each left out, these were looked at, by the likelihood of "
        "left-out boards without and with three rows: a trait for more than 8 threads (kept), the prior's weight (4, "
        "12, 25 boards: no difference), a prior variance for what the costs of one precision share (kept), the "
        "likeness of boards of one core (0.3 to 0.5 alike, 0.7 worse), weights as part of a convolution's traffic "
        "(three ways, no gain), more rounds (no gain). That families of cores differ from board to board by unequal "
        "amounts was added after a look at the coverage by family: with one amount for all, 99 % of the rows of ARM "
        "in order lay inside, and 92 % of x86. What is learned, the amounts and the reach too, is learned without "
        "the board that it is tried on.",
        "",
        f"The reach that ships is {max(ways[w]['reach'] for w in TRANSFERRED):.2f} standard deviations without rows, "
        f"and with rows the widest of {widths} ({'; '.join(CALIBRATED)}).",
    ]


CALIBRATED = ("networks", "boards 3", "boards 5", "boards 3, networks", "boards 5, networks")
TRANSFERRED = ("boards 0", "boards 0, networks")


def _line(name: str, f: Mapping[str, Any]) -> str:
    rank = "" if f["rank_correlation"] is None else f"{f['rank_correlation']:.3f}"
    own = [percent(f[k]) for k in ("median_error", "p90_error", "inside")]
    own += [f"{percent(f['inside_low'], 0)} to {percent(f['inside_high'], 0)}", f"{f['interval_factor']:.2f}", rank]
    base = [percent(f[k]["median_error"]) for k in ("additive", "pooled", "macs")]
    return f"| {name} | {f['boards']} | {f['rows']:,} | {' | '.join([*own, *base])} |"


# ---------------------------------------------------------------- docs/targets-and-boards.md


def paragraph(found: Mapping[str, Any]) -> str:
    """What a reader without a board can expect."""
    ways = found["ways"]
    none, three, known = (ways[w]["all"] for w in ("boards 0, networks", "boards 3, networks", "boards 3"))
    decided = ways["boards 0, networks"]["signs"]["all"]["decided"]

    def inside(f: Mapping[str, Any]) -> str:
        low, high = percent(f["inside_low"], 0), percent(f["inside_high"], 0)
        return f"{percent(f['inside'], 0)} of the rows lie inside ({low} to {high}, by drawing boards)"

    text = (
        f"Without a board, a predicted latency is a range. Of {none['rows']:,} published rows of ncnn, of boards and "
        f"networks that were left out of everything, {inside(none)}; the interval reaches a factor of "
        f"{none['interval_factor']:.1f} to each side, and the median error is {percent(none['median_error'], 0)}. "
        "Another runtime than the timed one widens it: for onnxruntime there are no published rows. Whether int8 is "
        f"faster is decided for {percent(decided, 0)} of the pairs, and else said to be unknown. With three networks "
        f"of each precision timed on the board, the median error is {percent(three['median_error'], 0)} for a network "
        f"that nobody timed ({percent(known['median_error'], 0)} for one that was timed on other boards) and the "
        f"factor {three['interval_factor']:.1f}; {inside(three)} "
        "([`benchmarks/latency`](../benchmarks/latency/RESULTS.md))."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


PAGE = HERE.parent.parent / "docs" / "targets-and-boards.md"
MARK = re.compile(r"(<!-- latency: written by benchmarks/latency/results.py -->\n).*?(\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """RESULTS.md and the paragraph again, from result.json."""
    found = json.loads((HERE / "result.json").read_text(encoding="utf-8"))
    (HERE / "RESULTS.md").write_text(markdown(found), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARK.sub(lambda m: m.group(1) + paragraph(found) + m.group(2), text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
