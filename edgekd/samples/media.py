"""Folders of images or sounds as the only input of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.inputs import Block
from edgekd.samples.preprocess import Preprocess
from edgekd.samples.signature import Tensor

SHOWN = 10  # files that can't be read that are told one by one
IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SOUNDS = {".wav"}
ARCHIVES = {".npz"}
KINDS = {"images": IMAGES, "sounds": SOUNDS, "archives": ARCHIVES}
HINT = "one .npz per sample, images, or .wav files; images and sounds may lie in a folder per class"


@dataclass(frozen=True)
class Files:
    """The files of a folder in the order of their names, or files by name where `folder` is None; `labels` by
    subfolder, None where there are none."""

    folder: Path | None
    kind: str
    paths: tuple[Path, ...]
    labels: np.ndarray | None

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return [(p.relative_to(self.folder) if self.folder else p).as_posix() for p in (self.paths[i] for i in rows)]

    @property
    def place(self) -> str:
        """What messages name."""
        return str(self.folder) if self.folder is not None else ", ".join(map(str, self.paths))


def kind_of(path: Path) -> str | None:
    """images, sounds or archives, by the ending; None for others."""
    return next((k for k, suffixes in KINDS.items() if path.suffix.lower() in suffixes), None)


def listed(folder: Path) -> Files:
    """The samples of a folder. Raises UsageError where it holds none, or several kinds."""
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        kind = kind_of(path)
        if kind is not None and not hidden and path.is_file():
            found[kind].append(path)
    kinds = [kind for kind, paths in found.items() if paths]
    if len(kinds) != 1:
        counts = ", ".join(f"{len(found[kind])} {kind}" for kind in kinds)
        text = f"holds files of several kinds: {counts}" if kinds else "holds no samples"
        raise UsageError(Problem(str(folder), text, HINT))
    paths = found[kinds[0]]
    return Files(folder, kinds[0], tuple(paths), None if kinds[0] == "archives" else _labels(folder, paths))


def _labels(folder: Path, paths: Sequence[Path]) -> np.ndarray | None:
    """Class numbers by the first folder below: its name where all are numbers, else its place among the names."""
    names = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in paths]
    classes = sorted(set(names))
    if classes == [""]:
        return None
    if "" in classes:
        loose = paths[names.index("")].name
        text = f"{loose} lies beside folders of classes"
        raise UsageError(Problem(str(folder), text, "all files in folders of classes, or none"))
    whole = all(c.isascii() and c.isdecimal() and len(c) < 19 for c in classes)  # what 64 bits hold
    numbers = {n: int(n) if whole else i for i, n in enumerate(classes)}
    return np.array([numbers[n] for n in names], np.int64)


def collected(paths: Sequence[Path], one: Callable[[Path], np.ndarray]) -> list[np.ndarray]:
    """The array of each file. Raises UsageError with the files that can't be read."""
    found, problems, block = [], [], Block(len(paths))
    for path in paths:
        try:
            found.append(block.keep(one(path)))
        except UsageError as error:
            problems += error.problems
    if problems:
        more = len(problems) - SHOWN
        raise UsageError(*problems[:SHOWN], *([f"and {more} more files that can't be read"] if more > 0 else []))
    return found


def fitting(how: Preprocess, channels: int, name: str) -> None:
    """Raises UsageError where `mean` or `deviation` are of another number of channels than an input has."""
    given = {len(how.mean), len(how.deviation)} - {1, channels}
    if given:
        text = f"`mean` and `deviation` are for {max(given)} channels, and the input {name} has {channels}"
        raise UsageError(Problem("--preprocess", text))


def normalized(values: np.ndarray, how: Preprocess, tensor: Tensor, scale: float, axis: int | None) -> np.ndarray:
    """(values * scale - mean) / deviation, per channel along `axis`, in the type that the model takes. A model that
    takes integers gets the values as they are, unless a scale is said: mean and deviation are of floats."""
    whole = tensor.dtype is not None and tensor.dtype.kind in "iu"
    found = values if whole and how.scale is None else _scaled(values, how, 1.0 if whole else scale, axis)
    if not whole:
        return found.astype(np.float32)
    limits = np.iinfo(tensor.dtype)
    return np.clip(np.rint(found), limits.min, limits.max).astype(tensor.dtype)


def _scaled(values: np.ndarray, how: Preprocess, scale: float, axis: int | None) -> np.ndarray:
    factor = how.scale if how.scale is not None else scale
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    mean, deviation = (
        np.array(v, np.float64).reshape(shape if len(v) > 1 else [1] * values.ndim) for v in (how.mean, how.deviation)
    )
    return (values.astype(np.float64) * factor - mean) / deviation
