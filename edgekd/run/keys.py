"""The key of a step: a digest of all that its result depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd import components, environment, runtimes, signatures
from edgekd.errors import Problem, UsageError
from edgekd.run.graph import trains
from edgekd.run.resolve import Resolved
from edgekd.runtimes.facts import version
from edgekd.store import fingerprint


def key_of(
    resolved: Resolved, use: str, stage: Any, seed: int, inputs: Mapping[str, Sequence[str]], device: str = "cpu"
) -> str:
    """The key of the stage `use` on a kind of device: its settings, the code of the parts that it names, the task's
    code, the data that it reads, and the keys of its inputs (by role)."""
    task = resolved.task
    objects = [type(stage), dict(task.models), *components.parts_of(stage)]
    objects += [f for f in (task.collate, task.augment, task.forward) if f is not None]
    read = {split: resolved.data(split).digest for split in stage.reads}
    read |= {"version": task.version, "draws": str(task.draws)}
    if task.declared is not None:  # decides what losses and ensembles see
        several = {name: output.deciding for name, output in task.heads.items()}
        read |= {"output": repr(several) if task.output is None else task.output.deciding}
    if task.lengths:  # decides which axes of graphs and files are open
        read |= {"lengths": repr(sorted(task.lengths.items()))}
    if task.stream is not None:
        read |= {"stream": repr(task.stream)}
    if use == "export":
        read |= {"name": task.name, "inputs": repr(task.inputs), "outputs": repr(tuple(task.outputs))}
        read |= {"runtime": runtime(stage.runtime)}
    if resolved.processes > 1 and trains(stage):
        read["processes"] = str(resolved.processes)  # decides the batches, and the order of sums
    if task.assets:
        read["assets"] = fingerprint.files(task.assets)
    code, libraries = fingerprint.code_and_libraries(*objects)
    settings = {k: v for k, v in signatures.plain(stage).items() if k != "weights"}  # a path; its sha256 is there
    try:
        return fingerprint.key(
            stage=use,
            settings=settings,
            inputs=inputs,
            seed=seed,
            code=code,
            data=read,
            threads=resolved.threads,
            device=device,
            dtype="float32",
            libraries=libraries,
        )
    except TypeError as error:  # a default of a part of one's own that JSON has no type for
        hint = "a part's settings are strings, finite numbers, booleans, and lists and tables of them"
        raise UsageError(Problem(f"{resolved.recipe.place}: stage {use}", str(error), hint)) from None


def runtime(name: str) -> dict[str, Any]:
    """What of a runtime decides whether a file passes: its own file, and the versions of what it needs."""
    versions = {need: version(need) or "" for need in environment.needs(name)}
    return {"code": fingerprint.files([runtimes.source(name)]), "versions": versions}
