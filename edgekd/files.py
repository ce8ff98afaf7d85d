"""Reads and writes files. A written file is whole or absent: it is written under another name and renamed. JSON can
carry a digest of its own content."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd import system
from edgekd.errors import Problem, UsageError

UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
TEXT, LIMIT = 2**26, 2**34  # the largest text file, and the largest file, that is read, in bytes
NESTED = 50  # levels of tables and lists at most
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def reading(path: Path | str, hint: str = "") -> Iterator[None]:
    """Turns an OSError while reading into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(Problem(str(path), f"can't be read: {error.strerror or error}", hint)) from None


@contextlib.contextmanager
def writing(path: Path | str, hint: str = "") -> Iterator[None]:
    """Turns an OSError while writing to a user's path into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(Problem(str(path), f"can't be written: {error.strerror or error}", hint)) from None


def unwritable(folder: Path, hint: str = "") -> list[Problem]:
    """Why nothing can be written in a folder, which may not exist yet, as far as its permissions tell; [] if it can."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        return [Problem(str(there), "is a file, not a folder", hint)]
    if not os.access(there, os.W_OK | os.X_OK):
        return [Problem(str(there), f"can't be written: {os.strerror(errno.EACCES)}", hint)]
    return []


def not_over(path: Path | str, inputs: Mapping[str, Path | str | None], hint: str = "") -> list[Problem]:
    """Why nothing may be written in the place of `path`: it is one of the `inputs` {what it is: path}, or is there and
    no regular file; [] where it may."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [Problem(str(path), f"can't be written: {error.strerror or error}", hint)]
    if stat.S_ISDIR(there.st_mode):
        return [Problem(str(path), "is a folder", "name a file")]
    if not _replaceable(path, there):
        return [Problem(str(path), "is no regular file: nothing is written in its place", hint)]
    for what, known in inputs.items():
        with contextlib.suppress(OSError, ValueError):  # an input that is not there, or no path at all
            if known is not None and os.path.samestat(os.stat(known), there):
                return [Problem(str(path), f"is {what}: it would be lost", hint)]
    return []


def _replaceable(path: Path | str, there: os.stat_result) -> bool:
    """Whether what is at `path` may be replaced: a regular file, and no link that stands for what a process holds open
    (/dev/stdout)."""
    try:
        link = os.readlink(path)
    except OSError:
        link = ""
    return stat.S_ISREG(there.st_mode) and not link.startswith("/proc/")


def write_json(path: Path | str, value: Any) -> None:
    """Writes a JSON file for the user. Raises UsageError where it can't be written."""
    with writing(path):
        write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def write_found(path: Path | str | None, schema: str, found: Any, *without: str, **more: Any) -> None:
    """Writes a verb's result, a dataclass, as JSON `without` some fields; nothing if `path` is None. Raises UsageError
    where it can't be written."""
    if path is not None:
        fields = {name: value for name, value in dataclasses.asdict(found).items() if name not in without}
        write_json(path, {"schema": schema, **fields, **more})


def write_atomic(path: Path | str, data: bytes) -> None:
    """Writes a file atomically: readers see the old file or the new one, whole, also after a power failure. Raises
    OSError, also for a device, a pipe or a socket, which it would replace by a file."""
    path = Path(path)
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, "no file is named", str(path))
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR((there := os.stat(path)).st_mode) and not _replaceable(path, there):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.part")  # of 255 bytes at most, in any script
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't sync a folder
            raise
    finally:
        os.close(descriptor)


def regular(path: Path | str, limit: int = LIMIT) -> int:
    """Opens a regular file of at most `limit` bytes; returns its descriptor, which the caller closes. Raises OSError
    for anything else: reading a device or a pipe may never end."""
    descriptor = os.open(path, os.O_RDONLY | system.O_NONBLOCK | system.O_BINARY)
    status = os.fstat(descriptor)
    fault = (errno.EFBIG, f"it has more than {limit:,} bytes") if status.st_size > limit else None
    if not stat.S_ISREG(status.st_mode):
        fault = (
            (errno.EISDIR, "it is a folder")
            if stat.S_ISDIR(status.st_mode)
            else (errno.EINVAL, "it is not a regular file")
        )
    if fault is None:
        return descriptor
    os.close(descriptor)
    raise OSError(*fault, str(path))


def content(path: Path | str, limit: int = TEXT) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises OSError."""
    with open(regular(path, limit), "rb") as file:
        return file.read()


def home(variable: str, below: str, own: str) -> Path:
    """The user's folder of edgekd: the folder in the environment variable `own`, else `edgekd` in that of `variable`
    (XDG), else in HOME/`below`, else in the store for a user without a home. Raises UsageError where there is no store
    either."""
    given, store = os.environ.get(own), os.environ.get("EDGEKD_STORE")
    try:
        return (
            Path(given).expanduser() if given else Path(os.environ.get(variable) or Path.home() / below) / "edgekd"
        ).absolute()
    except RuntimeError:
        if not store:
            raise UsageError(
                Problem("", "this user has no home folder to keep files in", "set HOME, or EDGEKD_STORE to a folder")
            ) from None
        return Path(store).absolute() / "home" / variable.lower()


def sha256(path: Path) -> str:
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def sealed(schema: str, record: Mapping[str, Any]) -> bytes:
    """JSON with a digest of its own content."""
    record = json.loads(canonical({**record, "schema": schema}))
    return (
        json.dumps(
            {**record, "sha256": hashlib.sha256(canonical(record)).hexdigest()}, indent=1, sort_keys=True
        ).encode()
        + b"\n"
    )


def unsealed(path: Path, schema: str) -> dict[str, Any]:
    """Reads a record that `sealed` wrote. Raises ValueError if it is damaged, OSError if it can't be read."""
    record = json.loads(content(path))
    if not isinstance(record, dict) or record.get("schema") != schema:
        raise ValueError(f"{path.name} is not of schema {schema}")
    if record.pop("sha256", None) != hashlib.sha256(canonical(record)).hexdigest():
        raise ValueError(f"{path.name} differs from its digest")
    return record


def toml(text: str) -> dict[str, Any]:
    """Parses a TOML document. Raises ValueError if it is not valid, has a number that Python can't parse, or is nested
    deeper than NESTED."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level: list[Any] = [found]
    for _ in range(NESTED):
        level = [
            part
            for value in level
            for part in (value.values() if isinstance(value, dict) else value)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return found
    raise ValueError("nested too deep")


def read_toml(path: Path | str, hint: str = "") -> dict[str, Any]:
    """Parses a TOML file. Raises UsageError where it can't be read, or is not valid TOML."""
    with reading(path, hint):
        data = content(path)
    try:
        return toml(data.decode("utf-8"))
    except ValueError as error:
        raise UsageError(Problem(str(path), f"is not valid TOML: {error}")) from None


def size(text: str, place: str = "") -> int:
    """The number of bytes in "500 MB" (kB = 1000, KiB = 1024). Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or (match[2] or "b").lower() not in UNITS:
        raise UsageError(Problem(place, f"{text!r} is not a size", "give a number and a unit, such as 500 MB or 20 GB"))
    return int(float(match[1]) * UNITS[(match[2] or "b").lower()])


def full(error: BaseException | None) -> bool:
    """Whether a full disk or quota caused an error. Libraries wrap it in their own errors; some keep only its text."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and (
            error.errno in FULL or error.errno is None and str(error).endswith(" written")
        ):
            return True  # numpy says "8 requested and 0 written", and no number
        if any(os.strerror(code) in str(error) for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
