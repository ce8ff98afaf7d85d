"""A bundle: the chosen file of one target, golden vectors, predictions on the test set, and a manifest with the digest
of each file.

RUN/bundles/<target>/ has model.<ext>, golden.npz (`inputs.<name>` and the file's `outputs.<name>` in its runtime, [n,
...]), predictions.npz if the run kept them (with the teacher's records, so that a bundle can be gated alone),
before.onnx if the task has preprocessing, and manifest.json."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le, MinLen

from edgekd import __version__, results, system
from edgekd.errors import BaselineError, Problem, UsageError
from edgekd.files import sha256, sync, toml, write_atomic
from edgekd.onnx_files import external
from edgekd.records import Candidate, Check, Measurement, Result, Verdict

MANIFEST, BEFORE = "manifest.json", "before.onnx"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
LIMIT = 2**40  # bytes of one file: a number beyond is a mistake or an attack
FILES = 64


@dataclass(frozen=True)
class File:
    """The digest and size of a file of a bundle."""

    sha256: str
    bytes: Annotated[int, Ge(0), Le(LIMIT)]


@dataclass(frozen=True)
class Tensor:
    """An input or output of the model, one sample at a time: `shape` without the batch axis."""

    name: str
    dtype: str
    shape: tuple[Annotated[int, Ge(0)], ...]


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. `model`: one of `files`; `measurements`: the candidate's for this target; `gate`: the recipe's
    budget lines for any target and for this one; `verdict` and `checks`: their results when the bundle was made;
    `environment`: the machines of the measurements; `versions`: of their libraries; `golden`: whether the golden inputs
    are samples of the task or synthetic; `means`: as in result.json (None: not recorded); `form`: the model's format;
    `runtime`: the runtime of the figures; `states` {input: the output that it takes the value of at the next step,
    zeros at first} of a model that takes one step of a sequence: its golden vectors are the steps of one, in order."""

    task: str
    target: str
    candidate: str
    form: str
    stages: tuple[str, ...]
    model: str
    files: Annotated[Mapping[str, File], MinLen(1)]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    measurements: tuple[Measurement, ...]
    test_digest: str | None
    recipe_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)
    gate: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: Verdict | None = None
    checks: tuple[Check, ...] = ()
    environment: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    golden: Literal["samples", "synthetic"] | None = None
    means: Mapping[str, float] | None = None
    runtime: str | None = None
    states: Mapping[str, str] | None = None
    schema: str = f"edgekd.manifest/{results.VERSIONS['manifest']}"


