"""The folder of a run, which holds one run of one recipe at a time, and its log."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import Problem, UsageError
from edgekd.files import toml, write_atomic, writing
from edgekd.models.device import CPU
from edgekd.run.recipe.form import DEVICE, MOST_THREADS
from edgekd.store.locks import held

OURS = (
    "recipe.toml",
    "result.json",
    "report.html",
    "report.md",
    "log.jsonl",
    "models",
    "predictions",
    "bundles",
    "profile",
    "fixed",
)
LATER = {"accumulate": 1, "batch_norm": "synchronized"}  # settings that older runs do not have, which meant the same


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for one run at a time. The lock is released when the process ends, however it ends."""
    with contextlib.ExitStack() as stack:
        with writing(folder, "choose another folder with --out"):
            folder.mkdir(parents=True, exist_ok=True)
            mine = stack.enter_context(held(folder / ".lock"))
        if not mine:
            hint = "wait for it to end, or choose another folder with --out"
            raise UsageError(Problem(str(folder), "another run is using this folder", hint))
        yield


def claim(folder: Path, text: str, fresh: bool) -> None:
    """Claims the folder for this recipe. A run of another recipe is replaced only with `fresh`, and only the files that
    a run writes."""
    path = folder / "recipe.toml"
    if fresh:
        for name in OURS:
            target = folder / name
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
    elif path.is_file() and _recipe(path.read_text(encoding="utf-8")) != _recipe(text):
        hint, begun = (
            "--fresh replaces it (finished work stays in the store), --out NAME keeps both",
            threads_of(folder),
        )
        if begun is not None and toml(text)["threads"] != begun:
            hint = f"the run began with {begun} thread{'s' * (begun > 1)}: --threads {begun} resumes it; {hint}"
        before, now = (found.get("processes", 1) for found in (toml(path.read_text(encoding="utf-8")), toml(text)))
        if before != now:
            hint = f"the run began with processes = {before}: --processes {before} resumes it; {hint}"
        raise UsageError(Problem(str(folder), "holds the run of another recipe", hint))
    elif not path.is_file():
        foreign = [p.name for p in folder.iterdir() if p.name in OURS]
        if foreign:
            raise UsageError(
                Problem(
                    str(folder),
                    f"holds {', '.join(foreign)} but no recipe.toml: not a run",
                    "choose another folder with --out",
                )
            )
    write_atomic(path, text.encode())


def _recipe(text: str) -> Any:
    """The recipe as a table, without `device`, which may change while a run is resumed, nor what older versions did not
    write; the text itself where it is not valid TOML."""
    try:
        return {k: _told(v) for k, v in toml(text).items() if k != "device"}
    except ValueError:
        return text


def _told(value: Any) -> Any:
    """A value of a recipe without the LATER settings that are the default."""
    if isinstance(value, dict):
        return {k: _told(v) for k, v in value.items() if k not in LATER or v != LATER[k]}
    return [_told(v) for v in value] if isinstance(value, list) else value


def devices_of(folder: Path) -> tuple[str, ...]:
    """The devices of the run in a folder, in their order; () where there is no run. A run without any is on the CPU."""
    try:
        found = toml((folder / "recipe.toml").read_text(encoding="utf-8")).get("device", CPU)
    except (OSError, ValueError):
        return ()
    names = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return tuple(name for name in names if isinstance(name, str) and name != "auto" and DEVICE.fullmatch(name))


def threads_of(folder: Path) -> int | None:
    """The number of threads that the run in a folder began with; None where there is no run."""
    try:
        found = toml((folder / "recipe.toml").read_text(encoding="utf-8")).get("threads")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, int) and 1 <= found <= MOST_THREADS else None


def logger(path: Path):
    """`log(**event)`, which appends a line of JSON in one write."""

    def log(**event: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, default=str) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    return log
