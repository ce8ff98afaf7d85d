"""Grids as JSON: `grid.json`, schema edgekd.grid/1. A float written by repr reads back to the same bits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from edgekd.errors import RunFailed
from edgekd.records import Grid, Scheme, Site

SCHEMA = "edgekd.grid/1"


def write(grid: Grid, path: Path) -> None:
    record = {
        "schema": SCHEMA,
        "graph": grid.graph,
        "scheme": dataclasses.asdict(grid.scheme),
        "sites": {name: dataclasses.asdict(site) for name, site in grid.sites.items()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def read(path: Path) -> Grid:
    """Raises RunFailed for a file of another schema or form."""
    try:
        record = json.loads(path.read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
        sites = {name: Site(**{**site, "scale": tuple(site["scale"])}) for name, site in record["sites"].items()}
        scheme = Scheme(**{**record["scheme"], "float_layers": tuple(record["scheme"].get("float_layers", ()))})
        return Grid(record["graph"], scheme, sites)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFailed(f"{path.name} can't be read as a grid: {error}") from error
