"""Files of anybody's making, as the runtime of a target takes them: which of its runtimes opens one, whether it is what
it seems, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd import components
from edgekd import targets as devices
from edgekd.errors import Problem, UsageError, gathered
from edgekd.files import reading, regular
from edgekd.measure import jobs, rolled
from edgekd.probes import static
from edgekd.records import Deployment, Host, Target, is_onnx
from edgekd.samples import read as reader
from edgekd.samples import signature, split
from edgekd.samples.source import Source

if TYPE_CHECKING:
    import onnx


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


def alike(paths: Sequence[Path], target: Target | None) -> None:
    """Raises UsageError where two ONNX files don't take the same inputs."""
    if is_onnx(form(target)):
        taken = [signature.of_model(static.read(path)) for path in paths]
        problems = signature.differing(*taken, [str(p) for p in paths])
        if problems:
            raise UsageError(*problems)


def given(
    path: Path, source: Source, target: Target | None, folder: Path, host: Host, model: onnx.ModelProto | None = None
) -> reader.Given:
    """The samples that fit a file: by what it says itself (parsed: `model`), or what its runtime says of it. Of
    sequences the steps, as onnxruntime runs them here."""
    if target is None or is_onnx(form(target)):
        taken = signature.of_model(static.read(path) if model is None else model)
    else:
        taken = signature.of_runtime(jobs.signature(path, runtime=target.runtime.name, folder=folder, host=host))
    if not source.states:
        return reader.read(source, taken)
    sequences = reader.read_sequences(source, taken)
    if target is not None and not is_onnx(form(target)):
        raise UsageError(Problem("--state", f"is for ONNX files, and {path.name} is none", "leave it out"))
    few = split.few(sequences.lengths, jobs.ROWS)
    steps = rolled.steps(path, sequences, folder / "steps", few)
    note = f"timed per step, over {len(steps)} steps of {len(few)} of {len(sequences)} sequences"
    return reader.Given(steps, sum(sequences.lengths), note)


def shapes(path: Path, source: Source, target: Target | None) -> tuple[dict[str, tuple[int, ...]], str]:
    """({input: shape of one sample of the data}, which sample's, in words, where they differ); {} without data, or for
    a file that is not ONNX."""
    if source.random and (wrong := reader.needless(source)):
        raise UsageError(*wrong)
    if source.random or source.states or not (target is None or is_onnx(form(target))):
        return {}, ""
    samples = reader.read(source, signature.of_model(static.read(path))).samples
    return samples.shapes, samples.counted


def _read(path: Path, name: str) -> None:
    if is_onnx(name):
        static.read(path)
        return
    with reading(path), open(regular(path), "rb"):
        pass
