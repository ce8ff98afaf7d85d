"""The store keeps the results of checks that passed, so that a finished run does not build models to check them again.

The key of a result has all that the check depends on, as in the keys of steps: code by syntax, data by digest,
libraries by version; and the bytes of every source file of edgekd. If a key can't be made, the check runs every time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import THEIRS
from edgekd.records import Task
from edgekd.store import fingerprint
from edgekd.store.store import Store

SPLITS = ("train", "validation", "test")


def kept(
    store: Store | None, name: str, identity: Callable[[], Any], check: Callable[[], Mapping[str, Any] | None]
) -> Mapping[str, Any] | None:
    """The result of `check`: JSON values if it passed, None if not. `check` is called only if the store has no result
    of this name and identity. The store keeps results that are not None."""
    key = _key(identity) if store is not None else ""
    found = store.observed(key, name) if store is not None and key else None
    if found is not None:
        return found
    made = check()
    if store is not None and key and made is not None:
        store.observe(key, name, made)
    return made


def of_task(task: Task, data: Callable[[str], Any]) -> tuple[Any, ...]:
    """Everything that a task's behaviour depends on. `data(split)` gives its loaded columns."""
    functions = (task.collate, task.augment, task.forward, task.before)
    objects = [dict(task.models), *(f for m in task.metrics for f in (m.records, m.value))]
    code, libraries = fingerprint.code_and_libraries(*objects, *(f for f in functions if f is not None))
    names = ["name", "version", "classes", "inputs", "outputs", "draws", "views", "shareable"]
    names += [] if task.stream is None else ["stream"]
    said = [getattr(task, name) for name in names]
    metrics = [(m.name, m.unit, m.better) for m in task.metrics]
    digests = {split: data(split).digest for split in SPLITS}
    return code, sorted(libraries.items()), said, metrics, digests, fingerprint.files(task.assets)


def _key(identity: Callable[[], Any]) -> str:
    """Empty if it can't be made: code without source, data that can't be read."""
    try:
        return hashlib.sha256(repr((_edgekd(), identity())).encode()).hexdigest()
    except THEIRS:
        return ""


@functools.cache
def _edgekd() -> str:
    """sha256 of edgekd's own source files, by name and content."""
    return fingerprint.files([Path(__file__).parent.parent], "*.py")
