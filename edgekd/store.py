"""The store of finished work: immutable artifacts by key, measurements beside them, checkpoints of what is in work.

    ROOT/artifacts/KE/KEY/        artifact.json and the files it names; appears by rename, is never written again
    ROOT/work/KEY/                out/ (files of a step in work), scratch/ (its checkpoints); ROOT/work/KEY.lease: who works on it
    ROOT/observations/KE/KEY/     NAME.json, each with a digest of its own
    ROOT/trash/                   what is being deleted

Locks are flock(2) locks held by the process, so a SIGKILL frees them: exclusive on a lease while a step is made; shared on
artifact.json of what a Store has handed out, so that no other process evicts it. Files are not made read-only: copies would inherit
that, root ignores it, and digests are checked at every `find` anyway.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.records import Artifact, Made

SCHEMA, OBSERVATION = "edgekd.artifact/1", "edgekd.observation/1"
MANIFEST = "artifact.json"
FIELDS = ("key", "form", "files", "stage", "settings", "seed", "facts")  # of an Artifact, as they stand in its manifest
LIMIT = "20 GB"
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """`root`: default `EDGEKD_STORE`, else the user's cache folder; created when something is made. `log(**event)` hears of what was
    corrupt, stale or evicted."""

    def __init__(self, root: Path | None = None, *, log: Callable[..., None] = lambda **event: None):
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.root = Path(root or os.environ.get("EDGEKD_STORE") or Path(cache) / "edgekd").absolute()
        self.limit = size(os.environ.get("EDGEKD_STORE_LIMIT") or LIMIT, "EDGEKD_STORE_LIMIT")
        self.log = log
        self._held: dict[str, int] = {}  # key -> descriptor that holds the shared lock
        self._swept = False
        self.close = weakref.finalize(self, _release, self._held)

    def find(self, key: str, parents: Mapping[str, str]) -> Artifact | None:
        """The artifact, if it is there, whole, and made from parents with these digests. A broken one is removed, logged, and a miss."""
        folder = self._place(key)
        with _readable(folder):
            held = _share(folder / MANIFEST)
            if held is None:
                if folder.is_dir():
                    self._discard(key, f"{MANIFEST} is missing")
                return None
            artifact, recorded, fault = _read(folder, key)
            if artifact is None or recorded != dict(parents):
                os.close(held)
                if artifact is None:
                    self._discard(key, fault)
                else:
                    self.log(event="stale", key=key, reason="made from parents that have changed")
                return None
        self._hold(key, held)
        with contextlib.suppress(OSError):  # the time of last use; a store that can only be read still serves
            os.utime(folder / MANIFEST)
        return artifact

    def make(
        self,
        key: str,
        *,
        stage: str,
        settings: Mapping[str, Any],
        seed: int | None,
        inputs: Mapping[str, tuple[str, ...]],
        parents: Mapping[str, str],
        build: Callable[[Path, Path], Made],
        on_wait: Callable[[], None] | None = None,
    ) -> Artifact:
        """The artifact, found or made: `build(folder, scratch)` writes its files into `folder`. One process at a time works on a key; the
        others call `on_wait`, wait, and find it. If the build fails nothing is left of it but its checkpoints. Raises RunFailed if the
        disk is full, UsageError if the store can't be written, and whatever `build` raises."""
        with self._disk():
            self._sweep()
            work = self.root / "work" / key
            with _lease(work.with_suffix(".lease"), on_wait):
                found = self.find(key, parents)
                if found is not None:
                    self._forget(work)
                    return found
                self._forget(self._place(key))  # broken, or made from other parents
                folder, scratch = self._workplace(work, parents)
                try:
                    made = build(folder, scratch)
                    record = {"key": key, "form": made.form, "files": _files(folder), "inputs": inputs, "parents": parents, "stage": stage,
                              "settings": settings, "seed": seed, "facts": made.facts}  # fmt: skip
                    write_atomic(folder / MANIFEST, _sealed(SCHEMA, record))
                    artifact = self._publish(key, folder)
                except BaseException:
                    self._forget(folder)
                    self._tidy(work)
                    raise
                self._forget(work)
                return artifact

    def digest(self, artifact: Artifact) -> str:
        """sha256 over the digests of the artifact's files, by name."""
        return hashlib.sha256(_canonical(dict(artifact.files))).hexdigest()

    def observe(self, key: str, name: str, payload: Mapping[str, Any]) -> None:
        """Keeps a measurement about an artifact: JSON values, written at once, replacing an older one of that name."""
        with self._disk():
            path = self._observation(key, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, _sealed(OBSERVATION, {"key": key, "name": name, "payload": payload}))

    def observed(self, key: str, name: str) -> dict[str, Any] | None:
        """What `observe` kept; None if there is nothing, or nothing whole."""
        try:
            record = _unsealed(self._observation(key, name), OBSERVATION)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.log(event="corrupt", key=key, reason=f"observation {name}: {error}")
            return None
        return record["payload"] if (record["key"], record["name"]) == (key, name) else None

    def trim(self, keep: set[str]) -> list[str]:
        """Evicts down to the limit, least recently used first: checkpoints left over, then `logits`, then all else. Never what is in
        `keep`, in work or in use by another process; never observations. Returns the keys that lost something."""
        for key in [k for k in self._held if k not in keep]:
            os.close(self._held.pop(key))
        left, gone = [], []
        with self._disk():
            self._sweep(again=True)
            for path, order in [(p, 0) for p in self._works()] + [(p, 1) for p in self._artifacts()]:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    form = None if order == 0 else json.loads((path / MANIFEST).read_bytes())["form"]
                    left.append((1 if form == "logits" else 2 * order, _last_use(path), path, _bytes(path)))
            total = sum(entry[3] for entry in left)
            for order, _, path, count in sorted(left):
                if total <= self.limit:
                    break
                if path.name not in keep and self._evict(path, order == 0):
                    total -= count
                    gone.append(path.name)
                    self.log(event="evicted", key=path.name, bytes=count, reason="checkpoints" if order == 0 else "artifact")
        return gone

    # ------------------------------------------------------------ inside

    def _place(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9A-Za-z_-]{3,128}", key):
            raise ValueError(f"{key!r} is no key: letters, digits, _ and -")
        return self.root / "artifacts" / key[:2] / key

    def _observation(self, key: str, name: str) -> Path:
        quoted = urllib.parse.quote(name, safe=" ()+,=@")
        if len(quoted) > 150:
            quoted = quoted[:80] + hashlib.sha256(name.encode()).hexdigest()
        return self.root / "observations" / key[:2] / self._place(key).name / f"{quoted}.json"

    def _works(self) -> list[Path]:
        return [p for p in self.root.glob("work/*") if p.is_dir()]

    def _artifacts(self) -> list[Path]:
        return list(self.root.glob("artifacts/*/*"))

    def _hold(self, key: str, descriptor: int) -> None:
        before = self._held.pop(key, None)
        if before is not None:
            os.close(before)
        self._held[key] = descriptor

    def _workplace(self, work: Path, parents: Mapping[str, str]) -> tuple[Path, Path]:
        """An empty folder for the files, and the scratch folder as it was left, unless its checkpoints began from other parents."""
        marker = work / "parents.json"
        with contextlib.suppress(OSError, ValueError):
            if json.loads(marker.read_bytes()) != dict(parents):
                self._forget(work)
        self._forget(work / "out")
        (work / "out").mkdir(parents=True)
        (work / "scratch").mkdir(exist_ok=True)
        write_atomic(marker, _canonical(dict(parents)))
        return work / "out", work / "scratch"

    def _publish(self, key: str, folder: Path) -> Artifact:
        """Moves a sealed folder to its place, its files on disk before their name is. Under the lease."""
        for name in _unsealed(folder / MANIFEST, SCHEMA)["files"]:
            _sync(folder / name)
        for sub in [p for p in folder.rglob("*") if p.is_dir()] + [folder]:
            _sync(sub)
        held, place = _share(folder / MANIFEST), self._place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, place)
            _sync(place.parent)
        except BaseException:
            os.close(held)
            raise
        self._hold(key, held)
        return _artifact(place, _unsealed(place / MANIFEST, SCHEMA))

    def _discard(self, key: str, fault: str) -> None:
        """Removes a broken artifact, unless somebody is at work on it: he replaces it himself."""
        self.log(event="corrupt", key=key, reason=fault)
        with contextlib.suppress(OSError), _lease(self.root / "work" / f"{key}.lease", wait=False) as mine:
            if mine and _read(self._place(key), key)[0] is None:
                self._forget(self._place(key))

    def _evict(self, path: Path, checkpoints: bool) -> bool:
        with _lease(self.root / "work" / f"{path.name}.lease", wait=False) as mine:
            if not mine:
                return False
            held = None if checkpoints else _share(path / MANIFEST, fcntl.LOCK_EX)
            if held is None and not checkpoints:
                return False
            try:
                self._forget(path)
            finally:
                if held is not None:
                    os.close(held)
        return True

    def _forget(self, path: Path) -> None:
        """Deletes a folder so that it is there whole or not at all."""
        if not path.exists():
            return
        trash = self.root / "trash" / secrets.token_hex(8)
        try:
            trash.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, trash)
        except FileNotFoundError:
            return
        except OSError:  # a full disk: not even room for the folder's new name
            trash = path
        shutil.rmtree(trash, ignore_errors=True)

    def _sweep(self, again: bool = False) -> None:
        """Once per Store: deletes what killed processes left, apart from the checkpoints of what is not finished."""
        if self._swept and not again:
            return
        self._swept = True
        for path in self.root.glob("trash/*"):
            shutil.rmtree(path, ignore_errors=True)
        for work in self._works():
            with _lease(work.with_suffix(".lease"), wait=False) as mine:
                if mine:
                    self._forget(work if self._place(work.name).is_dir() else work / "out")
                    self._tidy(work)

    def _tidy(self, work: Path) -> None:
        """Removes a work folder that holds no checkpoints."""
        if not any((work / "scratch").glob("*")):
            self._forget(work)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Says clearly that the disk is full, whoever met it, and that the store can't be written."""
        try:
            for name in ("artifacts", "work"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not full(error):
                hint = "set EDGEKD_STORE to a folder that can be written"
                raise UsageError(Problem(str(self.root), f"the store can't be written: {error.strerror}", hint)) from error
            raise self._no_room() from error
        try:
            yield
        except Exception as error:
            if full(error):
                raise self._no_room() from error
            raise

    def _no_room(self) -> RunFailed:
        free = shutil.disk_usage(next(p for p in (self.root, *self.root.parents) if p.exists())).free
        hint = "free some room, or set EDGEKD_STORE to a folder on another disk; what is finished is kept, the same command goes on"
        return RunFailed(Problem(str(self.root), f"the disk is full: {free / 1e6:.1f} MB are free", hint))


# ---------------------------------------------------------------- for everybody


def write_atomic(path: Path | str, data: bytes) -> None:
    """Writes a file so that whoever looks sees the old one or the new one, whole, also after a power cut."""
    path = Path(path)
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
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
    _sync(path.parent)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(text: str, place: str = "") -> int:
    """Bytes of "500 MB" (kB = 1000, KiB = 1024). Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or (match[2] or "b").lower() not in UNITS:
        raise UsageError(Problem(place, f"{text!r} is no size", "a number and a unit, such as 500 MB or 20 GB"))
    return int(float(match[1]) * UNITS[(match[2] or "b").lower()])


def full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind an error; libraries wrap it in errors of their own, some keep its text alone."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and (error.errno in FULL or str(error).endswith("written")):  # numpy: "8 requested and 0 written"
            return True
        if any(os.strerror(code) in str(error) for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---------------------------------------------------------------- files


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def _sealed(schema: str, record: Mapping[str, Any]) -> bytes:
    """JSON with a digest of its own content."""
    record = json.loads(_canonical({**record, "schema": schema}))
    return json.dumps({**record, "sha256": hashlib.sha256(_canonical(record)).hexdigest()}, indent=1, sort_keys=True).encode() + b"\n"


def _unsealed(path: Path, schema: str) -> dict[str, Any]:
    """Reads what `_sealed` wrote. Raises ValueError if it isn't whole, OSError if it can't be read."""
    record = json.loads(path.read_bytes())
    if not isinstance(record, dict) or record.get("schema") != schema:
        raise ValueError(f"{path.name} is not of schema {schema}")
    if record.pop("sha256", None) != hashlib.sha256(_canonical(record)).hexdigest():
        raise ValueError(f"{path.name} differs from its digest")
    return record


def _files(folder: Path) -> dict[str, str]:
    """{relative name: sha256} of what a build left."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RunFailed(Problem(str(path), "a stage left something that is no plain file"))
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = sha256(path)
    if not files:
        raise RunFailed("a stage left no files")
    return files


def _read(folder: Path, key: str) -> tuple[Artifact | None, dict[str, str], str]:
    """(artifact, its recorded parents, "") if each file is as it was made; else (None, {}, what is wrong)."""
    try:
        record = _unsealed(folder / MANIFEST, SCHEMA)
        if record["key"] != key:
            return None, {}, f"{MANIFEST} is of another artifact"
        for name, digest in record["files"].items():
            if sha256(folder / name) != digest:
                return None, {}, f"{name} differs from its digest"
    except FileNotFoundError as error:
        return None, {}, f"{Path(error.filename).name} is missing"
    except ValueError as error:
        return None, {}, str(error)
    return _artifact(folder, record), record["parents"], ""


def _artifact(folder: Path, record: Mapping[str, Any]) -> Artifact:
    inputs = {role: tuple(keys) for role, keys in record["inputs"].items()}
    return Artifact(**{name: record[name] for name in FIELDS}, inputs=inputs, folder=folder)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _last_use(folder: Path) -> float:
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime if manifest.is_file() else max((p.stat().st_mtime for p in folder.rglob("*")), default=0.0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't sync a folder
            raise
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- locks


def _release(held: dict[str, int]) -> None:
    while held:
        os.close(held.popitem()[1])


def _same(descriptor: int, path: Path) -> bool:
    """Whether `path` still is the file that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _share(path: Path, kind: int = fcntl.LOCK_SH) -> int | None:
    """A descriptor that holds a lock on the file; None if the file is not there or being evicted."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        if _same(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _lease(path: Path, on_wait: Callable[[], None] | None = None, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lease; without `wait`, yields False where another has it. The file goes with the lease, so who waited looks whether
    what he got still is the file of that name."""
    descriptor = None
    while descriptor is None:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    break
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                fcntl.flock(opened, fcntl.LOCK_EX)
            if _same(opened, path):
                descriptor = opened
        finally:
            if descriptor is None:
                os.close(opened)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(Problem(str(folder), f"can't be read: {error.strerror}", "check the disk, or set EDGEKD_STORE to another folder")) from error
