"""Temporary folders that a killed process leaves behind no longer than until the next one asks for its own."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekd import system

PREFIX, LOCK, FILES = "edgekd-tmp-", "lock", "files"


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A temporary folder, removed at the end. It lies beside a file that is locked as long as this process lives."""
    _sweep()
    outer = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        # locked before it has its name: by it others know a folder that has an owner
        with open(outer / f"{LOCK}.new", "wb") as held:
            system.lock(held.fileno())
            os.replace(outer / f"{LOCK}.new", outer / LOCK)
            (outer / FILES).mkdir()
            yield str(outer / FILES)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@functools.cache
def _sweep() -> None:
    """Removes the folders whose process is gone; once in a process."""
    for outer in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # another's, in use (BlockingIOError), or gone meanwhile
        with contextlib.suppress(OSError), open(outer / LOCK, "rb+") as left:
            system.lock(left.fileno())
            shutil.rmtree(outer, ignore_errors=True)
