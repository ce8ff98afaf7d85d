"""Reads CIFAR-10 from a local folder or archive: 60,000 images of 32 x 32 in ten classes (Krizhevsky 2009). Nothing is
downloaded.

Supported are the binary version (data_batch_1.bin ... test_batch.bin, or their .tar.gz) and train_1.npz ... test.npz
with `label` and either `image` [N, 32, 32, 3] or `residual` [3, N, 32, 32]. The pickled "python version" is not
supported: a pickle runs code."""

from __future__ import annotations

import tarfile
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from edgekd.errors import Problem, UsageError

RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue planes
PARTS = {"train": tuple(range(1, 6)), "test": (0,)}
HINT = "give the folder or the .tar.gz of the binary version (cifar-10-binary.tar.gz)"


def cifar10(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 3, 32, 32] uint8 RGB, labels [N] int64) of `train` (50,000) or `test` (10,000), in the order of the
    files.

    Raises UsageError if `path` has no such files, or damaged ones."""
    path = Path(path)
    if not path.exists():
        raise UsageError(Problem(str(path), "there is no such file or folder", HINT))
    if path.is_file():
        return _join(
            [_records(f"{path}: {name}", raw) for name, raw in _archive(path, [_binary(n) for n in PARTS[split]])]
        )
    for folder in (path, path / "cifar-10-batches-bin"):
        if all((folder / _binary(n)).is_file() for n in PARTS[split]):
            return _join([_records(str(folder / _binary(n)), (folder / _binary(n)).read_bytes()) for n in PARTS[split]])
    if all((path / _columns(n)).is_file() for n in PARTS[split]):
        return _join([_arrays(path / _columns(n)) for n in PARTS[split]])
    pickled = any((folder / "data_batch_1").is_file() for folder in (path, path / "cifar-10-batches-py"))
    what = (
        "has the pickled version, and a pickle runs code when it is read"
        if pickled
        else f"has no CIFAR-10 {split} files"
    )
    raise UsageError(Problem(str(path), what, HINT))


def _binary(number: int) -> str:
    return f"data_batch_{number}.bin" if number else "test_batch.bin"


def _columns(number: int) -> str:
    return f"train_{number}.npz" if number else "test.npz"


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return images, labels.astype(np.int64)


def _records(place: str, raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not raw or len(raw) % RECORD:
        raise UsageError(
            Problem(place, f"has {len(raw)} bytes, which is not a multiple of {RECORD}", "download the file again")
        )
    rows = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    return _checked(place, rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0])


def _archive(path: Path, names: list[str]) -> list[tuple[str, bytes]]:
    """The members with these names. Nothing is unpacked to disk, and larger members than expected are not read."""
    try:
        with tarfile.open(path) as archive:
            found = {Path(m.name).name: m for m in archive.getmembers() if m.isfile() and m.size <= 10000 * RECORD}
            missing = [name for name in names if name not in found]
            if missing:
                raise UsageError(Problem(str(path), f"has no {', '.join(missing)}", HINT))
            return [(name, archive.extractfile(found[name]).read()) for name in names]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(Problem(str(path), f"is not a readable archive: {error}", HINT)) from None


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file["label"]
            if "image" in file.files:
                images = file["image"].transpose(0, 3, 1, 2)
            else:  # differences along width and height, green taken from red and blue, all modulo 256
                planes = np.cumsum(np.cumsum(file["residual"], 2, dtype=np.uint8), 3, dtype=np.uint8)
                planes[0] += planes[1]
                planes[2] += planes[1]
                images = planes.transpose(1, 0, 2, 3)
    except (BadZipFile, OSError, ValueError, KeyError, EOFError, IndexError) as error:
        raise UsageError(
            Problem(str(path), f"can't be read as CIFAR-10: {error}", "`label` [N] and `image` [N, 32, 32, 3]")
        ) from None
    return _checked(str(path), images, labels)


def _checked(place: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.shape[1:] != (3, 32, 32) or labels.shape != images.shape[:1]:
        found = f"images {images.dtype} {list(images.shape)}, labels {list(labels.shape)}"
        raise UsageError(Problem(place, f"is not CIFAR-10: {found}", HINT))
    if labels.dtype.kind not in "iu" or (len(labels) and (labels.min() < 0 or labels.max() > 9)):
        raise UsageError(Problem(place, "has labels that are not class numbers from 0 to 9", HINT))
    return np.ascontiguousarray(images), labels
