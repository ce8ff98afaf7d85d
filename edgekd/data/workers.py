"""Processes that read the next rows of a split while a model computes with those before."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from edgekd import system
from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.inputs import each, positional

VARIABLE = "EDGEKD_WORKERS"
AHEAD = 2  # batches that each process has read, or is reading
inherited: Any = None  # in a worker: the inputs that it reads


def count() -> int:
    """How many processes read samples: of EDGEKD_WORKERS, else 1 where there are several cores and processes can be
    forked. Raises UsageError for what is no number."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        return 1 if (os.cpu_count() or 1) > 1 and sys.platform == "linux" else 0
    if not given.isdecimal():
        raise UsageError(Problem(VARIABLE, f"is {given!r}", "a number of processes; 0 reads in the process itself"))
    if int(given) and "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError(Problem(VARIABLE, f"is {given}, but this system can't fork processes", f"{VARIABLE}=0"))
    return int(given)


def rows(inputs: Any, indices: Sequence[np.ndarray]) -> Iterator[Any]:
    """The rows of each index in turn, in the form of `inputs`. Where these are decoded, processes read ahead; the order
    and the values are those without. Raises RunFailed where such a process ends."""
    processes = count() if any(getattr(v, "decoded", False) for v in positional(inputs)) else 0
    alone = len(indices) if not processes or len(indices) < 3 else 1  # who takes one batch waits for no process
    for index in indices[:alone]:
        yield _read(inputs, index)
    if alone == len(indices):
        return
    rest, waiting = iter(indices[alone:]), deque[Future[Any]]()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, (inputs, os.getpid()))
    try:
        for index in rest:
            waiting.append(pool.submit(_given, index))
            if len(waiting) > AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        text = "a process that reads samples ended: it was killed, or the system ran out of memory"
        hint = f"run the command again to go on; {VARIABLE} sets the number of these processes, 0 for none"
        raise RunFailed(Problem("data", text, hint)) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(inputs: Any, index: np.ndarray) -> Any:
    return each(inputs, lambda values: values[index])


def _begin(inputs: Any, parent: int) -> None:
    """At the start of a worker: the inputs are its parent's, by fork. It ends with its parent, and only then."""
    global inherited
    inherited = inputs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the command line's handler would tell its parent of an interrupt
    system.end_with(parent)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _given(index: np.ndarray) -> Any:
    return _read(inherited, index)
