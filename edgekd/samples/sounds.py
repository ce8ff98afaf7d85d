"""Sounds as arrays: .wav files, mixed to one channel."""

from __future__ import annotations

import math
import warnings
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.samples.media import fitting, normalized
from edgekd.samples.preprocess import Preprocess
from edgekd.samples.signature import Tensor

HINT = "save it as PCM of 8 to 32 bits, or as float32"
MOST = 2**28  # values of a sound at another rate: 90 minutes at 48 kHz


def reader(tensor: Tensor, how: Preprocess | None, name: str, place: str) -> Callable[[Path], np.ndarray]:
    """What reads a file as one sample of the input `name`, which takes [n, values] or [n, 1, values]. Raises UsageError
    where it does not."""
    dims, how = tensor.dims or (), how or Preprocess()
    if len(dims) not in (2, 3) or (len(dims) == 3 and dims[1] not in (1, None) and not isinstance(dims[1], str)):
        shown = "[" + ", ".join(str(d or "?") for d in dims) + "]"
        hint = "a model that takes a spectrogram needs .npz files"
        raise UsageError(Problem(place, f"the input {name} takes {shown}, and a sound is [n, values]", hint))
    fitting(how, 1, name)
    length = how.length or (dims[-1] if isinstance(dims[-1], int) else None)

    def read(path: Path) -> np.ndarray:
        values, rate = decoded(path)
        if how.rate is not None and rate != how.rate:
            values = _at_rate(values, rate, how.rate, path)
        values = values if length is None else _middle(values, length)
        found = normalized(values, how, tensor, 1.0, None)
        return found if len(dims) == 2 else found[None]

    return read


def decoded(path: Path) -> tuple[np.ndarray, int]:
    """(values [n] of -1 to 1, rate) of a .wav file, the mean of its channels. Raises UsageError."""
    try:
        with open(path, "rb") as opened, wave.open(opened) as file:
            form, raw = file.getparams(), file.readframes(file.getnframes())
        values, rate, channels = _pcm(raw, form.sampwidth), form.framerate, form.nchannels
    except wave.Error as error:
        values, rate, channels = _other(path, error)
    except (EOFError, OSError, ValueError) as error:
        raise UsageError(
            Problem(str(path), f"can't be read as .wav: {str(error) or 'it ends too early'}", HINT)
        ) from None
    if not len(values) or len(values) % channels or rate < 1:
        raise UsageError(Problem(str(path), "has no samples, or is cut off", "fix or remove it"))
    return values.reshape(-1, channels).mean(1, dtype=np.float64), rate


def _pcm(raw: bytes, width: int) -> np.ndarray:
    if width == 1:  # unsigned
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)


def _other(path: Path, error: Exception) -> tuple[np.ndarray, int, int]:
    """(values of all channels, rate, channels) of what the standard library does not read, where SciPy is there."""
    try:
        from scipy.io import wavfile
    except ImportError:
        hint = f"{HINT}; float32 and WAVE_FORMAT_EXTENSIBLE need SciPy"
        raise UsageError(Problem(str(path), f"can't be read as .wav: {error}", hint)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no sound
            rate, found = wavfile.read(path)
    except Exception as other:  # SciPy's reader raises of every kind
        reason = other if isinstance(other, ValueError) else error
        raise UsageError(Problem(str(path), f"can't be read as .wav: {reason}", HINT)) from None
    channels = 1 if found.ndim == 1 else found.shape[1]
    if found.dtype.kind == "f":
        return found.reshape(-1), rate, channels
    return _pcm(found.tobytes(), found.dtype.itemsize), rate, channels  # 24 bits are in the upper part of 32


def _at_rate(values: np.ndarray, rate: int, wanted: int, path: Path) -> np.ndarray:
    try:
        from scipy.signal import resample_poly
    except ImportError:
        text = f"has a sample rate of {rate} Hz, and {wanted} are wanted"
        raise UsageError(Problem(str(path), text, "convert it, or install SciPy")) from None
    if len(values) * wanted > MOST * rate:
        text = f"has a sample rate of {rate} Hz: at {wanted} Hz it is longer than {MOST} values"
        raise UsageError(Problem(str(path), text, "cut it, or correct the rate in its header"))
    shared = math.gcd(rate, wanted)
    return np.asarray(resample_poly(values, wanted // shared, rate // shared))


def _middle(values: np.ndarray, length: int) -> np.ndarray:
    """The middle, or zeros after the end."""
    if len(values) >= length:
        start = (len(values) - length) // 2
        return values[start : start + length]
    return np.pad(values, (0, length - len(values)))
