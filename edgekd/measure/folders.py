"""Job folders: written, run on a host, and read. What is finished stays in the folder: the same job resumes there,
and what is complete is read without measuring again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import components, environment, runtimes
from edgekd.errors import EnvironmentUnfit, Problem, RunFailed
from edgekd.files import sha256
from edgekd.inputs import Column, chunks, save
from edgekd.onnx_files import external
from edgekd.records import Host, Runtime
from edgekd.runtimes import worker
from edgekd.samples.rows import WHOLE, Samples, of

Inputs = np.ndarray | Column | Mapping[str, Any] | Samples
LONGEST = 600  # s that one process may take


@dataclass(frozen=True)
class Job:
    """What a job folder is made of. `models` {subject: file}, subjects with one file share it; the `runtime` that opens
    them; `seconds` that one process may take; `machine`: id of the environment (None: of this one)."""

    models: Mapping[str, Path]
    inputs: Inputs
    schedule: Sequence[Mapping[str, Any]]
    runtime: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    seconds: float = LONGEST
    machine: str | None = None


def run(
    folder: Path,
    job: Job,
    host: Host,
    names: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """{entry: line} of a job that is built or gone on with. `names` {subject: what people call it}. Raises RunFailed
    with what each file did wrong, EnvironmentUnfit where the runtime is not installed there."""
    problems = [] if "launch" in job.settings else host.lacks(job.runtime)
    if problems:
        raise EnvironmentUnfit(*problems)
    settings = {**job.settings, "cores": list(host.cores)} if host.cores else job.settings
    build(folder, replace(job, settings=settings, machine=environment.environment_id(host.facts)))
    done, wanted = folder / "out" / "done.json", [entry["id"] for entry in job.schedule]
    found = finished(folder)
    if not done.is_file() or any(id not in found for id in wanted):
        host.run(folder, 60 + job.seconds * len(job.schedule), progress)
        found = finished(folder)
    missing = [entry for entry in job.schedule if entry["id"] not in found]
    if missing:
        failed = json.loads(done.read_text(encoding="utf-8"))["failed"]
        reasons = {(names[e["subject"]], failed.get(e["id"], "was not run")) for e in missing}
        text = f"does not run in {job.runtime}"
        raise RunFailed(*(Problem(name, f"{text}: {reason}") for name, reason in sorted(reasons)))
    return {id: found[id] for id in wanted}


def build(folder: Path, job: Job) -> dict[str, Any]:
    """Writes a job folder (`job.json` last) and returns what is in that file. The same job on the same kind of machine
    keeps what was measured already; a folder with another job is made anew. Raises RunFailed where an input is no plain
    array."""
    samples = of(job.inputs)
    arrays, inputs = _written(samples)
    if any(array.dtype.hasobject for array in arrays.values()):
        raise RunFailed(Problem("inputs", "are not plain arrays with a row per sample"))
    models, sources = _models(job), _sources(job.runtime)
    how = {"axes": dict(samples.axes)} if any(axis != 0 for axis in samples.axes.values()) else {}
    how |= {"answers": dict(samples.answers)} if samples.answers else {}
    if states := {name: output for name, output in samples.states.items() if name not in samples.arrays}:
        arrays["inputs/begins.npy"] = np.asarray(samples.begins)
        how |= {"states": states, "begins": "inputs/begins.npy"}
    rewritten: dict[str, bytes] = {}
    files = {**{file: path for path, file in models.items()}, **sources}
    for path, file in models.items():
        data, beside = external.located(path, Path(file).name)
        if beside:  # weights in a second file: named after the model's name in the job
            rewritten[file] = data
            files |= {f"models/{name}": other for name, other in beside.items()}
    written: dict[str, Any] = {
        "schema": "edgekd.job/1",
        "runtime": next(name for name in sources if name.startswith("runtimes/")),
        "threads": job.threads,
        "seconds": job.seconds,
        "environment": job.machine or environment.environment_id(environment.describe()),
        "settings": dict(job.settings),
        "files": {k: sha256(p) for k, p in files.items()}
        | {k: hashlib.sha256(data).hexdigest() for k, data in rewritten.items()}
        | {f: _digest(a) for f, a in arrays.items()},
        "subjects": {subject: {"model": models[path], "inputs": inputs, **how} for subject, path in job.models.items()},
        "schedule": list(job.schedule),
    }
    # a folder that is being cleared up, cut off in the middle
    whole = all((folder / name).is_file() for name in dict(written["files"]))
    if not whole or _without_schedule(_stored(folder / "job.json")) != _without_schedule(written):
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("models", "inputs", "runtimes"):
            (folder / part).mkdir(parents=True)
        for name, path in files.items():
            if name in rewritten:
                (folder / name).write_bytes(rewritten[name])
            else:
                shutil.copyfile(path, folder / name)
        for file, array in arrays.items():
            save(folder / file, array)
    worker.write(folder / "job.json", json.dumps(written, indent=1).encode())
    return written


def _written(samples: Samples) -> tuple[dict[str, Any], dict[str, str | list[str]]]:
    """({file: array or column}, {input: its file, or one for each sample where their shapes differ})."""
    arrays: dict[str, Any] = {}
    inputs: dict[str, str | list[str]] = {}
    for i, (name, given) in enumerate(samples.arrays.items()):
        array = given if isinstance(given, Column) else np.asarray(given)
        if array.ndim == 0:
            raise RunFailed(Problem("inputs", "are not plain arrays with a row per sample"))
        several = array.dtype == object and samples.axes.get(name) == WHOLE
        files = [f"inputs/{i}-{k}.npy" for k in range(len(array))] if several else [f"inputs/{i}.npy"]
        constant = samples.axes.get(name, 0) is None
        arrays |= dict(zip(files, array if several else [array[0] if constant else array], strict=True))
        inputs[name] = files if several else files[0]
    return arrays, inputs


def identity(runtime: str, host: Host | None = None) -> str:
    """Identifies the runtime of a measurement: its name, its file's digest and the versions of what it needs on `host`
    (None: this machine); "" for onnxruntime, whose version is among the machine's facts."""
    if runtime == Runtime().name:
        return ""
    versions = (host.versions if host is not None else environment.versions)(environment.needs(runtime))
    known = f"{sha256(runtimes.source(runtime))} {sorted(versions.items())}"
    return f"-{runtime}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def finished(folder: Path) -> dict[str, Any]:
    """{entry: line} of what a job has done."""
    return worker.finished_lines(folder / "out" / "results.jsonl")


