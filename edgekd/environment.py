"""Facts of this machine, which say where a figure was measured; without user, host or path names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd import runtimes
from edgekd.errors import EnvironmentUnfit, Problem, UsageError, exits
from edgekd.runtimes import facts as reading

VOLATILE = ("mhz", "celsius", "throttled", "cores")  # cores: those that this process may use
# of torch, by default: independent of the cores, since another number of threads changes sums of floats
THREADS = 2
# what edgekd-light leaves out (.light/pyproject.toml): {module: distribution}
TRAINING = {
    "torch": "torch",
    "onnxscript": "onnxscript",
    "torch_pruning": "torch-pruning",
    "neural_compressor": "neural-compressor",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
}
_SYSTEM = Path("/")
cores, FEATURES = reading.cores, reading.FEATURES


def describe() -> dict[str, Any]:
    """Facts of this machine as JSON values, read as on a board (runtimes/facts.py): cpu, architecture, features, cores,
    clocks (MHz), caches and RAM (bytes), governor, temperature, versions. Only the VOLATILE ones may change from call
    to call."""
    facts: dict[str, Any] = reading.describe(_SYSTEM, libraries())
    return facts


def libraries() -> tuple[str, ...]:
    """Those whose versions are facts of a machine, with what the built-in runtimes need."""
    needed = (need for name in runtimes.names() for need in runtimes.needs(name))
    return tuple(dict.fromkeys((*reading.LIBRARIES, *needed)))


def environment_id(facts: Mapping[str, Any]) -> str:
    """A digest of the facts, 12 hex digits: equal for machines of one kind with the same software."""
    steady = {name: value for name, value in facts.items() if name not in VOLATILE}
    if steady.get("ram_bytes"):
        # the memory that firmware reserves differs from boot to boot
        steady["ram_bytes"] = round(steady["ram_bytes"] / 2**30)
    return hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()[:12]


def kind(facts: Mapping[str, Any]) -> str:
    """The kind of CPU: floating-point sums, and so the bytes of trained weights, may differ between kinds."""
    return f"{facts['cpu']} ({', '.join(facts['features']) or facts['architecture']})"


@contextlib.contextmanager
def threads(count: int = THREADS) -> Iterator[None]:
    """Sets torch to `count` threads and numpy's linear algebra to one, on any number of cores; restores the caller's
    numbers."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """{library: its version} of those that are installed on this machine."""
    return {name: found for name in libraries if (found := reading.version(name)) is not None}


def needs(runtime: str) -> tuple[str, ...]:
    """What must be installed where files are run in a runtime: what it says, and numpy."""
    return tuple(dict.fromkeys((*runtimes.needs(runtime), "numpy")))


def lacking(runtime: str) -> list[Problem]:
    """What is not installed on this machine of what a runtime needs, and how it is installed."""
    missing = [name for name in needs(runtime) if reading.version(name) is None]
    text, hint = f"has no {' and no '.join(missing)} on this machine", f"{sys.executable} -m pip install"
    return [Problem(f"runtime {runtime}", text, " ".join([hint, *missing]))] if missing else []


def extra(name: str) -> str:
    """How an extra of edgekd is installed here."""
    light = reading.version("edgekd-light") is not None
    return f'{sys.executable} -m pip install "edgekd{"-light" if light else ""}[{name}]"'


def left_out(error: ModuleNotFoundError) -> EnvironmentUnfit | None:
    """The error of a verb that trains, where edgekd was installed without these libraries; None for other modules."""
    name = TRAINING.get((error.name or "").partition(".")[0])
    if name is None:
        return None
    light = reading.version("edgekd-light") is not None
    why = ": edgekd-light leaves out what trains" if light else ""
    change = f"{sys.executable} -m pip uninstall edgekd-light; " if light else ""
    return EnvironmentUnfit(
        Problem("", f"needs {name}, which is not installed{why}", f"{change}{sys.executable} -m pip install edgekd")
    )


def opened(runtime: str, path: Path, threads: int = 1) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """A file, opened by a runtime in this process: {input: array} -> {output: array}. Raises EnvironmentUnfit where the
    runtime is not installed, UsageError where it calls sys.exit()."""
    missing = lacking(runtime)
    if missing:
        raise EnvironmentUnfit(*missing)
    try:
        with exits(UsageError):
            infer: Callable[[Mapping[str, Any]], Mapping[str, Any]] = runtimes.loaded(runtime).load(str(path), threads)
    except ImportError as error:
        hint = "its file declares what it needs as NEEDS"
        raise EnvironmentUnfit(Problem(f"runtime {runtime}", f"can't be loaded here: {error}", hint)) from None
    return infer


def forget_peak() -> None:
    """Resets this process's peak memory, where the system can (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        (_SYSTEM / "proc/self/clear_refs").write_text("5")


def peak_rss() -> int | None:
    """The peak memory of this process since `forget_peak`, in bytes; None where the system has no such number."""
    line = reading.field(reading.read(_SYSTEM / "proc/self/status"), "VmHWM")
    return 1024 * int(line.split()[0]) if line else None
