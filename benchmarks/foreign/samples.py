"""Samples of the inputs of a file, made as NAME.json beside it says, or taken from NAME.npz.

NAME.json: {"inputs": {input: {"make": kind, "shape": of one sample without its axis of samples, "axis": where that
axis is (0; null: a constant, given once), "scale": factor, "dtype": if not float32, "high": bound of whole numbers,
"value": of a constant}}, "samples": for calibration, "batch": samples at once (1)}. NAME.npz: {input: array}, its
samples along the first axis."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES, HELD_OUT = 96, 32  # below 128 edgekd calibrates on all that it is given


@dataclass(frozen=True)
class Samples:
    """`arrays` {input: all samples along `axes[input]` (None: a constant)}, the first `calibration` of them for
    calibration, the rest held out; a file gets `batch` at a time."""

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, int | None]
    calibration: int
    count: int
    batch: int = 1

    def rows(self, first: int, last: int) -> dict[str, np.ndarray]:
        """{input: samples from `first` up to `last`}, as a file takes them."""
        return {
            name: array if self.axes[name] is None else np.take(array, np.arange(first, last), self.axes[name])
            for name, array in self.arrays.items()
        }

    def batches(self, first: int, last: int) -> list[dict[str, np.ndarray]]:
        return [self.rows(i, i + self.batch) for i in range(first, last - self.batch + 1, self.batch)]


def of(model: Path) -> Samples:
    """The samples of a file of the folder."""
    told = model.with_suffix(".json")
    if told.is_file():
        return made(json.loads(told.read_text()))
    with np.load(model.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    count = len(next(iter(arrays.values())))
    return Samples(arrays, dict.fromkeys(arrays, 0), min(SAMPLES, count * 3 // 4), count)


def made(told: Mapping[str, Any]) -> Samples:
    calibration = told.get("samples", SAMPLES)
    count = calibration + HELD_OUT
    random, arrays, axes = np.random.default_rng(0), {}, {}
    for name, entry in told["inputs"].items():
        axes[name] = entry.get("axis", 0)
        rows = [MAKERS[entry["make"]](random, entry) for _ in range(1 if axes[name] is None else count)]
        array = rows[0] if axes[name] is None else np.stack(rows, axes[name])
        arrays[name] = np.ascontiguousarray(array).astype(entry.get("dtype", "float32"))
    return Samples(arrays, axes, calibration, count, told.get("batch", 1))


# ---------------------------------------------------------------- kinds


def _smooth(random: np.random.Generator, height: int, width: int, power: float = 1.2) -> np.ndarray:
    """A field whose spectrum falls as that of photographs, from 0 to 1."""
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    spectrum = random.normal(size=(*y.shape, 2)) @ [1, 1j] / (np.hypot(y, x) + 1 / max(height, width)) ** power
    field = np.fft.irfft2(spectrum, (height, width))
    return (field - field.min()) / max(np.ptp(field), 1e-9)


def image(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """Colours that vary as in photographs, about 0, at most 2 or so."""
    channels, height, width = entry["shape"]
    light = _smooth(random, height, width)
    found = np.stack([0.7 * light + 0.3 * _smooth(random, height, width) for _ in range(channels)])
    return (found - 0.45) / 0.25 * entry.get("scale", 1.0)


def text(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """A line of strokes, dark on light or light on dark, from -1 to 1."""
    channels, height, width = entry["shape"]
    page = np.ones((height, width), np.float32)
    size = int(height * random.uniform(0.5, 0.8))
    for left in range(random.integers(2, 8), width - size, int(size * 0.75)):
        if random.random() > 0.12:  # else a space
            _glyph(random, page[(height - size) // 2 :, left:], size)
    page = page * random.uniform(0.6, 1) + random.uniform(0, 0.2) * _smooth(random, height, width)
    page = 1 - page if random.random() < 0.3 else page
    return np.repeat(np.clip(page * 2 - 1, -1, 1)[None], channels, 0)


def _glyph(random: np.random.Generator, page: np.ndarray, size: int) -> None:
    thick = max(1, size // 9)
    for _ in range(random.integers(2, 5)):
        at, length = random.integers(0, max(1, size - thick)), random.integers(size // 3, size)
        begin = random.integers(0, size - length + 1)
        if random.random() < 0.5:
            page[at : at + thick, begin : begin + int(length * 0.7)] = 0
        else:
            page[begin : begin + length, int(at * 0.7) : int(at * 0.7) + thick] = 0


def page(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """A photograph with some lines of text on it."""
    channels, height, width = entry["shape"]
    found = np.stack([_smooth(random, height, width) for _ in range(channels)])
    for _ in range(random.integers(2, 6)):
        tall = int(random.integers(12, max(14, height // 6)))
        top, long = random.integers(0, height - tall), int(random.integers(width // 3, width))
        left = random.integers(0, width - long + 1)
        line = text(random, {"shape": [1, tall, long]})
        found[:, top : top + tall, left : left + long] = line / 2 + 0.5
    return found * entry["scale"] if "scale" in entry else (found - 0.5) / 0.25


def sound(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """Tones with overtones that come and go, in noise, at 16 kHz, from -1 to 1."""
    count = int(np.prod(entry["shape"]))
    time = np.arange(count) / 16000
    found = random.normal(size=count) * 10 ** random.uniform(-3, -1.5)
    for _ in range(random.integers(1, 4)):
        pitch, envelope = random.uniform(80, 600), np.interp(np.arange(count), *_corners(random, count))
        bend = 2 * np.pi * pitch * time * (1 + 0.05 * np.sin(2 * np.pi * random.uniform(1, 5) * time))
        found += envelope * sum(np.sin(k * bend) / k for k in range(1, 9)) * random.uniform(0.02, 0.4)
    return np.clip(found, -1, 1).reshape(entry["shape"])


def _corners(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    number = max(3, count // 2000)
    return np.linspace(0, count, number), np.maximum(random.normal(size=number), 0)


def spectrum(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """Logarithms of a mel spectrum: stripes along the time, weaker where the pitch is high."""
    *channels, frames, bands = entry["shape"]
    parts = [
        _smooth(random, frames, bands, 0.9) * 2 - 1.5 - np.linspace(0, 0.8, bands)
        for _ in range(int(np.prod(channels)))
    ]
    return np.stack(parts).reshape(entry["shape"])


def integers(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """Whole numbers below `high`, the small ones often, as words."""
    return (entry["high"] * random.random(entry["shape"]) ** 3).astype(np.int64)


def octets(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    """Bytes of texts and of binary files, some shorter than what is looked at (256 fills)."""
    letters = random.integers(32, 127, 24) if random.random() < 0.6 else random.integers(0, 256, 200)
    found = random.choice(letters, entry["shape"])
    found[..., random.integers(20, 2 * found.shape[-1]) :] = 256
    return found


def normal(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    return random.normal(size=entry["shape"]) * entry.get("scale", 1.0)


def zeros(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    return np.zeros(entry["shape"])


def ones(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    return np.ones(entry["shape"])


def constant(random: np.random.Generator, entry: Mapping[str, Any]) -> np.ndarray:
    return np.array(entry["value"])


Maker = Callable[[np.random.Generator, Mapping[str, Any]], np.ndarray]
MAKERS: dict[str, Maker] = {
    f.__name__: f for f in (image, text, page, sound, spectrum, integers, normal, zeros, ones, constant)
} | {"bytes": octets}
