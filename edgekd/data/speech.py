"""Reads local recordings of spoken words, each with its label and its speaker. Nothing is downloaded or unpickled.

Supported are (a) .wav files, mono, 8 or 16 bits: `path/CLASS/SPEAKER_more.wav` (the form of Speech Commands, Warden
2018: the speaker is what stands before the first `_`; a name without one has no speaker), or flat
`{digit}_{speaker}_{take}.wav` (the Free Spoken Digit Dataset); (b) train.npz and test.npz with `audio` int16 [samples],
`offset` [N + 1], `label` [N], `speaker` [N], `speaker_name` [speakers], and `rate` where it isn't 8000."""

from __future__ import annotations

import hashlib
import re
import wave
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from edgekd.errors import Problem, UsageError

FLAT = re.compile(r"(\d+)_(.+)_(\d+)", re.ASCII)
TAKES = 5  # of each flat speaker and digit, the first are test, as its authors have it
TEST = 0.2  # share of speakers in class folders that are test
SHOWN = 10  # invalid files that are reported one by one
HINT = "CLASS/*.wav, {digit}_{speaker}_{take}.wav, or train.npz and test.npz"


@dataclass(frozen=True)
class Clips:
    """`audio`: N arrays [n] int16; `labels` [N] int64 into `classes`; `speakers`: N names ("" where it isn't known);
    `ids`: N names of files or rows; `test` [N] bool: the recordings' own test part; `rate` Hz."""

    audio: list[np.ndarray] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    speakers: list[str] = field(repr=False)
    ids: list[str] = field(repr=False)
    test: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    rate: int


def read(path: Path) -> Clips:
    """All clips in `path`, in the order of rows or of names. Raises UsageError with every invalid file."""
    path = Path(path)
    if not path.is_dir():
        raise UsageError(Problem(str(path), "there is no such folder", HINT))
    if (path / "train.npz").is_file() or (path / "test.npz").is_file():
        return _columns(path)
    for folder in (path, path / "recordings"):
        flat = _waves(folder) if folder.is_dir() else []
        if flat:
            return _flat(folder, flat)
    return _folders(path)


def _waves(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.iterdir() if f.suffix.lower() == ".wav" and f.is_file() and not f.name.startswith(".")
    )


# ---------------------------------------------------------------- wav files


def _flat(folder: Path, files: list[Path]) -> Clips:
    parts = [FLAT.fullmatch(file.stem) for file in files]
    wrong = [
        Problem(str(f), "is not named {digit}_{speaker}_{take}.wav", HINT)
        for f, p in zip(files, parts, strict=True)
        if p is None
    ]
    if wrong:
        raise UsageError(*_first(wrong))
    digits = np.array([int(p[1]) for p in parts], np.int64)
    if digits.max() > 9999:
        raise UsageError(
            Problem(
                str(files[digits.argmax()]),
                f"its class number is {digits.max()}",
                "number the classes from 0 without gaps",
            )
        )
    classes = tuple(str(i) for i in range(int(digits.max()) + 1))
    return _clips(files, folder, digits, [p[2] for p in parts], np.array([int(p[3]) < TAKES for p in parts]), classes)


def _folders(path: Path) -> Clips:
    found = {f.name: _waves(f) for f in sorted(path.iterdir()) if f.is_dir() and not f.name.startswith((".", "_"))}
    if len(found) < 2:
        raise UsageError(
            Problem(
                str(path),
                f"holds {'one class' if found else 'no class folders'}: {', '.join(found) or 'nothing'}",
                HINT,
            )
        )
    empty = [
        Problem(str(path / name), "the class has no .wav files", "add files, or remove the folder")
        for name, files in found.items()
        if not files
    ]
    if empty:
        raise UsageError(*_first(empty))
    files = [file for of_class in found.values() for file in of_class]
    labels = np.repeat(np.arange(len(found)), [len(of_class) for of_class in found.values()])
    speakers = [file.stem.partition("_")[0] if "_" in file.stem else "" for file in files]
    # all clips of a speaker are in the same split
    test = [_share(s or f.relative_to(path).as_posix()) < TEST for s, f in zip(speakers, files, strict=True)]
    return _clips(files, path, labels, speakers, np.array(test), tuple(found))


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _clips(
    files: list[Path], root: Path, labels: np.ndarray, speakers: list[str], test: np.ndarray, classes: tuple[str, ...]
) -> Clips:
    audio, rates, problems = [], {}, []
    for file in files:
        try:
            sound, rates[file] = _wave(file)
            audio.append(sound)
        except UsageError as error:
            problems += error.problems
    usual = Counter(rates.values()).most_common(1)[0][0] if rates else 0
    other = [(file, rate) for file, rate in rates.items() if rate != usual]
    problems += [
        Problem(str(f), f"has a sample rate of {rate} Hz, most files have {usual} Hz", "convert all files to one rate")
        for f, rate in other
    ]
    if problems:
        raise UsageError(*_first(problems))
    return Clips(
        audio, labels.astype(np.int64), speakers, [f.relative_to(root).as_posix() for f in files], test, classes, usual
    )