def write(
    run_folder: Path | str,
    result: Result,
    candidate_id: str,
    target: str,
    *,
    golden_inputs: Mapping[str, np.ndarray],
    golden_outputs: Mapping[str, np.ndarray],
    golden: Literal["samples", "synthetic"] | None = None,
    before: bytes | None = None,
    states: Mapping[str, str] | None = None,
) -> Path:
    """Writes RUN/bundles/<target>/ atomically, in place of an older one. Golden arrays are [n, ...], with the same n;
    `before`: the ONNX file of the preprocessing.

    Raises UsageError if there is nothing to bundle, BaselineError if the model's file is not the one that was
    measured."""
    run = Path(run_folder)
    candidate = _candidate(result, candidate_id, target)
    _aligned(golden_inputs, golden_outputs)
    bundles = run / "bundles"
    bundles.mkdir(parents=True, exist_ok=True)
    part = bundles / f".{target}.{secrets.token_hex(6)}.part"
    part.mkdir()
    try:
        model = _copy(run / str(candidate.file), part, candidate.sha256)
        arrays = {f"inputs.{k}": v for k, v in golden_inputs.items()} | {
            f"outputs.{k}": v for k, v in golden_outputs.items()
        }
        results.save_arrays(part / "golden.npz", arrays)
        if before is not None:
            write_atomic(part / BEFORE, before)
        digest = _predictions(run, result, candidate_id, target, part)
        files = {p.name: File(sha256(p), p.stat().st_size) for p in sorted(part.iterdir())}
        claims = claimed(result, candidate, target)
        manifest = Manifest(
            model=model,
            files=files,
            inputs=_tensors(golden_inputs),
            outputs=_tensors(golden_outputs),
            test_digest=digest,
            versions=_versions(claims["environment"]),
            gate=budget_of(run, target),
            golden=golden,
            states=states,
            **claims,
        )
        written = {name: value for name, value in asdict(manifest).items() if name != "states" or value is not None}
        write_atomic(part / MANIFEST, json.dumps(written, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")
        _swap(part, bundles / target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return bundles / target


def claimed(result: Result, candidate: Candidate, target: str) -> dict[str, Any]:
    """The fields of a manifest that are copied from result.json, {field: value}: the candidate, its measurements,
    checks and verdict."""
    found = result.targets[target]
    measurements = tuple(m for m in candidate.measurements if m.target in (None, target))
    return {
        "task": result.task,
        "target": target,
        "candidate": candidate.id,
        "form": candidate.form,
        "runtime": candidate.runtime,
        "stages": candidate.stages,
        "measurements": measurements,
        "recipe_sha256": result.recipe_sha256,
        "verdict": found.verdict,
        "checks": tuple(c for c in found.checks if c.candidate == candidate.id),
        "environment": {
            id: result.environment[id] for m in measurements if (id := m.environment or "") in result.environment
        },
        "means": None if result.predictions is None else result.means,
    }


def read(folder: Path | str) -> Manifest:
    """Reads a bundle's manifest and verifies every file that it names. Other files are not verified.

    Raises UsageError for a manifest that is not valid or names files outside, BaselineError for files that are missing
    or differ."""
    import pydantic

    folder = Path(folder)
    path = folder / MANIFEST
    if path.is_symlink():
        raise UsageError(Problem(str(path), "is a link", "a bundle has plain files only"))
    data = results.read_text(path, "name the folder of a bundle, such as runs/digits/bundles/host")
    results.check_schema(path, data, "edgekd.manifest", results.VERSIONS["manifest"])
    try:
        manifest = pydantic.TypeAdapter(Manifest).validate_json(data, strict=True)
    except pydantic.ValidationError as error:
        hint = "`edgekd schema manifest` describes the file"
        found = [
            (".".join(map(str, e["loc"])), e["msg"][0].lower() + e["msg"][1:]) for e in error.errors(include_url=False)
        ]
        raise UsageError(*(Problem(f"{path}: {place}", message, hint) for place, message in found)) from None
    problems = [Problem(f"{path}: {place}", message) for place, message in _wrong(manifest)]
    if problems:
        raise UsageError(*problems)
    problems = [
        Problem(str(folder / name), text)
        for name, file in manifest.files.items()
        if (text := _differs(folder / name, file))
    ]
    if problems:
        raise BaselineError(*problems)
    golden = results.load_arrays(folder / "golden.npz")
    told = {f"inputs.{t.name}": t for t in manifest.inputs} | {f"outputs.{t.name}": t for t in manifest.outputs}
    if {name: (str(a.dtype), a.shape[1:]) for name, a in golden.items()} != {
        name: (t.dtype, t.shape) for name, t in told.items()
    }:
        raise BaselineError(
            Problem(str(folder / "golden.npz"), "has other arrays than the manifest's inputs and outputs")
        )
    return manifest


def _candidate(result: Result, id: str, target: str) -> Candidate:
    candidate = next((c for c in result.candidates if c.id == id), None)
    if target not in result.targets or not NAME.fullmatch(target):
        raise UsageError(
            Problem(f"bundle {target!r}", "is not a target of this run", f"one of {', '.join(result.targets)}")
        )
    if candidate is None or candidate.file is None or not results.inside(candidate.file):
        raise UsageError(
            Problem(
                f"bundle {target}",
                f"candidate `{id}` {'is not in this run' if candidate is None else 'has no file in this run'}",
            )
        )
    return candidate


def _aligned(*groups: Mapping[str, np.ndarray]) -> None:
    if not all(groups) or len({np.shape(a)[:1] for group in groups for a in group.values()}) != 1:
        raise UsageError(
            Problem("golden vectors", "need inputs and outputs with the same number of samples in every array")
        )


def _copy(source: Path, folder: Path, digest: str) -> str:
    """Copies the model and the files beside it that hold its weights, synced, and returns its new name."""
    name = f"model{source.suffix}"
    try:
        for given, new in {source: name, **{p: p.name for p in external.files(source)}}.items():
            with open(given, "rb") as read, open(folder / new, "xb") as file:
                shutil.copyfileobj(read, file)
                file.flush()
                os.fsync(file.fileno())
    except FileNotFoundError:
        raise BaselineError(Problem(str(source), "is missing")) from None
    if sha256(folder / name) != digest:
        raise BaselineError(
            Problem(str(source), "differs from its digest in result.json: not the file that was measured")
        )
    return name


def _predictions(run: Path, result: Result, id: str, target: str, folder: Path) -> str | None:
    """Copies the candidate's predictions with the teacher's records; returns the digest of the test set, None without
    predictions. If the candidate was emulated as the target's CPU, copies these predictions."""
    path, executed = run / "predictions" / f"{id}.npz", run / "predictions" / results.executed(id, target)
    for name, digest in (result.predictions or {}).items():
        if (run / "predictions" / name).is_file() and sha256(run / "predictions" / name) != digest:
            raise BaselineError(Problem(str(run / "predictions" / name), "differs from its digest in result.json"))
    if not path.is_file():
        return None
    if executed.is_file():  # has the teacher's records of its samples
        results.save_arrays(folder / "predictions.npz", results.load_arrays(executed))
        return results.load_predictions(executed).digest
    ours, arrays = results.load_predictions(path), results.load_arrays(path)
    teacher = run / "predictions" / f"{result.references.get('teacher')}.npz"
    if teacher.is_file():
        theirs = results.load_predictions(teacher)
        if theirs.digest != ours.digest or not np.array_equal(theirs.ids, ours.ids):
            raise BaselineError(Problem(str(teacher), f"is of another test set than {path.name}"))
        arrays |= {f"{name}.teacher": records for name, records in theirs.records.items()}
    results.save_arrays(folder / "predictions.npz", arrays)
    return ours.digest


def _tensors(arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, str(a.dtype), tuple(a.shape[1:])) for name, a in arrays.items())


def _versions(machines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Versions of the libraries on the machine that measured first, and edgekd's own."""
    found: dict[str, str] = next((facts.get("versions", {}) for facts in machines.values()), {})
    return {"edgekd": __version__} | {str(k): str(v) for k, v in found.items()}


def budget_of(run: Path, target: str) -> dict[str, Any]:
    """The lines of recipe.toml's [gate.any] and [gate.<target>]; empty without a recipe."""
    path = run / "recipe.toml"
    try:
        table = toml(path.read_text(encoding="utf-8")).get("gate", {}) if path.is_file() else {}
    except ValueError as error:
        raise UsageError(Problem(str(path), f"is not valid TOML: {error}")) from None
    return {name: dict(lines) for name, lines in table.items() if name in ("any", target)}


def _swap(part: Path, final: Path) -> None:
    """Moves a finished folder to its place. An old folder is renamed first, since not every system can exchange
    folders."""
    sync(part)
    old = final.with_name(f".{final.name}.{secrets.token_hex(6)}.old")
    if final.exists() or final.is_symlink():
        os.rename(final, old)
    try:
        os.rename(part, final)
    except BaseException:
        if old.exists():
            os.rename(old, final)
        raise
    sync(final.parent)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _wrong(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if len(manifest.files) > FILES:
        yield "files", f"has {len(manifest.files)} entries, more than {FILES}"
    for name, file in manifest.files.items():
        if not NAME.fullmatch(name) or name == MANIFEST:
            yield f"files.{name[:60]!a}", "is not a plain file name"
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            yield f"files.{name[:60]!a}.sha256", "is not a SHA-256 digest"
    for name in ("golden.npz", manifest.model):
        if name not in manifest.files:
            yield "files", f"lacks {name[:60]!a}"
    if not NAME.fullmatch(manifest.target):
        yield "target", "is not a valid target name"


def _differs(path: Path, file: File) -> str:
    """The problem of a file; "" if there is none. Links are not followed, and files of the wrong size are not read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | system.O_NOFOLLOW | system.O_NONBLOCK | system.O_BINARY)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return (
            "is a link, and a bundle has plain files only" if path.is_symlink() else f"can't be read: {error.strerror}"
        )
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "is not a plain file"
        if status.st_size != file.bytes:
            return f"has {status.st_size} bytes, but the manifest says {file.bytes}"
        with open(descriptor, "rb", closefd=False) as given:
            return (
                ""
                if hashlib.file_digest(given, "sha256").hexdigest() == file.sha256
                else "differs from its digest in the manifest"
            )
    finally:
        os.close(descriptor)
