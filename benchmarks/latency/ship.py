"""Writes targets/calibrations/: the published rows of each board with their source, and the population that they are
drawn from.

    python benchmarks/latency/ship.py PUBLISHED.csv MORE.csv

Run it after validate.py, whose result.json says how wide intervals have to be.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import published
import results

from edgekd.predicting import shipped
from edgekd.predicting.population import Population, learn

HERE = Path(__file__).parent


def population(tables: list[published.Listing], result: dict) -> Population:
    """With the widest of the ways' reaches: a user's rows may be few or many, and the network is one that nobody
    timed."""
    widest = lambda ways: max(result["ways"][w]["reach"] for w in ways)
    reach = {"calibrated": widest(results.CALIBRATED), "transferred": widest(results.TRANSFERRED)}
    known = learn([x.table for x in tables], "ncnn")
    return dataclasses.replace(known, reach=reach, runtimes=result["runtimes"], boards=result["boards"])


def slug(board: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", board.lower().replace("+", " plus")).strip("-")


def main(path: Path, further: Path) -> None:
    listings = [*published.listings(published.read(path)), *published.more(published.read(further))]
    folder = HERE.parent.parent / "targets" / "calibrations"
    folder.mkdir(parents=True, exist_ok=True)
    shipped.write_population(
        folder / "population.json", population(listings, json.loads((HERE / "result.json").read_text(encoding="utf-8")))
    )
    for board in dict.fromkeys(x.board for x in listings):
        own = [x for x in listings if x.board == board]
        made = shipped.Board(slug(board), board, "ncnn", tuple(x.table for x in own))
        shipped.write(folder / f"{made.name}.json", made, [x.networks for x in own])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
