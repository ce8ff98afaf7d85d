"""The files of a run that may be copied to other machines: result.json and predictions/<id>.npz. They are written
atomically and read without trust in their content.

A reader accepts schema `edgekd.result/2` and older, and ignores keys that it doesn't know. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.files import TEXT as TEXT_LIMIT
from edgekd.files import content, reading, regular, sha256, write_atomic
from edgekd.inputs import each, room, unload
from edgekd.records import Measurement, Metric, Result

VERSIONS = {"result": 2, "manifest": 1}  # the newest schema of each
ARRAY_LIMIT = 2**31  # bytes of an .npz, unpacked
PART = 2**20  # bytes that are read at once
ENCRYPTED = 1  # flag of a member of a zip file
LONGEST = 200  # bytes of a candidate's id


@dataclass(frozen=True)
class Predictions:
    """A file's outputs for the test set. `outputs`: array [n, ...] or {name: array}; `records`: {metric: one number per
    sample [n, ...]}; `better`: {metric: higher or lower}; `formulas`: {metric: the formula of its parts};
    `digest`: of the test samples."""

    ids: np.ndarray
    digest: str
    outputs: Any
    records: Mapping[str, np.ndarray]
    better: Mapping[str, str] = field(default_factory=dict)
    formulas: Mapping[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------- result.json


def write(result: Result, path: Path | str) -> None:
    """Writes result.json. Raises RunFailed where a figure is not a finite number."""
    path = _file(path)
    try:
        text = json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False, default=_plain)
    except ValueError:
        bad = [
            f"{c.id}: {m.name}"
            for c in result.candidates
            for m in c.measurements
            if not all(map(math.isfinite, (m.value, m.low, m.high)))
        ]
        raise RunFailed(
            Problem(path.name, f"a figure is not a finite number: {', '.join(bad[:5]) or 'in steps or environment'}")
        ) from None
    write_atomic(path, text.encode() + b"\n")


def read(path: Path | str) -> Result:
    """Reads result.json, or the one in a run's folder. Raises UsageError with everything that is wrong and its place in
    the file."""
    import pydantic

    path = _file(path)
    data = read_text(path, "name the folder of a run, such as runs/digits")
    check_schema(path, data, "edgekd.result", VERSIONS["result"])
    try:
        result = pydantic.TypeAdapter(Result).validate_json(data, strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(*(_problem(e, path) for e in error.errors(include_url=False))) from None
    problems = [Problem(f"{path}: {place}", message) for place, message in _inconsistent(result)]
    if problems:
        raise UsageError(*problems)
    return result


def read_text(path: Path, hint: str = "") -> bytes:
    """The bytes of a text file. Raises UsageError where it can't be read or is too large."""
    with reading(path, hint):
        return content(path, TEXT_LIMIT)


def check_schema(path: Path, data: bytes, name: str, newest: int) -> None:
    """Raises UsageError for data that is not valid JSON, of another schema, or newer than `name/newest`."""
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem(str(path), f"is not valid JSON: {error}")) from None
    given = table.get("schema") if isinstance(table, dict) else None
    match = re.fullmatch(rf"{re.escape(name)}/([1-9][0-9]{{0,5}})", given) if isinstance(given, str) else None
    if match is None:
        raise UsageError(Problem(f"{path}: schema", f"is not {name}/{newest}" if given is not None else "is missing"))
    if int(match[1]) > newest:
        hint = f"this edgekd reads {name}/{newest} and older: use the edgekd that wrote it, or a newer one"
        raise UsageError(Problem(f"{path}: schema", f"{given} is too new", hint))


def measurements(kept: Iterable[Mapping[str, Any]]) -> tuple[Measurement, ...]:
    """Measurements from their JSON form, as any version of edgekd wrote it."""
    return tuple(Measurement(**{**m, "each": tuple(m.get("each", ()))}) for m in kept)


def inside(name: str) -> bool:
    """Whether a path in a file stays in that file's folder: relative, with forward slashes, without `..`."""
    path = PurePosixPath(name)
    return (
        bool(name)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and "\0" not in name
        and ":" not in name
    )


def _file(path: Path | str) -> Path:
    path = Path(path)
    return path / "result.json" if path.is_dir() else path