def _wave(path: Path) -> tuple[np.ndarray, int]:
    """(samples [n] int16, rate). The unsigned 8-bit samples of a .wav become the upper 8 of 16 bits."""
    try:
        with open(path, "rb") as opened, wave.open(opened) as file:
            form, raw = file.getparams(), file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise UsageError(
            Problem(
                str(path),
                f"can't be read as .wav: {str(error) or 'it ends too early'}",
                "save it as PCM, mono, 16 or 8 bits",
            )
        ) from None
    if form.nchannels != 1 or form.sampwidth not in (1, 2):
        raise UsageError(
            Problem(
                str(path),
                f"has {form.nchannels} channels of {8 * form.sampwidth} bits",
                "save it as PCM, mono, 16 or 8 bits",
            )
        )
    if not form.nframes or form.framerate < 1 or len(raw) != form.nframes * form.sampwidth:
        text = f"is cut off: {len(raw)} of {form.nframes * form.sampwidth} bytes" if form.nframes else "has no samples"
        raise UsageError(Problem(str(path), text, "fix or remove it"))
    if form.sampwidth == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.int16) - 128) * np.int16(256), form.framerate
    return np.frombuffer(raw, "<i2").astype(np.int16), form.framerate


def _first(problems: list[Problem]) -> list[Problem]:
    more = len(problems) - SHOWN
    return problems if more <= 0 else [*problems[:SHOWN], Problem("speech", f"and {more} more invalid files")]


# ---------------------------------------------------------------- .npz files


def _columns(path: Path) -> Clips:
    audio, labels, speakers, ids, test, rates = [], [], [], [], [], {}
    for name in ("train", "test"):
        columns = _npz(path / f"{name}.npz")
        offset, rates[name] = columns["offset"], int(columns.get("rate", 8000))
        audio += [columns["audio"][a:b] for a, b in zip(offset[:-1], offset[1:], strict=True)]
        labels.append(columns["label"].astype(np.int64))
        speakers += [str(columns["speaker_name"][s]) for s in columns["speaker"]]
        ids += [f"{name}/{i}" for i in range(len(offset) - 1)]
        test += [name == "test"] * (len(offset) - 1)
    if rates["train"] != rates["test"]:
        raise UsageError(
            Problem(
                str(path / "test.npz"),
                f"has a sample rate of {rates['test']} Hz, train.npz has {rates['train']} Hz",
                "convert both to one rate",
            )
        )
    joined = np.concatenate(labels)
    return Clips(
        audio,
        joined,
        speakers,
        ids,
        np.array(test),
        tuple(str(i) for i in range(int(joined.max()) + 1)),
        rates["train"],
    )


def _npz(path: Path) -> dict[str, np.ndarray]:
    needed = ("audio", "offset", "label", "speaker", "speaker_name")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [name for name in needed if name not in file.files]
            columns = {name: file[name] for name in (*needed, "rate") if name in file.files}
    except FileNotFoundError:
        raise UsageError(Problem(str(path), "there is no such file", HINT)) from None
    except (BadZipFile, OSError, ValueError, EOFError, AttributeError, TypeError, zlib.error) as error:
        text = f"is not a valid .npz file of numbers: {str(error) or type(error).__name__}"
        raise UsageError(
            Problem(str(path), text, "write it with numpy.savez; arrays of objects are not read")
        ) from None
    if missing:
        raise UsageError(Problem(str(path), f"has no {', '.join(missing)}", f"it needs {', '.join(needed)}"))
    wrong = _wrong(columns)
    if wrong:
        raise UsageError(*(Problem(f"{path}: {name}", text, "see `edgekd.data.speech`") for name, text in wrong))
    return columns


def _wrong(columns: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    audio, offset, label, speaker, names = (
        columns[name] for name in ("audio", "offset", "label", "speaker", "speaker_name")
    )
    found = (
        []
        if audio.dtype == np.int16 and audio.ndim == 1
        else [("audio", f"is {audio.dtype} {list(audio.shape)}, not int16 [samples]")]
    )
    if offset.ndim != 1 or offset.dtype.kind not in "iu" or len(offset) < 2:
        return [*found, ("offset", f"is {offset.dtype} {list(offset.shape)}, not integers [N + 1]")]
    edges = offset.astype(np.int64)
    if edges[0] != 0 or edges[-1] != audio.size or (np.diff(edges) < 1).any():
        found.append(("offset", f"does not rise from 0 to {audio.size}, the number of samples"))
    if names.ndim != 1 or names.dtype.kind != "U":
        return [*found, ("speaker_name", f"is {names.dtype} {list(names.shape)}, not names [speakers]")]
    for name, values, limit in (("label", label, 10000), ("speaker", speaker, len(names))):
        if values.shape != (len(offset) - 1,) or values.dtype.kind not in "iu":
            found.append((name, f"is {values.dtype} {list(values.shape)}, not integers [{len(offset) - 1}]"))
        elif values.min() < 0 or values.max() >= limit:
            found.append((name, f"has values outside 0 to {limit - 1}"))
    rate = columns.get("rate")
    if rate is not None and (rate.ndim or rate.dtype.kind not in "iu" or not 1000 <= rate <= 400_000):
        found.append(("rate", f"is {rate.dtype} {list(rate.shape)}, not one whole number of samples a second"))
    return found
