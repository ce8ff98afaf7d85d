"""What differs between operating systems, in one place: locks on files, flags of open(2), groups of processes.

Linux is tested, and macOS has the same calls. Of Windows only the calls are known (msvcrt.locking, taskkill): none of
this has been run there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import signal
import subprocess
import sys
import time
from typing import Any

O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)  # to open a pipe without waiting for its other end
O_BINARY: int = getattr(os, "O_BINARY", 0)
QUOTA: int = getattr(errno, "EDQUOT", errno.ENOSPC)
READERS = 1024  # bytes at the start of a file that readers lock one of each, where locks are byte ranges
AGAIN = 0.05  # seconds between two tries, where a lock can't be waited for


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> None:
    """Locks an open file until it is unlocked, closed, or its process ends. Raises BlockingIOError where another
    process has it and `wait` is not set."""
    try:
        import fcntl
    except ImportError:
        _lock_bytes(descriptor, shared, wait)
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)


def unlock(descriptor: int) -> None:
    """Gives a lock back. To close alone would leave it to processes that were forked meanwhile."""
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def reserve(descriptor: int, size: int) -> bool:
    """Whether a file has `size` bytes of its disk: a mapped file that a full disk cuts short ends its process."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (OSError, AttributeError):  # a full disk; a system without the call
        return False
    return True


def unload(mapped: mmap.mmap) -> None:
    """Takes a mapped file out of the memory of this process; what is read again comes from the file."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def mapped_inode(address: int) -> int | None:
    """The inode of the file that is mapped at this address; None where the system doesn't tell."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            area, _, _, _, inode, *_ = line.split(maxsplit=5)
            start, end = (int(number, 16) for number in area.split("-"))
            if start <= address < end:
                return int(inode)
    return None


def steady_allocation() -> None:
    """Has glibc give blocks of 16 MiB back to the system as they are freed. Else it raises this limit to 32 MiB as
    such blocks come and go, and the memory that a model takes for its batches grows with their number."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(-3, 2**24)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**25)  # M_TRIM_THRESHOLD: setting one ends the adjustment of both


def free_unused() -> None:
    """Gives memory that is allocated but not used back to the system, where the C library can."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library, if it is glibc."""
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that was started in a session of its own, and those that it started."""
    if process.poll() is not None:
        return
    if sys.platform == "win32" or not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_with(parent: int) -> None:
    """Ends this process, at once, when the process that started it ends; where the system can."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _lock_bytes(descriptor: int, shared: bool, wait: bool) -> None:
    """Windows: a reader locks one of the first READERS bytes, a writer locks all of them."""
    import msvcrt

    while True:
        for start, count in [(n, 1) for n in range(READERS)] if shared else [(0, READERS)]:
            os.lseek(descriptor, start, os.SEEK_SET)
            with contextlib.suppress(OSError):
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, count)  # type: ignore[attr-defined]
                return
        if not wait:
            raise BlockingIOError(errno.EAGAIN, "another process holds the lock")
        time.sleep(AGAIN)
