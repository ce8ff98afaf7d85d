"""Notes of the reports on a target: its verdict and checks, cautions on the table, and how figures were obtained."""

from __future__ import annotations

import math

from edgekd import intervals
from edgekd.errors import plain
from edgekd.probes.instructions import INSTRUCTIONS
from edgekd.probes.other_cpus import HOST_AGREEMENT, SPREAD
from edgekd.probes.saturation import SATURABLE
from edgekd.probes.state import STATE_BYTES
from edgekd.probes.times import AT_LEAST, P50
from edgekd.records import Check, Measurement, Result, TargetResult
from edgekd.report.numbers import number, ranged, value
from edgekd.report.rows import metrics, rows
from edgekd.targets import REFERENCE

LATENCY = (P50.name, AT_LEAST.name)
VERDICTS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


def verdict(target: str, found: TargetResult) -> str:
    """`host: PASS, chosen prune-0.5.int8 (reason)`."""
    chosen = f"chosen {plain(found.chosen)}" if found.chosen else "nothing chosen"
    gate = VERDICTS[found.verdict] + ", " if found.verdict else ""
    return f"{plain(target)}: {gate}{chosen}" + (f" ({plain(found.reason)})" if found.reason else "")


def check(c: Check) -> str:
    """`top1 drop max 1 pt vs teacher: PASS at -0.3 [-1.1, 0.4] pt measured`."""
    figure = ""
    if c.value is not None:
        figure = f" at {number(c.value)}"
        if c.low is not None and c.high is not None and not c.low == c.value == c.high:
            figure += f" [{number(c.low)}, {number(c.high)}]"
        figure += f" {c.unit} {c.origin or ''}".rstrip()
    warn = " (warning only)" if c.level == "warn" else ""
    return plain(f"{c.name} {c.rule}: {VERDICTS[c.verdict]}{figure}{warn}" + (f": {c.reason}" if c.reason else ""))


def notes(result: Result, target: str) -> list[tuple[str, str]]:
    """[(label, text)] of notes next to a target's verdict."""
    told = (("emulated", proof(result, target)), ("note", caution(result, target)), ("note", elsewhere(result, target)))
    return [(label, text) for label, text in told if text]


def caution(result: Result, target: str) -> str:
    """A caution that the int8 choice is slower than the float model that it was made from; "" if it is not."""
    listed = {row.candidate.id: row for row in rows(result, target)}
    ours = next((row for row in listed.values() if row.chosen), None)
    if ours is None or "int8" not in ours.candidate.stages:
        return ""
    parent = next((listed[p] for p in ours.candidate.parents if p in listed), None)
    a, b = ours.figures.get(P50.name), parent.figures.get(P50.name) if parent is not None else None
    if a is None or b is None or min(a.low, b.low) <= 0:
        return ""
    ratio, low, high = intervals.ratio_of(a, b)
    if ratio <= 1 or low <= 1:  # a clear prediction has no limits
        return ""
    limits = " by prediction" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    of = f"the time of the float {plain(parent.candidate.id)}{limits}"
    return (
        f"int8 is slower here: {plain(ours.candidate.id)} takes {ratio:.2f} x {of}; at this size conversions take "
        "more time than integer kernels save"
    )


def proof(result: Result, target: str) -> str:
    """The results of emulating the chosen file as this target: `as Haswell: all outputs equal to this machine's (899
    samples); ...`, or ""."""
    chosen = next((c for c in result.candidates if c.id == result.targets[target].chosen), None)
    found = {
        m.name: m
        for m in (chosen.measurements if chosen is not None else ())
        if m.target == target and m.origin == "emulated"
    }
    same, spread = found.get(HOST_AGREEMENT.name), found.get(SPREAD.name)
    told = [] if same is None else [f"{same.note}, {number(same.value)} % of {same.n} answers"]
    told += (
        []
        if spread is None
        else [f"spread over CPUs {number(spread.value)} {spread.unit} ({spread.n} samples: {spread.note})"]
    )
    return plain("; ".join(told))


def elsewhere(result: Result, target: str) -> str:
    """A note on an int8 choice that can saturate on x86 CPUs that add products in 16 bits; "" if it can't."""
    chosen = next((c for c in result.candidates if c.id == result.targets[target].chosen), None)
    found = next(
        (m for m in (chosen.measurements if chosen is not None else ()) if m.name == SATURABLE.name and m.value > 0),
        None,
    )
    if found is None:
        return ""
    text = f"on x86 with AVX2 and without VNNI {number(found.value)} layers can saturate ({found.note} in samples)"
    return plain(f"{text}; without pairs16 = false in its stage or a target, its outputs are the same there")


def came_about(result: Result, target: str) -> list[tuple[str, str]]:
    """[(label, text)] on how a target's figures were obtained: the basis of a predicted latency, instructions, files
    that were run."""
    listed = rows(result, target)
    ours = next((r for r in listed if r.chosen), listed[0] if listed else None)
    if ours is None:
        return []
    told, quality = [], metrics(listed)
    guessed = next(
        (m for name in LATENCY if (m := ours.figures.get(name)) is not None and m.origin == "predicted"), None
    )
    if guessed is not None:
        bound = f" {value(guessed)} ms" if guessed.name != LATENCY[0] else ""
        told.append(("predicted", f"{guessed.name}{bound}, {guessed.note}"))
        told += [("range", advice(guessed))] if ranged(guessed) else []
    elif not any(name in r.figures for r in listed for name in LATENCY):
        told.append(
            ("latency", f"none: no machine that matches {target} was connected, and there is no prediction for it")
        )
    whole = [plain(r.candidate.id) for r in listed if STATE_BYTES.name not in r.figures]
    if len(whole) < len(listed):
        text = "latency and multiply-accumulates are those of a step"
        told.append(("steps", f"{text}; of {', '.join(whole)} those of a whole sequence" if whole else text))
    work = ours.figures.get(INSTRUCTIONS.name)
    if work is not None:
        told.append(
            (
                INSTRUCTIONS.name,
                f"{value(work)} per inference of {ours.candidate.id}, counted under emulation ({work.note})",
            )
        )
    other = {
        text
        for m in ours.figures.values()
        for text in m.note.split("; ")
        if text.startswith("with ") and ", the target has " in text
    }
    told += [("note", f"figures of {target} were measured {text}") for text in sorted(other)]
    by_reference = next(
        (m.note for name in quality if (m := ours.figures.get(name)) is not None and m.note.startswith(REFERENCE)), ""
    )
    if by_reference:
        told.append(
            ("quality", f"from the {by_reference}, since edgekd has no runtime for {target}; budgets on quality use it")
        )
    emulated = [name for name in quality if name in ours.figures and ours.figures[name].origin == "emulated"]
    if emulated and any(emulated[0] not in r.figures for r in listed):
        told.append(
            (
                "note",
                f"only the chosen file was run as {target}: the choice used the files' outputs on the machine of this "
                "run",
            )
        )
    return [(label, plain(text)) for label, text in told]


def advice(m: Measurement) -> str:
    """The meaning of a range, and how to get a figure instead."""
    return (
        f"the latency on {m.target} is only known within this range; `edgekd targets calibrate {m.target} --on "
        "ssh://user@host` times small networks on such a board in a few minutes, and makes later predictions precise"
    )
