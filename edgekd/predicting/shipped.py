"""Calibration files: timed rows, with their networks' costs and their sources. The fit is computed on reading, in
milliseconds.

A file (`edgekd.calibration/1`, JSON) has one board: {schema, name, title, runtime, costs {network: [11]}, tables
[{core, clock_ghz, threads, half, source, rows [[network, precision, milliseconds]]}]}. The shipped files are in
targets/calibrations/, made from published figures by benchmarks/latency/ship.py; `population.json` beside them
(`edgekd.population/1`) is the fit of all of them together."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import files
from edgekd.errors import Problem, UsageError
from edgekd.predicting import calibration
from edgekd.predicting.calibration import Calibration
from edgekd.predicting.costs import NAMES, PRECISIONS
from edgekd.predicting.population import BOARDS, COUNT, TRAITS, Device, Population, Row, Table

SCHEMA, POPULATION = "edgekd.calibration/1", "edgekd.population/1"
MOST_BYTES = 4_000_000
HINT = "`edgekd targets calibrate` writes such files"


@dataclass(frozen=True)
class Board:
    """One file: a board's tables, and the runtime that timed them."""

    name: str
    title: str
    runtime: str
    tables: tuple[Table, ...]


def folder() -> Path | None:
    """The folder of the shipped files: inside an installed package, or beside the package in a source tree."""
    package = Path(__file__).resolve().parent.parent
    return next(
        (f for f in (package / "_targets" / "calibrations", package.parent / "targets" / "calibrations") if f.is_dir()),
        None,
    )


@functools.cache
def boards() -> tuple[Board, ...]:
    """All shipped boards, by name."""
    place = folder()
    return tuple(read(p) for p in sorted(place.glob("*.json")) if p.name != "population.json") if place else ()


@functools.cache
def population() -> Population:
    """The population of the shipped boards, which predicts boards that aren't among them."""
    place = folder()
    if place is None:
        raise UsageError(Problem("", "this installation has no targets/calibrations", "install edgekd again"))
    return read_population(place / "population.json")


@functools.cache
def calibrations(core: str) -> tuple[Calibration, ...]:
    """The fits of all shipped tables of a core."""
    chosen = [(b, t) for b in boards() for t in b.tables if t.device.core == core]
    return tuple(
        calibration.fit(t.rows, t.device, population(), name=t.name, runtime=b.runtime, board=b.name) for b, t in chosen
    )


def calibrate(device: Device, *, runtime: str, rows: Sequence[Row] = (), name: str = "") -> Calibration | None:
    """The best calibration of a device: from its own rows if there are any (timed with `runtime`), and the shipped
    boards with its core. None without rows and without such a board: then there is only `bound.bound`."""
    kin = calibrations(device.core)
    if not rows and not kin:
        return None
    return calibration.fit(rows, device, population(), name=name, runtime=runtime, relatives=kin)


# ---------------------------------------------------------------- reading and writing


def read(path: Path) -> Board:
    """Reads a calibration file. Raises UsageError with every problem of the file."""
    raw, problems = _json(path, SCHEMA), []
    where = path.name
    costs = {}
    for network, amounts in _mapping(raw.get("costs")).items():
        if _numbers(amounts, COUNT, 0.0, 1e9):
            costs[str(network)] = np.array(amounts, np.float64)
        else:
            problems.append(
                Problem(
                    f"{where}: costs.{network}", f"must be {COUNT} finite numbers from 0 on: {', '.join(NAMES)}", HINT
                )
            )
    names = {key: raw.get(key) for key in ("name", "title", "runtime")}
    problems += [
        Problem(f"{where}: {key}", "must be a text", HINT)
        for key, value in names.items()
        if not isinstance(value, str) or not value
    ]
    tables: list[Table] = []
    listed = raw.get("tables")
    if not isinstance(listed, list) or not listed:
        problems.append(Problem(f"{where}: tables", "must be a list with at least one table", HINT))
    for number, table in enumerate(listed if isinstance(listed, list) else []):
        made = _table(f"{where}: tables[{number}]", str(names["name"]), _mapping(table), costs, problems)
        tables += [made] if made else []
    if problems:
        raise UsageError(*problems)
    return Board(str(names["name"]), str(names["title"]), str(names["runtime"]), tuple(tables))


def _table(
    where: str, name: str, raw: Mapping[str, Any], costs: Mapping[str, np.ndarray], problems: list[Problem]
) -> Table | None:
    core, clock, threads, half, source = (raw.get(k) for k in ("core", "clock_ghz", "threads", "half", "source"))
    wrong = []
    if not isinstance(core, str) or not core:
        wrong.append(Problem(f"{where}.core", "must be a text such as cortex-a72", HINT))
    if not _number(clock, 1e-3, 100):
        wrong.append(Problem(f"{where}.clock_ghz", "must be a number from 0.001 to 100", HINT))
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        wrong.append(Problem(f"{where}.threads", "must be an integer from 1 to 1024", HINT))
    if not isinstance(half, bool):
        wrong.append(Problem(f"{where}.half", "must be true or false", HINT))
    if not isinstance(source, str) or not source:
        wrong.append(Problem(f"{where}.source", "is missing: figures need a source", HINT))
    rows = []
    for i, line in enumerate(raw.get("rows") if isinstance(raw.get("rows"), list) else []):
        if not (isinstance(line, list) and len(line) == 3 and line[1] in PRECISIONS and _number(line[2], 1e-6, 1e9)):
            wrong.append(
                Problem(f"{where}.rows[{i}]", f"must be [network, {' or '.join(PRECISIONS)}, milliseconds]", HINT)
            )
        elif not isinstance(line[0], str) or line[0] not in costs:
            wrong.append(
                Problem(f"{where}.rows[{i}]", f"names the network `{str(line[0])[:80]}`, which is not in `costs`", HINT)
            )
        else:
            rows.append(Row(costs[line[0]], float(line[2]), line[1], str(source)))
    if not rows and not wrong:
        wrong.append(Problem(f"{where}.rows", "must be a list with at least one row", HINT))
    problems += wrong
    if wrong:
        return None
    return Table(
        f"{name}, {core}, {threads} threads",
        Device(str(core), float(clock), int(threads), bool(half)),
        tuple(rows),
        name,
    )


