"""Training in several processes. Rank 0 runs the recipe; the others wait, without using a core, until it tells them of
a step that trains, and then run the same step. Only rank 0 writes to the store and prints.

They are started by torchrun, or by rank 0 itself (`--processes N`) at the first step that trains. Messages go through
the key-value store of torch.distributed."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import environment, system
from edgekd.errors import BROKEN, PASSED, THEIRS, EnvironmentUnfit, Problem, RunFailed, UsageError
from edgekd.files import write_atomic
from edgekd.models.device import CPU, kind
from edgekd.records import Artifact, Run
from edgekd.run.graph import Step, trains

if TYPE_CHECKING:
    from edgekd.run.resolve import Resolved

LONG = timedelta(days=30)
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RESUME = "finished work and the last checkpoint are kept: run the same command to resume"
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process", "NCCL", "imed out")


def launched() -> int | None:
    """How many processes torchrun started; None where it did not start this one."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in VARIABLES) else None


def follows() -> bool:
    """Whether this process waits for rank 0."""
    return launched() is not None and int(os.environ["RANK"]) > 0


def check(resolved: Resolved) -> None:
    """Raises UsageError where torchrun started another number of processes than is asked for, EnvironmentUnfit where
    there are fewer GPUs than processes."""
    import torch

    count, device, there = resolved.processes, resolved.device, launched()
    if there not in (None, count):
        raise UsageError(
            Problem("processes", f"{count} are asked for, torchrun started {there}", "give one of the two")
        )
    if count > 1 and kind(device) not in (CPU, "cuda"):
        raise EnvironmentUnfit(Problem(f"device {device}", "trains in one process only", "--device cpu, --processes 1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count > 1 and kind(device) == "cuda" and torch.cuda.is_available() and torch.cuda.device_count() < here:
        text = f"each of {here} processes needs a GPU, and there are {torch.cuda.device_count()}"
        raise EnvironmentUnfit(Problem(f"device {device}", text, f"--processes {torch.cuda.device_count()}"))


def device_of(device: str) -> str:
    """The device of this rank."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind(device) == "cuda" else device


class Leader:
    """Rank 0's end: the other processes, and how many steps they were told."""

    def __init__(self, count: int):
        import torch.distributed as group

        self.count, self.told, self.others = count, 0, list[subprocess.Popen[bytes]]()
        if launched() is not None:
            self.store, _, _ = next(group.rendezvous("env://", timeout=LONG))
            return
        # messages are unpickled, and a store that binds by itself listens to the whole network
        own = socket.create_server(("127.0.0.1", 0))
        port = own.getsockname()[1]
        self.store = group.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=LONG, master_listen_fd=own.detach()
        )
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": str(count)}
        for rank in range(1, count):
            mine = {**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "edgekd.run.processes", str(os.getpid())]
            self.others.append(subprocess.Popen(command, env=mine, stdin=subprocess.DEVNULL))

    def tell(self, message: Any) -> None:
        """Sends a message to all others; None ends them."""
        self.store.set(f"message {self.told}", pickle.dumps(message))
        self.told += 1

    @contextlib.contextmanager
    def training(self, backend: str) -> Iterator[None]:
        """This process is rank 0 of the group meanwhile. Raises RunFailed where another process has ended."""
        from edgekd.training import ranks

        self._wait([f"ready {rank} {self.told}" for rank in range(1, self.count)])
        try:
            with _group(self.store, 0, self.count, backend), ranks.several():
                yield
        except RuntimeError as error:
            if why := self._lost(any(word in str(error) for word in LOST)):
                raise RunFailed(Problem("", why, RESUME)) from error
            raise

    def close(self) -> None:
        """Ends the others."""
        import torch.distributed as group

        if group.is_initialized():
            group.destroy_process_group()
        with contextlib.suppress(RuntimeError):
            self.tell(None)
        end = time.monotonic() + 2
        while any(p.poll() is None for p in self.others) and time.monotonic() < end:
            time.sleep(0.02)
        for process in self.others:
            process.kill()
            process.wait()

    def _wait(self, keys: list[str]) -> None:
        while not self.store.check(keys):
            if why := self._lost():
                raise RunFailed(Problem("", why, RESUME))
            time.sleep(0.05)

    def _lost(self, surely: bool = False) -> str:
        """Which of the others has ended, and why; "" if none has. `surely`: one has, or is about to."""
        end = time.monotonic() + (2 if surely else 0)
        while True:
            for rank in range(1, self.count):
                if self.store.check([f"failed {rank}"]):
                    return f"process {rank} of {self.count}: {self.store.get(f'failed {rank}').decode()}"
            for rank, process in enumerate(self.others, 1):
                if (code := process.poll()) is not None:
                    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
                    return f"process {rank} of {self.count} {how}"
            if time.monotonic() >= end:
                return f"a process of the {self.count} was lost" if surely else ""
            time.sleep(0.05)


_leader: Leader | None = None


def close() -> None:
    """Ends the other processes of this run, if there are any."""
    global _leader
    atexit.unregister(close)
    if _leader is None and (launched() or 1) > 1:
        _leader = Leader(launched() or 1)
    if _leader is not None:
        _leader.close()
    _leader = None


@contextlib.contextmanager
def together(step: Step, made: Mapping[str, Artifact], resolved: Resolved, scratch: Path) -> Iterator[None]:
    """The other processes run the step too, if it trains."""
    from edgekd.run.dump import dump

    global _leader
    if resolved.processes == 1 or not trains(step.part):
        yield
        return
    if _leader is None:
        _leader = Leader(resolved.processes)
        atexit.register(close)  # where a verb other than `compress` trains
    recipe = scratch.parent / "recipe.toml"
    write_atomic(recipe, dump(resolved, recipe.parent).encode())
    given = made[step.source] if step.source else None, tuple(made[key] for key in step.teacher)
    _leader.tell((str(recipe), resolved.device, str(scratch), pickle.dumps((step, given))))
    with _leader.training(_backend(resolved.device)):
        yield


def follow() -> int:
    """Runs the steps that rank 0 tells of, until it ends; returns the exit code."""
    import torch.distributed as group

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 tells of it
    store, rank, count = next(group.rendezvous("env://", timeout=LONG))
    try:
        for number in itertools.count():
            store.wait([f"message {number}"], LONG)
            message = pickle.loads(store.get(f"message {number}"))
            if message is None:
                return PASSED
            try:
                _work(store, rank, count, number + 1, *message)
            except THEIRS as error:
                if not any(word in str(error) for word in LOST):
                    store.set(f"failed {rank}", f"{type(error).__name__}: {error}"[:2000])
                return BROKEN
    except (RuntimeError, KeyboardInterrupt):  # rank 0 has ended
        return BROKEN
    return PASSED


def _work(store: Any, rank: int, count: int, number: int, recipe: str, device: str, scratch: str, rest: bytes) -> None:
    """One step of rank 0's, whose files are thrown away."""
    from edgekd.run.keys import key_of
    from edgekd.run.resolve import resolved as resolve
    from edgekd.training import ranks

    resolved = resolve(recipe, device=device)
    step, (source, teacher) = pickle.loads(rest)  # after the recipe, whose modules may be its own
    inputs = {"source": [step.source] if step.source else [], "teacher": list(step.teacher)}
    if key_of(resolved, step.stage, step.part, step.seed, inputs, step.device) != step.key:
        raise RunFailed(f"{step.label} has another key here: code, data or libraries differ from those of rank 0")
    there = device_of(device) if step.device != CPU else CPU
    with tempfile.TemporaryDirectory() as place, environment.threads(resolved.threads):
        run = Run(resolved.task, step.seed, resolved.threads, Path(place), Path(scratch), resolved.data, device=there)
        store.set(f"ready {rank} {number}", b"")
        with _group(store, rank, count, _backend(device)), ranks.several():
            step.part(source, run, teacher=teacher)


def _backend(device: str) -> str:
    return "nccl" if kind(device) == "cuda" else "gloo"


@contextlib.contextmanager
def _group(store: Any, rank: int, count: int, backend: str) -> Iterator[None]:
    """The default group of torch.distributed, which stays until the run ends."""
    import torch.distributed as group

    if not group.is_initialized():
        group.init_process_group(backend, store=group.PrefixStore("group", store), rank=rank, world_size=count)
    yield


if __name__ == "__main__":
    system.end_with(int(sys.argv[1]))
    sys.exit(follow())
