"""The store of finished work: immutable artifacts by key, measurements beside them, checkpoints of what is in work.

    ROOT/artifacts/KE/KEY/        artifact.json and the files it names; appears by rename, is never written again
    ROOT/work/KEY/                out/ (files of a step in work), scratch/ (its checkpoints), cpus.json (the CPUs that
                                  made them)
    ROOT/work/KEY.lease           who works on it
    ROOT/observations/KE/KEY/     NAME.json, each with a digest of its own
    ROOT/trash/                   what is being deleted

Locks are flock(2) locks held by the process, so a SIGKILL frees them: exclusive on a lease while a step is made; shared
on artifact.json of what a Store has handed out, so that no other process evicts it. Files are not made read-only:
copies would inherit that, root ignores it, and digests are checked at every `find` anyway.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.files import canonical, full, home, sealed, sha256, size, sync, unsealed, write_atomic
from edgekd.records import Artifact, Made
from edgekd.store.locks import lease, share

SCHEMA, OBSERVATION = "edgekd.artifact/1", "edgekd.observation/1"
MANIFEST = "artifact.json"
FIELDS = ("key", "form", "files", "stage", "settings", "seed", "facts")  # of an Artifact, as they stand in its manifest
KEY = re.compile(r"[0-9A-Za-z_-]{3,128}")
LIMIT = "20 GB"


class Store:
    """`root`: default `EDGEKD_STORE`, else the user's cache folder; created when something is made. `log(**event)`
    receives an event for each artifact that was corrupt, stale or evicted."""

    def __init__(self, root: Path | None = None, *, log: Callable[..., None] = lambda **event: None):
        self.root = Path(root).absolute() if root else home("XDG_CACHE_HOME", ".cache", "EDGEKD_STORE")
        self.limit = size(os.environ.get("EDGEKD_STORE_LIMIT") or LIMIT, "EDGEKD_STORE_LIMIT")
        self.log = log
        self._held: dict[str, int] = {}  # key -> descriptor that holds the shared lock
        self._swept = False
        self.close = weakref.finalize(self, _release, self._held)

    def find(self, key: str, parents: Mapping[str, str]) -> Artifact | None:
        """The artifact, if it is there, whole, and made from parents with these digests. A broken one is removed,
        logged, and a miss."""
        folder = self._place(key)
        with _readable(folder):
            held = share(folder / MANIFEST)
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
        """The artifact, found or made: `build(folder, scratch)` writes its files into `folder`. One process at a time
        works on a key; the others call `on_wait`, wait, and find it. If the build fails nothing is left of it but its
        checkpoints. Raises RunFailed if the disk is full, UsageError if the store can't be written, and whatever
        `build` raises."""
        with self._disk():
            self._sweep()
            work = self.root / "work" / key
            with lease(work.with_suffix(".lease"), on_wait):
                found = self.find(key, parents)
                if found is not None:
                    self._forget(work)
                    return found
                self._forget(self._place(key))  # broken, or made from other parents
                folder, scratch = self._workplace(work, parents)
                try:
                    made = build(folder, scratch)
                    record = {"key": key, "form": made.form, "files": _files(folder), "inputs": inputs,
                              "parents": parents, "stage": stage,
                              "settings": settings, "seed": seed, "facts": made.facts}  # fmt: skip
                    write_atomic(folder / MANIFEST, sealed(SCHEMA, record))
                    artifact = self._publish(key, folder)
                except BaseException:
                    self._forget(folder)
                    self._tidy(work)
                    raise
                self._forget(work)
                return artifact

    def digest(self, artifact: Artifact) -> str:
        """sha256 over the digests of the artifact's files, by name."""
        return hashlib.sha256(canonical(dict(artifact.files))).hexdigest()

    def observe(self, key: str, name: str, payload: Mapping[str, Any]) -> None:
        """Keeps a measurement about an artifact: JSON values, written at once, replacing an older one of that name."""
        with self._disk():
            path = self._observation(key, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, sealed(OBSERVATION, {"key": key, "name": name, "payload": payload}))

    def observed(self, key: str, name: str) -> dict[str, Any] | None:
        """What `observe` kept; None if there is nothing, or nothing whole."""
        try:
            record = unsealed(self._observation(key, name), OBSERVATION)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.log(event="corrupt", key=key, reason=f"observation {name}: {error}")
            return None
        return record["payload"] if (record["key"], record["name"]) == (key, name) else None

    def trim(self, keep: set[str]) -> list[str]:
        """Evicts down to the limit, least recently used first: checkpoints left over, then `logits`, then all else.
        Never what is in `keep`, in work or in use by another process; never observations. Returns the keys that lost
        something."""
        for key in [k for k in self._held if k not in keep]:
            os.close(self._held.pop(key))
        left, gone = [], []
        with self._disk():
            self._sweep(again=True)
            for path, order in [(p, 0) for p in self._works()] + [(p, 1) for p in self._artifacts()]:
                # a broken one goes when it is looked for
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    form = None if order == 0 else json.loads((path / MANIFEST).read_bytes())["form"]
                    left.append((1 if form == "logits" else 2 * order, _last_use(path), path, _bytes(path)))
            total = sum(entry[3] for entry in left)
            for order, _, path, count in sorted(left):
                if total <= self.limit:
                    break
                if path.name not in keep and self._evict(path, order == 0):
                    total -= count
                    gone.append(path.name)
                    self.log(
                        event="evicted", key=path.name, bytes=count, reason="checkpoints" if order == 0 else "artifact"
                    )
        return gone

    # ------------------------------------------------------------ inside

    def _place(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a valid key: letters, digits, _ and -")
        return self.root / "artifacts" / key[:2] / key

    def _observation(self, key: str, name: str) -> Path:
        quoted = urllib.parse.quote(name, safe=" ()+,=@")
        if len(quoted) > 150:
            quoted = quoted[:80] + hashlib.sha256(name.encode()).hexdigest()
        return self.root / "observations" / key[:2] / self._place(key).name / f"{quoted}.json"

    def _works(self) -> list[Path]:
        return [p for p in self.root.glob("work/*") if KEY.fullmatch(p.name)]

    def _artifacts(self) -> list[Path]:
        return [p for p in self.root.glob("artifacts/*/*") if KEY.fullmatch(p.name)]

    def _hold(self, key: str, descriptor: int) -> None:
        before = self._held.pop(key, None)
        if before is not None:
            os.close(before)
        self._held[key] = descriptor

    def _workplace(self, work: Path, parents: Mapping[str, str]) -> tuple[Path, Path]:
        """An empty folder for the files, and the scratch folder as it was left, unless its checkpoints began from other
        parents."""
        marker, began = work / "parents.json", None
        with contextlib.suppress(OSError, ValueError):
            began = json.loads(marker.read_bytes())
        self._forget(work / "out" if began == dict(parents) else work)
        (work / "out").mkdir(parents=True)
        (work / "scratch").mkdir(exist_ok=True)
        write_atomic(marker, canonical(dict(parents)))
        return work / "out", work / "scratch"

    def _publish(self, key: str, folder: Path) -> Artifact:
        """Moves a sealed folder to its place, its files on disk before their name is. Under the lease."""
        for name in unsealed(folder / MANIFEST, SCHEMA)["files"]:
            sync(folder / name)
        for sub in [p for p in folder.rglob("*") if p.is_dir()] + [folder]:
            sync(sub)
        held, place = share(folder / MANIFEST), self._place(key)
        assert held is not None, "nobody evicts what is in work"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, place)
            sync(place.parent)
        except BaseException:
            os.close(held)
            raise
        self._hold(key, held)
        return _artifact(place, unsealed(place / MANIFEST, SCHEMA))

    def _discard(self, key: str, fault: str) -> None:
        """Removes a broken artifact, unless somebody is at work on it: he replaces it himself."""
        self.log(event="corrupt", key=key, reason=fault)
        with contextlib.suppress(OSError), lease(self.root / "work" / f"{key}.lease", wait=False) as mine:
            if mine and _read(self._place(key), key)[0] is None:
                self._forget(self._place(key))

    def _evict(self, path: Path, checkpoints: bool) -> bool:
        with lease(self.root / "work" / f"{path.name}.lease", wait=False) as mine:
            if not mine:
                return False
            held = None if checkpoints else share(path / MANIFEST, exclusive=True)
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
        for path in self.root.glob("observations/*/*/.*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        for work in {*self._works(), *(path.with_suffix("") for path in self.root.glob("work/*.lease"))}:
            with lease(work.with_suffix(".lease"), wait=False) as mine:
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
                raise UsageError(
                    Problem(str(self.root), f"the store can't be written: {error.strerror}", hint)
                ) from error
            raise self._no_room() from error
        try:
            yield
        except Exception as error:
            if full(error):
                raise self._no_room() from error
            raise

    def _no_room(self) -> RunFailed:
        free = shutil.disk_usage(next(p for p in (self.root, *self.root.parents) if p.exists())).free
        hint = (
            "free some room, or set EDGEKD_STORE to a folder on another disk; finished work is kept: run the same "
            "command to resume"
        )
        return RunFailed(Problem(str(self.root), f"the disk is full: {free / 1e6:.1f} MB are free", hint))


# ---------------------------------------------------------------- artifacts on disk


def _files(folder: Path) -> dict[str, str]:
    """{relative name: sha256} of what a build left."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RunFailed(Problem(str(path), "a stage left something that is not a plain file"))
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = sha256(path)
    if not files:
        raise RunFailed("a stage left no files")
    return files


def _read(folder: Path, key: str) -> tuple[Artifact | None, dict[str, str], str]:
    """(artifact, its recorded parents, "") if each file is as it was made; else (None, {}, what is wrong)."""
    try:
        record = unsealed(folder / MANIFEST, SCHEMA)
        if record["key"] != key:
            return None, {}, f"{MANIFEST} is of another artifact"
        for name, digest in record["files"].items():
            if sha256(folder / name) != digest:
                return None, {}, f"{name} differs from its digest"
    except (FileNotFoundError, NotADirectoryError) as error:
        return None, {}, f"{Path(error.filename).name} is missing"
    except IsADirectoryError as error:
        return None, {}, f"{Path(error.filename).name} is a folder"
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
    return (
        manifest.stat().st_mtime
        if manifest.is_file()
        else max((p.stat().st_mtime for p in folder.rglob("*")), default=0.0)
    )


def _release(held: dict[str, int]) -> None:
    while held:
        os.close(held.popitem()[1])


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(
            Problem(
                str(folder), f"can't be read: {error.strerror}", "check the disk, or set EDGEKD_STORE to another folder"
            )
        ) from error