def lines(found: Mapping[str, Any], subject: str, kind: str) -> list[dict[str, Any]]:
    """The lines of one subject's processes of a kind, in their order."""
    return [line for _, line in sorted(found.items()) if line["subject"] == subject and line["pass"] == kind]


def _models(job: Job) -> dict[Path, str]:
    """{file: its name in the job's folder}, by the subject that has it first and a format of the runtime: names of
    the user's are never in a job."""
    suffixes = [components.find("formats", name).SUFFIX for name in runtimes.formats(job.runtime)]
    first = {path: next(s for s, other in job.models.items() if other == path) for path in job.models.values()}
    ending = {path: path.suffix if path.suffix in suffixes else suffixes[0] for path in first}
    return {path: f"models/{subject}{ending[path]}" for path, subject in first.items()}


def _sources(runtime: str) -> dict[str, Path]:
    """What runs on the device: the worker, and the one runtime."""
    carried, own = Path(worker.__file__).parent, runtimes.source(runtime)
    return {"worker.py": carried / "worker.py", "facts.py": carried / "facts.py", f"runtimes/{own.name}": own}


def _stored(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _without_schedule(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name != "schedule"}


def _digest(array: Any) -> str:
    hasher = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    for part in chunks(array) if array.ndim else [array]:
        hasher.update(np.ascontiguousarray(part).data)
    return hasher.hexdigest()