def write(path: Path, board: Board, networks: Sequence[Sequence[str]]) -> None:
    """Writes a board's file; `networks`: the names of each table's rows."""
    amounts = {
        n: [float(f"{v:.6g}") for v in r.costs]
        for names, t in zip(networks, board.tables, strict=True)
        for n, r in zip(names, t.rows, strict=True)
    }
    tables = []
    for names, t in zip(networks, board.tables, strict=True):
        facts = {
            "core": t.device.core,
            "clock_ghz": t.device.clock_ghz,
            "threads": t.device.threads,
            "half": t.device.half,
        }
        rows = [[n, r.precision, r.milliseconds] for n, r in zip(names, t.rows, strict=True)]
        tables.append({**facts, "source": t.rows[0].source, "rows": rows})
    head = {"schema": SCHEMA, "name": board.name, "title": board.title, "runtime": board.runtime}
    files.write_atomic(path, _lines({**head, "costs": amounts, "tables": tables}).encode())


def read_population(path: Path) -> Population:
    """Reads population.json. Raises UsageError where it is not valid."""
    raw = _json(path, POPULATION)
    shapes = {"weights": (len(TRAITS), 2 * COUNT), "spread": (2 * COUNT, 2 * COUNT)}
    arrays, problems = {}, []
    for key, shape in shapes.items():
        try:
            arrays[key] = np.array(raw.get(key), np.float64)
        except (TypeError, ValueError, OverflowError):
            arrays[key] = np.zeros(0)
        if arrays[key].shape != shape or not np.isfinite(arrays[key]).all():
            problems.append(
                Problem(
                    f"{path.name}: {key}",
                    f"must be a table of {shape[0]} x {shape[1]} finite numbers",
                    "install edgekd again",
                )
            )
    numbers = {key: raw.get(key) for key in ("noise", "likeness", "same")}
    numbers |= {f"reach.{k}": _mapping(raw.get("reach")).get(k) for k in ("calibrated", "transferred")}
    numbers |= {f"runtimes.{k}": _mapping(raw.get("runtimes")).get(k) for k in PRECISIONS}
    boards = {family: _mapping(_mapping(raw.get("boards")).get(family)) for family in BOARDS}
    numbers |= {f"boards.{family}.{k}": boards[family].get(k) for family, terms in BOARDS.items() for k in terms}
    problems += [
        Problem(f"{path.name}: {k}", "must be a number from 0 to 100", "install edgekd again")
        for k, v in numbers.items()
        if not _number(v, 0, 100)
    ]
    if not problems and np.linalg.eigvalsh((arrays["spread"] + arrays["spread"].T) / 2).min() <= 0:
        problems.append(
            Problem(f"{path.name}: spread", "must be a positive definite covariance", "install edgekd again")
        )
    if problems:
        raise UsageError(*problems)
    rest = {key: raw[key] for key in ("noise", "likeness", "reach", "runtimes", "same")}
    return Population(str(raw.get("runtime")), arrays["weights"], arrays["spread"], **rest, boards=boards)


def write_population(path: Path, known: Population) -> None:
    head = {"schema": POPULATION, "runtime": known.runtime, "traits": list(TRAITS), "costs": list(NAMES)}
    tables = {key: [[float(f"{v:.6g}") for v in line] for line in getattr(known, key)] for key in ("weights", "spread")}
    rest = {
        "noise": float(f"{known.noise:.4g}"),
        "likeness": known.likeness,
        "same": known.same,
        "reach": dict(known.reach),
    }
    rest |= {
        "runtimes": dict(known.runtimes),
        "boards": {family: dict(terms) for family, terms in known.boards.items()},
    }
    files.write_atomic(path, _lines({**head, **rest, **tables}).encode())


def _json(path: Path, schema: str) -> Mapping[str, Any]:
    try:
        with files.reading(path, HINT):
            raw = json.loads(files.content(path, MOST_BYTES).decode("utf-8"))
    except (ValueError, RecursionError):
        raise UsageError(Problem(str(path), "is not valid JSON", HINT)) from None
    if not isinstance(raw, dict) or raw.get("schema") != schema:
        raise UsageError(Problem(str(path), f"must have schema: {schema}", HINT))
    return raw


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)
    )


def _numbers(value: Any, count: int, low: float, high: float) -> bool:
    return isinstance(value, list) and len(value) == count and all(_number(v, low, high) for v in value) and any(value)


def _lines(table: Mapping[str, Any]) -> str:
    """JSON with a line per entry of the first two levels: differences stay readable."""
    parts = []
    for key, value in table.items():
        if isinstance(value, dict) and value and not all(isinstance(v, float | int) for v in value.values()):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            parts.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        elif isinstance(value, list) and value and not isinstance(value[0], str):
            inner = ",\n".join(f"  {json.dumps(v)}" for v in value)
            parts.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
