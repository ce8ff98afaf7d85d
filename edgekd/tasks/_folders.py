"""Folders of images, sorted by class, as splits of the inputs that a given model takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.data import Arrays, Splits
from edgekd.data.column import stamp
from edgekd.data.reading import Reader, small
from edgekd.errors import UsageError, gathered
from edgekd.samples import images
from edgekd.samples.preprocess import BUILT_IN, Preprocess, load
from edgekd.samples.signature import Tensor
from edgekd.tasks.image_folder import files_of

if TYPE_CHECKING:
    from torch import nn

VALIDATION, TEST = 0.1, 0.2  # shares of images that are in no folder train or test
CROP = 224  # of imagenet, where nothing else is said


def splits(path: Path, preprocess: Path | None, module: nn.Module) -> Splits:
    """The images of `path/<class>/` or `path/{train,validation,test}/<class>/` as inputs of `module`, by `preprocess`.
    Raises UsageError with every problem."""
    files, _, problems = files_of(path, VALIDATION, TEST)
    how = gathered(lambda: _how(preprocess), problems)
    channels = _channels(module)
    if not problems:
        gathered(lambda: images.reader(_tensor(channels), how, "input", str(path)), problems)
    if problems or how is None:
        raise UsageError(*problems)
    read = {}
    for split, given in files.items():
        paths = tuple(file for file, _ in given)
        one = functools.partial(_image, paths, how, channels)
        state = functools.partial(_state, paths, how)
        columns = Reader(len(paths), one, str(path), state, None).columns()
        names = [file.relative_to(path).as_posix() for file in paths]
        values = gathered(functools.partial(small, columns), problems)
        if values is not None:
            read[split] = Arrays(values, np.array([label for _, label in given], np.int64), names)
    if problems:
        raise UsageError(*problems)
    return Splits(read)


def _how(preprocess: Path | None) -> Preprocess | None:
    """How images become inputs; None where it is not said, which `reader` refuses."""
    if preprocess is None:
        return None
    how = load(preprocess.name if preprocess.name in BUILT_IN and not preprocess.exists() else preprocess)
    return dataclasses.replace(how, crop=CROP) if how == BUILT_IN["imagenet"] else how


def _channels(module: nn.Module) -> int:
    """The channels that the first convolution takes, where these are of images; else 3."""
    from torch import nn

    first = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    return first if first in images.COLOURS else 3


def _tensor(channels: int) -> Tensor:
    return Tensor(np.dtype(np.float32), ("n", channels, None, None))


@functools.cache
def _reader(how: Preprocess, channels: int) -> Callable[[Path], np.ndarray]:
    return images.reader(_tensor(channels), how, "input", "data")


def _image(paths: Sequence[Path], how: Preprocess, channels: int, position: int) -> np.ndarray:
    return _reader(how, channels)(paths[position])


def _state(paths: Sequence[Path], how: Preprocess) -> object:
    """What changes with the images."""
    import PIL

    known = stamp(list(paths))
    return None if known is None else [known, repr(how), PIL.__version__]
