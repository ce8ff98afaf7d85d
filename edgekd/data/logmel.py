"""Log-mel spectrograms of sound, in numpy and as an ONNX graph of plain operators, so that the device computes the same
inputs as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, UsageError

if TYPE_CHECKING:
    import onnx

CHUNK = 256  # clips at a time: their frames overlap, and take a multiple of the clips' memory
OPSET = 17


@dataclass(frozen=True)
class LogMel:
    """The settings of a front end. `rate` in Hz; `length`, `window`, `hop` in samples; `low`, `high` in Hz; `floor`:
    the minimum power, relative to a sine at full scale. The output is (log power - mean) / deviation."""

    rate: int
    length: int
    window: int
    hop: int
    mels: int = 32
    low: float = 20.0
    high: float = 4000.0
    floor: float = 1e-8
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def frames(self) -> int:
        return 1 + (self.length - self.window) // self.hop

    @property
    def ground(self) -> float:
        """The output for silence."""
        return float((np.log(self.floor) - self.mean) / self.deviation)


def logmel(clips: Sequence[np.ndarray], settings: LogMel) -> np.ndarray:
    """int16 clips of any length -> [N, 1, frames, mels] float32.

    Each clip is padded or cut around its middle (`fitted`), framed without padding, weighted with a Hann window, and
    its power spectrum summed by `filterbank`; a sine at full scale on a bin has the power 1 there. Departs from Davis
    and Mermelstein 1980: the logarithm of powers not below `floor`, and no cosine transform after it."""
    window, bank = hann(settings.window), filterbank(settings)
    made = np.zeros((len(clips), 1, settings.frames, settings.mels), np.float32)
    for start in range(0, len(clips), CHUNK):
        sound = np.stack([fitted(clip, settings.length) for clip in clips[start : start + CHUNK]])
        frames = np.lib.stride_tricks.sliding_window_view(sound, settings.window, axis=1)[:, :: settings.hop]
        power = np.abs(np.fft.rfft(frames * window, axis=2) / (window.sum() / 2)) ** 2
        made[start : start + CHUNK, 0] = (
            np.log(np.maximum(power @ bank, settings.floor)) - settings.mean
        ) / settings.deviation
    return made


def fitted(clip: np.ndarray, length: int) -> np.ndarray:
    """A clip [n] int16 as [length] float64 in [-1, 1): zeros on both sides, or its middle; an odd sample more is added
    or cut at the end."""
    missing = length - len(clip)
    sound = clip.astype(np.float64) / 32768
    if missing < 0:
        return sound[-missing // 2 :][:length]
    return np.pad(sound, (missing // 2, missing - missing // 2))


def hann(window: int) -> np.ndarray:
    """The periodic Hann window [window]: 1/2 - 1/2 cos(2 pi n / window)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


def filterbank(settings: LogMel) -> np.ndarray:
    """Triangles [window // 2 + 1, mels] of height 1, their corners evenly spaced from `low` to `high` in mel = 2595
    log10(1 + f / 700).

    O'Shaughnessy 1987. Raises UsageError for invalid settings, or where a triangle falls between two frequencies of the
    window."""
    s = settings
    if (
        not 0 < s.hop <= s.window <= s.length
        or not 0 <= s.low < s.high <= s.rate / 2
        or s.mels < 1
        or not (s.floor > 0 and s.deviation > 0)
    ):
        hint = "0 < hop <= window <= length, 0 <= low < high <= rate / 2, floor and deviation above 0"
        raise UsageError(Problem("logmel", f"invalid settings: {s}", hint))
    mel = np.linspace(2595 * np.log10(1 + s.low / 700), 2595 * np.log10(1 + s.high / 700), s.mels + 2)
    corner = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.arange(s.window // 2 + 1)[:, None] * s.rate / s.window
    left, middle, right = corner[:-2], corner[1:-1], corner[2:]
    bank = np.minimum((frequency - left) / (middle - left), (right - frequency) / (right - middle)).clip(min=0)
    empty = np.flatnonzero(~bank.any(0))
    if len(empty):
        text = f"band {empty[0] + 1} of {s.mels} holds none of the frequencies, {s.rate / s.window:.4g} Hz apart"
        raise UsageError(Problem("logmel", text, "take fewer mels, or a longer window"))
    return bank


def frontend_onnx(settings: LogMel) -> onnx.ModelProto:
    """`logmel` as a graph: `audio` [batch, length] float32 in [-1, 1) -> `input` [batch, 1, frames, mels].

    Framing is a Gather, the Fourier transform two MatMuls with windowed cosines and sines, of those frequencies alone
    that a band holds."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    s, window, bank = settings, hann(settings.window), filterbank(settings)
    audible = np.flatnonzero(bank.any(1))
    # whole turns are taken off before the angle is made: float64 then gives each value to its last bit
    turns = np.outer(np.arange(s.window), audible) % s.window / s.window
    waves = window[:, None] / (window.sum() / 2)
    constants = {
        "place": (np.arange(s.frames)[:, None] * s.hop + np.arange(s.window)).astype(np.int32),
        "cosines": (waves * np.cos(2 * np.pi * turns)).astype(np.float32),
        "sines": (waves * np.sin(2 * np.pi * turns)).astype(np.float32),
        "bank": bank[audible].astype(np.float32),
        "floor": np.float32(s.floor),
        "mean": np.float32(s.mean),
        "deviation": np.float32(s.deviation),
        "channel": np.array([1], np.int64),
    }
    steps = [
        ("Gather", ["audio", "place"], "framed", {"axis": 1}),
        ("MatMul", ["framed", "cosines"], "real", {}),
        ("MatMul", ["framed", "sines"], "imaginary", {}),
        ("Mul", ["real", "real"], "real_squared", {}),
        ("Mul", ["imaginary", "imaginary"], "imaginary_squared", {}),
        ("Add", ["real_squared", "imaginary_squared"], "power", {}),
        ("MatMul", ["power", "bank"], "bands", {}),
        ("Max", ["bands", "floor"], "audible", {}),
        ("Log", ["audible"], "logarithm", {}),
        ("Sub", ["logarithm", "mean"], "centred", {}),
        ("Div", ["centred", "deviation"], "scaled", {}),
        ("Unsqueeze", ["scaled", "channel"], "input", {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=output, **more) for kind, inputs, output, more in steps],
        "logmel",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", s.length])],
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, s.frames, s.mels])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, producer_name="edgekd", ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    onnx.checker.check_model(model, full_check=True)
    return model
