"""Files of anybody's making, as the runtime of a target takes them: which of its runtimes opens one, whether it is what
it seems, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgekd import components
from edgekd import targets as devices
from edgekd.errors import Problem, UsageError, gathered
from edgekd.files import reading, regular
from edgekd.measure import jobs, samples
from edgekd.probes import static
from edgekd.records import Deployment, Host, Target, is_onnx


def form(target: Target | None) -> str:
    """The format of a target's files; None: the host's own."""
    return Deployment().format if target is None else devices.deployment(target).format


def taking(target: Target | None, path: Path) -> Target | None:
    """The target with the first of its runtimes that takes files of such a name, else with its first."""
    if target is None:
        return None
    each = devices.each(target)
    return next((d for d in each if path.suffix == components.find("formats", form(d)).SUFFIX), each[0])


def check(paths: Sequence[Path], target: Target | None) -> None:
    """Raises UsageError with what is wrong with the files, as far as that can be told without running them."""
    problems: list[Problem] = []
    for path in paths:
        gathered(partial(_read, path, form(target)), problems)
    if problems:
        raise UsageError(*problems)


def random(path: Path, target: Target | None, folder: Path, host: Host) -> dict[str, np.ndarray]:
    """Seeded inputs that fit a file: by what it says itself, or what its runtime says of it."""
    if target is None or is_onnx(form(target)):
        return samples.random(static.read(path))
    return samples.drawn(jobs.signature(path, runtime=target.runtime.name, folder=folder, host=host))


def _read(path: Path, name: str) -> None:
    if is_onnx(name):
        static.read(path)
        return
    with reading(path), open(regular(path), "rb"):
        pass