def _plain(value: Any) -> Any:
    """Numpy's numbers and paths as JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def _problem(error: Mapping[str, Any], path: Path) -> Problem:
    place = ".".join(str(part) for part in error["loc"])
    given = repr(error.get("input"))
    message = error["msg"][0].lower() + error["msg"][1:]
    shown = f", not {given}" if error["type"] != "missing" and len(given) < 60 else ""
    return Problem(
        f"{path}: {place}" if place else str(path), f"{message}{shown}", "`edgekd schema result` describes the file"
    )


def _inconsistent(result: Result) -> list[tuple[str, str]]:
    """(place, message) of contradictions between parts that are valid by themselves."""
    found, ids, seen = [], {c.id for c in result.candidates}, set()
    for i, c in enumerate(result.candidates):
        if not re.fullmatch(r"\w[\w.+=-]*", c.id) or len(c.id.encode()) > LONGEST:
            found.append((f"candidates.{i}.id", f"{c.id[:60]!r} is not valid as a file name"))
        if c.id in seen:
            found.append((f"candidates.{i}.id", f"`{c.id}` occurs twice"))
        seen.add(c.id)
        if c.file is not None and not inside(c.file):
            found.append((f"candidates.{i}.file", f"{c.file[:60]!r} is outside the run's folder"))
        for j, m in enumerate(c.measurements):
            if not (all(map(math.isfinite, (m.value, m.low, m.high))) and m.low <= m.high):
                found.append(
                    (
                        f"candidates.{i}.measurements.{j} ({m.name})",
                        f"{m.value} [{m.low}, {m.high}] is not a finite value with an interval",
                    )
                )
            elif m.origin == "counted" and not m.low == m.value == m.high:
                found.append(
                    (
                        f"candidates.{i}.measurements.{j} ({m.name})",
                        "a counted figure has no interval: low = value = high",
                    )
                )
    named = [(f"references.{k}", v) for k, v in result.references.items()]
    for name, target in result.targets.items():
        if not re.fullmatch(r"\w[\w.-]*", name) or len(executed(target.chosen or "", name).encode()) > 255:
            found.append((f"targets.{name[:60]!a}", "is not a valid target name, or too long for a file name"))
        named += [(f"targets.{name}.front.{i}", v) for i, v in enumerate(target.front)]
        named += [(f"targets.{name}.chosen", target.chosen)] if target.chosen is not None else []
    return found + [(place, f"no candidate is `{id[:60]}`") for place, id in named if id not in ids]


# ---------------------------------------------------------------- predictions/<id>.npz


def save_predictions(
    path: Path | str,
    ids: Sequence[Any],
    digest: str,
    outputs: Any,
    records: Mapping[str, np.ndarray],
    metrics: Sequence[Metric] = (),
    teacher: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes outputs and records per sample. `metrics`: say which direction is better; `teacher`: its records, if the
    file must be usable alone."""
    named = (
        {f"outputs.{name}": array for name, array in outputs.items()}
        if isinstance(outputs, Mapping)
        else {"outputs": outputs}
    )
    arrays = {"sample_id": np.array([str(id) for id in ids], dtype=np.str_), "test_digest": np.array(digest), **named}
    arrays |= {f"{name}.records": np.asarray(array, np.float64) for name, array in records.items()}
    arrays |= {f"{name}.teacher": np.asarray(array, np.float64) for name, array in (teacher or {}).items()}
    arrays |= {f"{metric.name}.better": np.array(metric.better) for metric in metrics}
    arrays |= {f"{metric.name}.formula": np.array(metric.formula) for metric in metrics if metric.formula}
    save_arrays(path, arrays)


def executed(id: str, target: str) -> str:
    """The name of the file with a candidate's outputs as `target`, a target that this machine's outputs don't apply
    to."""
    return f"{id}@{target}.npz"


def digests(folder: Path | str) -> dict[str, str]:
    """{name: sha256} of a folder's files of predictions."""
    return {path.name: sha256(path) for path in sorted(Path(folder).glob("*.npz"))}


def places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The positions of the `wanted` ids in `ids`, which holds all of them."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids, wanted, sorter=order)]


def of_samples(predictions: Predictions, ids: np.ndarray) -> Predictions:
    """The predictions for the samples `ids` only, in this order."""
    rows = places(predictions.ids, ids)
    outputs = predictions.outputs
    taken = None if outputs is None else each(outputs, lambda array: array[rows])
    return replace(
        predictions,
        ids=predictions.ids[rows],
        outputs=taken,
        records={name: r[rows] for name, r in predictions.records.items()},
    )


def load_predictions(path: Path | str) -> Predictions:
    """Reads a file of `save_predictions`. Raises UsageError with every problem."""
    return _predictions(Path(path), load_arrays(path))


def load_teacher(path: Path | str) -> dict[str, np.ndarray]:
    """{metric: the teacher's records} in a file of predictions; empty if it has none."""
    return {
        name.removesuffix(".teacher"): array for name, array in load_arrays(path).items() if name.endswith(".teacher")
    }


