"""Images in a folder, sorted by class: `path/<class>/*.png`, or `path/{train,validation,test}/<class>/*.png`."""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from edgekd import environment
from edgekd.data import Arrays, Splits
from edgekd.data.augmentation import affine
from edgekd.data.column import stamp
from edgekd.data.reading import Reader, small
from edgekd.errors import EnvironmentUnfit, Problem, UsageError
from edgekd.metrics import top1
from edgekd.models.networks import residual
from edgekd.records import Task

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


def image_folder(
    *,
    path: Path,
    size: Annotated[int, Ge(8), Le(512)] = 32,
    channels: Literal[1, 3] = 3,
    teacher: Annotated[int, Ge(8), Le(512), MultipleOf(8)] = 48,
    student: Annotated[int, Ge(8), Le(512), MultipleOf(8)] = 16,
    validation: Annotated[float, Gt(0), Lt(1)] = 0.1,
    test: Annotated[float, Gt(0), Lt(1)] = 0.2,
    flip: bool = False,
    shareable: bool = False,
) -> Task:
    """Classifies images by their folder. Images are cropped to the central square, scaled to `size` and normalized:
    [channels, size, size].

    `teacher`, `student`: width of the first layer of a residual network, doubled twice. Without folders `train` and
    `test`, a file's split depends only on the hash of its name below `path`, so new files don't move others: shares
    `test` and `validation` of all. `flip`: augmentation mirrors left to right, for classes that this does not change.
    Needs Pillow (`pip install "edgekd[images]"`). Raises UsageError with every invalid file and class, EnvironmentUnfit
    without Pillow."""
    path = Path(path)
    files, classes, problems = files_of(path, validation, test)
    parts, unreadable = _read(path, files, size, channels) if files else ({}, [])
    if problems or unreadable:
        raise UsageError(*problems, *unreadable)
    settings = {
        "size": size,
        "channels": channels,
        "teacher": teacher,
        "student": student,
        "flip": flip,
        "classes": len(classes),
    }
    network = partial(residual, channels=channels, classes=len(classes), stem_stride=2 if size >= 64 else 1)
    return Task(
        name=path.resolve().name,
        version=f"1 {json.dumps(settings)}",
        models={
            "teacher": partial(network, (teacher, 2 * teacher, 4 * teacher)),
            "student": partial(network, (student, 2 * student, 4 * student)),
        },
        data=Splits(parts),
        metrics=(top1(),),
        classes=len(classes),
        augment=partial(affine, turn=0.1, scale=0.1, shift=0.2, flip=flip, ground="edge"),
        draws=6,
        views=16,
        shareable=shareable,
    )


def split_of(name: str, validation: float, test: float) -> str:
    """The split of a file by the hash of its name: the first `test` of all hashes are test, the next `validation` of
    them validation."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "validation" if share < test + validation else "train"


def files_of(
    path: Path, validation: float, test: float
) -> tuple[dict[str, list[tuple[Path, int]]], list[str], list[Problem]]:
    """({split: [(file, class)]} in the order of names, the names of the classes, the folder's problems)."""
    if not path.is_dir():
        return (
            {},
            [],
            [
                Problem(
                    str(path),
                    "there is no such folder",
                    "path/<class>/*.png, or path/{train,validation,test}/<class>/*.png",
                )
            ],
        )
    problems = []
    if test + validation >= 1:
        problems.append(
            Problem(str(path), f"test {test} and validation {validation} leave no training images", "make them smaller")
        )
    roots = {child: FOLDERS[child.name.lower()] for child in _folders(path) if child.name.lower() in FOLDERS}
    sorted_already = {"train", "test"} <= set(roots.values())
    if sorted_already:
        problems += [
            Problem(str(child), "is not named train, validation or test", "rename or remove it")
            for child in _folders(path)
            if child not in roots
        ]
    roots = roots if sorted_already else {path: ""}
    classes = sorted(
        {child.name for root, split in roots.items() if split in ("", "train") for child in _folders(root)}
    )
    if len(classes) < 2:
        have = f"only {classes[0]!r}" if classes else "no class folder"
        problems.append(
            Problem(str(path), f"at least two classes are needed, but there is {have}", "make one folder per class")
        )
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "validation": [], "test": []}
    for root, split in roots.items():
        for folder in _folders(root):
            if folder.name not in classes:
                problems.append(
                    Problem(
                        str(folder),
                        f"the class {folder.name!r} is not in train",
                        "add training images of the class, or remove the folder",
                    )
                )
                continue
            images = sorted(
                f
                for f in folder.rglob("*")
                if f.suffix.lower() in SUFFIXES and f.is_file() and not f.name.startswith(".")
            )
            if not images:
                problems.append(
                    Problem(str(folder), "the class has no images", f"add files with {', '.join(sorted(SUFFIXES))}")
                )
            for image in images:
                drawn = split or split_of(image.relative_to(path).as_posix(), validation, test)
                if split == "train" and "validation" not in roots.values():
                    drawn = (
                        "validation"
                        if split_of(image.relative_to(root).as_posix(), validation, 0) == "validation"
                        else "train"
                    )
                parts[drawn].append((image, classes.index(folder.name)))
    count = sum(map(len, parts.values()))
    for split, files in parts.items():
        if not files and count and not problems:
            problems.append(
                Problem(str(path), f"none of the {count} images is in {split}", "add images, or give a larger share")
            )
    return parts, classes, problems


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _read(
    path: Path, parts: dict[str, list[tuple[Path, int]]], size: int, channels: int
) -> tuple[dict[str, Arrays], list[Problem]]:
    """({split: its images}, problems): small splits are in memory, of larger ones each image is read when it is asked
    for."""
    try:
        import PIL
    except ImportError:
        raise EnvironmentUnfit(
            Problem("image_folder", "reading images needs Pillow", environment.extra("images"))
        ) from None

    problems: list[Problem] = []
    read: dict[str, Arrays] = {}
    form = {"": ((channels, size, size), np.dtype(np.float32))}
    for split, given in parts.items():
        files = [file for file, _ in given]
        state = partial(_state, files, [size, channels, PIL.__version__])
        pixels = Reader(len(files), partial(_image, files, size, channels), "image_folder", state, form).columns()
        labels = np.array([label for _, label in given], np.int64)
        try:
            read[split] = Arrays(
                small(pixels) if files else np.zeros((0, channels, size, size), np.float32),
                labels,
                [file.relative_to(path).as_posix() for file in files],
            )
        except UsageError as error:
            problems += error.problems
    return read, problems


def _state(files: list[Path], settings: list[Any]) -> Any:
    """What changes with the images."""
    known = stamp(files)
    return None if known is None else [known, settings]


def _image(files: list[Path], size: int, channels: int, position: int) -> np.ndarray:
    """[channels, size, size] float32. Raises UsageError where the file can't be read."""
    from PIL import Image, ImageOps

    file = files[position]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        square = np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR), np.float32)
    except Exception as error:  # (Pillow's decoders raise of every kind)
        raise UsageError(Problem(str(file), f"can't be read as an image: {error}", "fix or remove it")) from None
    return (square.reshape(size, size, channels).transpose(2, 0, 1) / 255 - 0.5) / 0.25
