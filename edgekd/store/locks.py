"""Locks that go with the process that holds them, however it ends (flock(2)): leases on work, and shares of what is in
use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekd import system


def share(path: Path, *, exclusive: bool = False) -> int | None:
    """A descriptor that holds a lock on the file; None if the file is not there or being evicted."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        system.lock(descriptor, shared=not exclusive)
        if _same(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Holds a lock on a file, which is made and stays; yields False where another process has it. Raises OSError where
    the file can't be opened."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    mine = True
    try:
        try:
            system.lock(descriptor)
        except OSError:
            mine = False
        yield mine
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lease(path: Path, on_wait: Callable[[], None] | None = None, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lease; without `wait`, yields False where another has it. The file goes with the lease, so who waited
    looks whether what he got still is the file of that name."""
    descriptor = None
    while descriptor is None:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                system.lock(opened)
            except BlockingIOError:
                if not wait:
                    break
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                system.lock(opened, wait=True)
            if _same(opened, path):
                descriptor = opened
        finally:
            if descriptor is None:
                os.close(opened)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            system.unlock(descriptor)
            os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    """Whether `path` still is the file that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
