"""Writes targets/calibrations/: the published rows of each board with their source, and the population that they are drawn from.

python benchmarks/latency/ship.py PUBLISHED.csv          (after validate.py, whose result.json says how wide intervals have to be)
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import published

from edgekd.predicting import shipped
from edgekd.predicting.population import Population, learn

HERE = Path(__file__).parent


def population(tables: list[published.Listing], result: dict) -> Population:
    """With the widest of the calibrated ways' reaches: a user's rows may be few or many."""
    ways = result["ways"]
    reach = {"calibrated": max(ways[w]["reach"] for w in ("models", "both", "boards 3", "boards 5")), "transferred": ways["boards 0"]["reach"]}
    means = {p: [m for _, q, m, _ in result["offsets"] if q == p] for p in ("float", "int8")}
    runtimes = {p: round(float(np.mean(np.square(v))), 4) for p, v in means.items()}
    return dataclasses.replace(learn([x.table for x in tables], "ncnn"), reach=reach, runtimes=runtimes)


def slug(board: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", board.lower().replace("+", " plus")).strip("-")


def main(path: Path) -> None:
    listings = published.listings(published.read(path))
    folder = HERE.parent.parent / "targets" / "calibrations"
    folder.mkdir(parents=True, exist_ok=True)
    shipped.write_population(folder / "population.json", population(listings, json.loads((HERE / "result.json").read_text(encoding="utf-8"))))
    for board in dict.fromkeys(x.board for x in listings):
        own = [x for x in listings if x.board == board]
        made = shipped.Board(slug(board), board, "ncnn", tuple(x.table for x in own))
        shipped.write(folder / f"{made.name}.json", made, [x.networks for x in own])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
