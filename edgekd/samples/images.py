"""Images as arrays."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment
from edgekd.errors import EnvironmentUnfit, Problem, UsageError
from edgekd.samples.media import fitting, normalized
from edgekd.samples.preprocess import Preprocess
from edgekd.samples.signature import Dim, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

COLOURS = (1, 3)


def reader(tensor: Tensor, how: Preprocess | None, name: str, place: str) -> Callable[[Path], np.ndarray]:
    """What reads a file as one sample of the input `name`. Raises UsageError where the input is none of images, or it
    is not said how, EnvironmentUnfit without Pillow."""
    image = _pillow()
    dims, whole = tensor.dims or (), tensor.dtype is not None and tensor.dtype.kind in "iu"
    form = _form(dims, how.layout if how else None)
    if form is None:
        text = f"the input {name} takes {_shown(dims)}, which is no image of 1 or 3 channels"
        raise UsageError(Problem(place, text, 'give .npz files; or say `"layout": "nchw"` in a file for --preprocess'))
    if how is None and not whole:
        hint = "--preprocess imagenet, unit (0 to 1) or FILE.json, as the model was trained"
        raise UsageError(Problem("--preprocess", f"is missing: it says how images become {tensor.dtype}", hint))
    how = how or Preprocess()
    channels, height, width, axis = form
    size = _pair(how.crop) or ((height, width) if isinstance(height, int) and isinstance(width, int) else None)
    if size is None and how.resize is None:
        hint = 'say `"crop": [height, width]` in a file for --preprocess'
        raise UsageError(Problem(place, f"the input {name} leaves the size of images open", hint))
    fitting(how, channels, name)

    def read(path: Path) -> np.ndarray:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.Image.DecompressionBombWarning)
                with image.Image.open(path) as opened:
                    upright = _upright(opened, path, image).convert("RGB" if channels == 3 else "L")
            pixels = np.asarray(_cut(_scaled(upright, how, size, image), size), np.float32)
        except UsageError:
            raise
        except Exception as error:  # Pillow's decoders raise of every kind
            raise UsageError(Problem(str(path), f"can't be read as an image: {error}", "fix or remove it")) from None
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        pixels = pixels[:, :, ::-1] if how.order == "bgr" else pixels
        values = normalized(pixels, how, tensor, 1 / 255, 2)
        if axis is None:
            return values[:, :, 0]
        return values if axis == 3 else np.ascontiguousarray(values.transpose(2, 0, 1))

    return read


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        text = "reading images needs Pillow"
        raise EnvironmentUnfit(Problem("--data", text, environment.extra("images"))) from None
    return PIL


def _form(dims: tuple[Dim, ...], layout: str | None) -> tuple[int, Dim, Dim, int | None] | None:
    """(channels, height, width, axis of the channels or None) of an input [n, ...]; None where it is none of images."""
    if len(dims) == 3:
        return 1, dims[1], dims[2], None
    if len(dims) != 4:
        return None
    first = layout == "nchw" or (layout is None and dims[1] in COLOURS)
    last = layout == "nhwc" or (layout is None and not first and dims[3] in COLOURS)
    if not first and not last:
        return None
    channels = dims[1] if first else dims[3]
    known = channels if isinstance(channels, int) else 3
    return (known, dims[2], dims[3], 1) if first else (known, dims[1], dims[2], 3)


def _upright(opened: Any, path: Path, image: Any) -> Any:
    """An image as a camera held it, of values 0 to 255: Pillow's `convert` cuts those of 16 bits off at 255. Raises
    UsageError for floats and for integers of 32 bits, whose range is not known."""
    sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
    if opened.mode[0] in "IF" and not sixteen:
        kind = "floats" if opened.mode == "F" else "integers of 32 bits"
        hint = "save it with 8 or 16 bits per channel, or give .npz files"
        raise UsageError(Problem(str(path), f"holds {kind}, and nothing says which value is white", hint))
    found = image.ImageOps.exif_transpose(opened)
    return image.Image.fromarray(np.rint(np.asarray(found) / 257).astype(np.uint8)) if sixteen else found


def _scaled(opened: Any, how: Preprocess, size: tuple[int, int] | None, image: Any) -> Any:
    """An image before its middle is cut out."""
    width, height = opened.size
    if isinstance(how.resize, tuple):
        new = how.resize[1], how.resize[0]
    elif how.resize is not None:
        shorter = min(width, height)
        new = max(1, int(width * how.resize / shorter)), max(1, int(height * how.resize / shorter))
    else:
        wanted = size or (height, width)
        factor = how.margin * max(wanted[0] / height, wanted[1] / width)
        new = max(wanted[1], round(width * factor)), max(wanted[0], round(height * factor))
    return opened if new == opened.size else opened.resize(new, image.Image.Resampling.BILINEAR)


def _cut(opened: Any, size: tuple[int, int] | None) -> Any:
    """The middle of an image; zeros where it is smaller."""
    if size is None:
        return opened
    left, top = round((opened.size[0] - size[1]) / 2), round((opened.size[1] - size[0]) / 2)
    return opened.crop((left, top, left + size[1], top + size[0]))


def _pair(side: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (side, side) if isinstance(side, int) else side


def _shown(dims: tuple[Dim, ...]) -> str:
    return "[" + ", ".join(str(d or "?") for d in dims) + "]"
