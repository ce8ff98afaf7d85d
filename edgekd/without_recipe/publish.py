"""Replaces the result in a run's folder by a newer one that was written beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgekd.run.folder import OURS

LOG = "log.jsonl"  # it is added to, in the run's folder
LAST = ("result.json", "recipe.toml")


def work_of(folder: Path) -> Path:
    """The folder where the next result is written: beside the run's, so that relative paths mean the same in both."""
    return _beside(folder, "next")


def _ready(folder: Path) -> Path:
    """The name that the next result has once it is complete."""
    return _beside(folder, "ready")


def _beside(folder: Path, what: str) -> Path:
    """A hidden folder beside the run's, whose path may be `.` or a link."""
    whole = folder.resolve()
    return whole.with_name(f".{whole.name}.{what}")


def begin(folder: Path) -> Path:
    """An empty folder for the next result; what was left of one that was not finished is removed."""
    drop(folder)
    work = work_of(folder)
    work.mkdir(parents=True)
    return work


def drop(folder: Path) -> None:
    """Removes a next result that was not finished, if there is one."""
    shutil.rmtree(work_of(folder), ignore_errors=True)


def publish(folder: Path) -> None:
    """Moves the next result, which is complete, into the run's folder."""
    os.rename(work_of(folder), _ready(folder))
    finish(folder)


def finish(folder: Path) -> None:
    """Goes on with a move that was cut off; does nothing where there was none."""
    ready, old = _ready(folder), _beside(folder, "old")
    if ready.is_dir():
        present = [name for name in OURS if name != LOG and (ready / name).exists()]
        for name in sorted(present, key=lambda name: name in LAST):
            if (ready / name).is_dir():
                shutil.rmtree(old, ignore_errors=True)
                if (folder / name).exists():
                    os.rename(folder / name, old)
                os.rename(ready / name, folder / name)
            else:
                os.replace(ready / name, folder / name)
        shutil.rmtree(ready, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
