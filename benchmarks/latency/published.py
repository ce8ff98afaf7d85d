"""The published latencies as tables of rows: one table per device, cores, number of threads and listing.

Rows without a network in `networks.NETWORKS`, and those of NPUs, microcontrollers and browsers, are left out; `left_out` counts them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from networks import NETWORKS

from edgekd.predicting.costs import Precision, costs
from edgekd.predicting.population import Device, Row, Table
from edgekd.predicting.work import macs

NCNN = "Tencent/ncnn"
OTHER_RUNTIMES = ("google/XNNPACK", "Tencent/TNN", "tensorflow/tpu", "tensorflow/tensorflow", "alibaba/MNN")  # XNNPACK, TNN, TFLite, MNN
PHONES = {"Kryo 385": "cortex-a75", "Kryo 360": "cortex-a75", "Kryo 280": "cortex-a73"}
NO_CPU = re.compile(r"NPU|Cortex-M|Chrome|MLPerf|AI Hub", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """A table with what the file says of each row: network, multiply-accumulates. `board` is the device without its listing's version."""

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
    work = {name: make().work for name, make in NETWORKS.items()}
    amounts = {name: costs(w) for name, w in work.items()}
    found = []
    for key, given in groups.items():
        names = tuple(network(r) or "" for r in given)
        half = any(r["precision"] == "fp16" for r in given)
        made = device(given[0], half)
        rows_ = tuple(
            Row(amounts[n], float(r["latency_ms"]), precision(r), f"{r['source_repo']} {r['source_path']}") for n, r in zip(names, given, strict=True)
        )
        board = re.sub(r" \((newer|older) ncnn\)", "", key[0])
        found.append(
            Listing(Table(f"{key[0]}, {key[1]}, {key[2]} threads", made, rows_), board, names, np.array([macs(work[n]) for n in names]) / 1e6)
        )
    return found


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
    """Core, clock and threads of a row; the biggest core where several kinds work. None: no CPU that the predictor knows."""
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
