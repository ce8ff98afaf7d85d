"""The published latencies as tables of rows: one table per device, cores, number of threads and listing.

Rows without a network in `networks.NETWORKS`, and those of NPUs, microcontrollers and browsers, are left out;
`left_out` counts them. `more` reads the second file, of further boards on ncnn's page, whose cores and clocks were
written beside the headings by hand: `CORRECTED` says which of them are no facts of the board.
"""

from __future__ import annotations

import csv
import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from networks import NETWORKS

from edgekd.predicting.costs import Precision, costs
from edgekd.predicting.population import Device, Row, Table
from edgekd.predicting.work import Operator, macs

NCNN = "Tencent/ncnn"
# XNNPACK, TNN, TFLite, MNN
OTHER_RUNTIMES = ("google/XNNPACK", "Tencent/TNN", "tensorflow/tpu", "tensorflow/tensorflow", "alibaba/MNN")
PHONES = {"Kryo 385": "cortex-a75", "Kryo 360": "cortex-a75", "Kryo 280": "cortex-a73"}
# as ncnn's own listing of networks calls them -> NETWORKS; others have the same name in both
SHORT = {
    "squeezenet": "squeezenet1.1",
    "mobilenet": "mobilenet_v1_1.0",
    "mobilenet_v2": "mobilenet_v2_1.0",
    "mnasnet": "mnasnet_1.0",
}
SHORT |= {
    "mobilenet_v3": "mobilenet_v3_large_1.0",
    "shufflenet": "shufflenet_v1_1.0x_g3",
    "shufflenet_v2": "shufflenet_v2_1.0x",
}
# {board: (facts, source)}; clocks of x86 are the base clocks of headings and data sheets, and stay: what it ran at is
# not told
CORRECTED = {
    "RemiPi": (
        {"clock_ghz": 1.2, "threads": 2},
        "Renesas RZ/G2L data sheet: two Cortex-A55 of at most 1.2 GHz (heading: 1.5, 4 threads)",
    ),
    "765G": (
        {"threads": 2},
        "Qualcomm: two Cortex-A76 and six A55; ncnn's powersave 2 binds all four threads to the two (src/cpu.cpp)",
    ),
}
TITLES = {
    "765G": "Snapdragon 765G",
    "5950X": "Ryzen 9 5950X",
    "V1605B": "Ryzen Embedded V1605B",
    "i7-11800H": "Core i7-11800H",
}
TITLES |= {
    "D64ps v6": "Azure D64ps v6",
    "AGX Orin": "Jetson AGX Orin",
    "AGX Xavier": "Jetson AGX Xavier",
    "NVIDIA Jetson Nano": "Jetson Nano",
}
NO_CPU = re.compile(r"NPU|Cortex-M|Chrome|MLPerf|AI Hub", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """A table with what the file says of each row: network, multiply-accumulates. `board` is the device without its
    listing's version."""

    table: Table
    board: str
    networks: tuple[str, ...]
    macs: np.ndarray


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def listings(rows: Iterable[dict[str, str]], repository: str = NCNN) -> list[Listing]:
    """The tables of one source, in the order of the file."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row["source_repo"] == repository and network(row) and device(row):
            groups.setdefault((row["device"], row["cpu"], row["threads"], row["runtime"]), []).append(row)
    found = []
    for key, given in groups.items():
        made = device(given[0], any(r["precision"] == "fp16" for r in given))
        rows_ = [
            (network(r) or "", precision(r), float(r["latency_ms"]), f"{r['source_repo']} {r['source_path']}")
            for r in given
        ]
        board = re.sub(r" \((newer|older) ncnn\)", "", key[0])
        found.append(_listing(f"{key[0]}, {key[1]}, {key[2]} threads", made, board, rows_))
    return found


def more(rows: Iterable[dict[str, str]]) -> list[Listing]:
    """The tables of further boards of ncnn, in the order of their file, with the facts of `CORRECTED`."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if _short(row) in NETWORKS:
            groups.setdefault(
                tuple(row[k] for k in ("board", "core", "clock_ghz", "threads", "fp16", "powersave")), []
            ).append(row)
    found = []
    for (name, core, clock, threads, half, powersave), given in groups.items():
        board = name.replace("(", "").strip()
        facts = {"clock_ghz": float(clock), "threads": int(threads), **CORRECTED.get(board, ({}, ""))[0]}
        board = TITLES.get(board, board)
        source = f"{NCNN} benchmark/README.md, {given[0]['heading']}"
        rows_ = [
            (_short(r), "int8" if r["model"].endswith("_int8") else "float", float(r["min_ms"]), source) for r in given
        ]
        title = f"{board}, {core}, {threads} threads, powersave {powersave}"
        found.append(_listing(title, Device(core, half=half == "1", **facts), board, rows_))
    return found


def _short(row: dict[str, str]) -> str:
    name = row["model"].removesuffix("_int8")
    return SHORT.get(name, name)


def _listing(
    title: str, made: Device | None, board: str, given: Sequence[tuple[str, Precision, float, str]]
) -> Listing:
    """A listing of rows (network, precision, milliseconds, source)."""
    rows = tuple(Row(_amounts(n), ms, p, source) for n, p, ms, source in given)
    return Listing(
        Table(title, made, rows, board),
        board,
        tuple(n for n, *_ in given),
        np.array([macs(_work(n)) for n, *_ in given]) / 1e6,
    )


@functools.cache
def _work(name: str) -> tuple[Operator, ...]:
    return NETWORKS[name]().work


@functools.cache
def _amounts(name: str) -> np.ndarray:
    return costs(_work(name))


def left_out(rows: Iterable[dict[str, str]]) -> dict[str, int]:
    """{source: rows that no prediction is tried on}."""
    return dict(Counter(r["source_repo"] for r in rows if not (network(r) and device(r))))


def precision(row: dict[str, str]) -> Precision:
    return "int8" if row["precision"].startswith("int8") else "float"


def network(row: dict[str, str]) -> str | None:
    """The name in NETWORKS, or None where the row's network has no definition there."""
    name, size = row["model"], re.search(r"1x(?:3x)?(\d+)x", row["input"])
    if size and f"{name.removesuffix('.0')}@{size.group(1)}" in NETWORKS:
        return f"{name.removesuffix('.0')}@{size.group(1)}" if row["source_repo"] != NCNN else name
    return name if name in NETWORKS else None


def device(row: dict[str, str], half: bool = False) -> Device | None:
    """Core, clock and threads of a row; the biggest core where several kinds work. None: no CPU that the predictor
    knows."""
    text = re.sub(r"(\d+)MHz", lambda m: f"{int(m.group(1)) / 1000}GHz", row["cpu"])
    if NO_CPU.search(text + row["runtime"] + row["device"]) or not row["threads"]:
        return None
    little = "little cores only" in text
    pairs = re.findall(r"(?:Cortex-)?\b([AX]\d+)(?:[^\d]*?)\s(\d\.\d+|\d)", text)
    threads = int(row["threads"])
    if pairs:
        core, clock = pairs[-1] if little else pairs[0]
        return Device(f"cortex-{core.lower()}", float(clock), threads, half)
    clock = re.search(r"(\d\.\d+)GHz", text)
    if clock is None:
        return None
    for name, core in PHONES.items():
        if name in text:
            return Device(core, float(clock.group(1)), threads, half)
    if re.search(r"Xeon|EPYC|Core i", row["device"] + text):
        return Device("avx512" if "AVX512" in text else "avx2", float(clock.group(1)), threads, half)
    return None