def _predictions(path: Path, arrays: Mapping[str, np.ndarray]) -> Predictions:
    problems = [Problem(f"{path}: {name}", "is missing") for name in ("sample_id", "test_digest") if name not in arrays]
    if problems:
        raise UsageError(*problems)
    ids, digest = arrays["sample_id"], arrays["test_digest"]
    if ids.dtype.kind != "U" or ids.ndim != 1:
        problems.append(
            Problem(f"{path}: sample_id", f"must be an array of strings, not {ids.dtype} {list(ids.shape)}")
        )
    if digest.dtype.kind != "U" or digest.ndim != 0:
        problems.append(Problem(f"{path}: test_digest", "must be one string"))
    rows = {
        name: a for name, a in arrays.items() if name.startswith("outputs") or name.endswith((".records", ".teacher"))
    }
    for name, array in rows.items():
        if array.shape[:1] != ids.shape[:1]:
            problems.append(
                Problem(
                    f"{path}: {name}",
                    f"has shape {list(array.shape)}, but there are {len(ids) if ids.ndim else 'no'} samples",
                )
            )
        elif name.endswith((".records", ".teacher")) and array.dtype.kind != "f":
            problems.append(Problem(f"{path}: {name}", f"must hold numbers, not {array.dtype}"))
    if problems:
        raise UsageError(*problems)
    outputs = {
        name.removeprefix("outputs."): a for name, a in arrays.items() if name.startswith("outputs.")
    } or arrays.get("outputs")
    records = {name.removesuffix(".records"): a for name, a in arrays.items() if name.endswith(".records")}
    better, formulas = (
        {name.removesuffix(end): str(a) for name, a in arrays.items() if name.endswith(end)}
        for end in (".better", ".formula")
    )
    return Predictions(ids, str(digest), outputs, records, better, formulas)


def save_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz atomically; the same arrays give the same bytes. Raises TypeError for arrays that need
    pickling."""
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    if any(array.dtype.hasobject for array in plain.values()):
        raise TypeError("only arrays of numbers and strings can be saved")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in plain.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed: 1980
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    write_atomic(path, buffer.getvalue())


def load_arrays(
    path: Path | str, limit: int = ARRAY_LIMIT, hint: str = "", mapped: float = math.inf
) -> dict[str, np.ndarray]:
    """Reads every array of an .npz without trust in its content. Those of `mapped` bytes or more that are stored as
    they are stay in the file, mapped, and can't be written to. Raises UsageError if it is not a valid .npz, holds
    objects, or has less data than it declares."""
    path = Path(path)
    try:
        with reading(path), open(regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > limit:
                raise UsageError(Problem(str(path), f"holds more than {limit} bytes, unpacked"))
            if strange := [m.filename for m in members if not m.filename.endswith(".npy")]:
                raise UsageError(Problem(str(path), f"holds {', '.join(strange)[:200]}, which is not an array", hint))
            if len({m.filename for m in members}) < len(members):
                raise UsageError(Problem(str(path), "holds an array twice"))
            return {m.filename.removesuffix(".npy"): _array(archive, m, m.file_size >= mapped) for m in members}
    except (
        ValueError,
        SyntaxError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise UsageError(Problem(str(path), f"is not a valid .npz of plain arrays: {error}", hint)) from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: bool) -> np.ndarray:
    """Reads one array, after a check that its header declares as many bytes as it has."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            raise ValueError(f"{member.filename} is of npy version {version}")
        shape, by_column, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        size = member.file_size - file.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{member.filename} does not have the size that its header declares")
        if mapped and size and not by_column and member.compress_type != zipfile.ZIP_STORED:
            array, held = room(shape, dtype), 0
            data = array.reshape(-1).view(np.uint8)
            while held < size and (part := file.read(PART)):
                data[held : held + len(part)] = np.frombuffer(part, np.uint8)
                held += len(part)
                unload(array)
            if held < size:
                raise ValueError(f"{member.filename} does not have the size that its header declares")
            return array
        if mapped and size and member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & ENCRYPTED:
            start = _data(archive, member) + file.tell()
            while file.read(PART):  # raises where the checksum is another
                pass
            order: Literal["C", "F"] = "F" if by_column else "C"
            return np.memmap(cast(BinaryIO, archive.fp), dtype, "r", start, shape, order)
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member.filename} does not have the size that its header declares")
        return array


def _data(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """The place of a member's bytes: behind its own header, whose name and extra field may have another length than the
    directory says."""
    opened = cast(BinaryIO, archive.fp)
    opened.seek(member.header_offset + 26)
    name, extra = struct.unpack("<HH", opened.read(4))
    return int(member.header_offset + 30 + name + extra)
