"""Single inputs through two files: what each answers."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.errors import Problem, UsageError, gathered
from edgekd.measure import jobs
from edgekd.measure.machine import user_error
from edgekd.probes import static
from edgekd.progress import Silent
from edgekd.quantization.diagnosis.signal_to_noise import decibel, noise
from edgekd.samples import axes, media, read, texts
from edgekd.samples.rows import Samples
from edgekd.samples.signature import Signature, of_model
from edgekd.samples.source import Source

MOST = 16  # samples of one file that are shown
TOP = 3  # classes that are shown
FEW = 4  # values that are shown of an output that is no scores


@dataclass(frozen=True)
class Answer:
    """What both files say to one input. `plain`, `int8`: the greatest scores as (class, score), or the first values of
    an output that is no scores; `same`: whether the greatest is of one class, None where it is no scores; `snr_db`:
    signal to noise, None where one is a class number, empty or not finite."""

    input: str
    output: str
    plain: tuple[tuple[int, float], ...] | tuple[float, ...]
    int8: tuple[tuple[int, float], ...] | tuple[float, ...]
    same: bool | None
    snr_db: float | None


@dataclass(frozen=True)
class Answers:
    """`rows` of all inputs; `left`: samples that are not shown."""

    rows: tuple[Answer, ...]
    left: int = 0


def asked(
    files: tuple[Path, Path], inputs: Sequence[str], source: Source, tokenizer: Path | None, progress: Silent
) -> Answers:
    """Runs both files on every input, each in the form that it takes. Raises UsageError with every problem."""
    problems: list[Problem] = []
    models = [gathered(lambda path=path: of_model(static.read(path)), problems) for path in files]
    how = gathered(lambda: texts.tokenizer(tokenizer), problems) if tokenizer is not None else None
    given = [
        (names, [gathered(lambda i=names, m=m: _read(i, source, how, m), problems) for m in models if m is not None])
        for names in _groups(inputs)
    ]
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    rows: list[Answer] = []
    left = 0
    with progress.task("run both files") as advance:
        for number, (names, pair) in enumerate(given, 1):
            most = max(MOST, len(names))
            left += max(0, len(pair[0]) - most)
            rows += _answers(names, files, [s.take(slice(most)) for s in pair])
            advance(number, len(given), names[0])
    return Answers(tuple(rows), left)


def _groups(inputs: Sequence[str]) -> list[list[str]]:
    """Images that follow each other together, sounds too: a file is opened once for all of them."""
    kinds = [media.kind_of(Path(name)) for name in inputs]
    key = lambda i: kinds[i] if kinds[i] in ("images", "sounds") else i
    return [[inputs[i] for i in group] for _, group in itertools.groupby(range(len(inputs)), key)]


def _read(names: Sequence[str], source: Source, how: object | None, signature: Signature) -> Samples:
    given, path = names[0], Path(names[0])
    if how is not None and (not path.exists() or path.suffix == ".txt"):
        text = path.read_text(encoding="utf-8") if path.exists() else given
        one = texts.arrays(text, how, signature, given)
        placed, problems = axes.alone(signature, [one], source.axes, given, [given])
        if problems:
            raise UsageError(*problems)
        return Samples(placed.arrays, placed.axes, signature.answer_axes(), axes.size(signature, placed.axes))
    hint = "an image, a .wav or an .npz; a text needs --tokenizer"
    missing = [Problem(name, "there is no such file", hint) for name in names if not Path(name).is_file()]
    if missing:
        raise UsageError(*missing)
    return read.files([Path(name) for name in names], source, signature).samples


def _answers(names: Sequence[str], files: tuple[Path, Path], pair: Sequence[Samples]) -> Iterator[Answer]:
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, user_error():
        found = [
            jobs.score(f, s, folder=Path(folder) / str(i)) for i, (f, s) in enumerate(zip(files, pair, strict=True))
        ]
    plain, int8 = found
    if len(plain) != len(int8):
        raise UsageError(Problem(str(files[1]), f"has {len(int8)} outputs, and {files[0].name} has {len(plain)}"))
    pairs = {o: (plain[o], int8[o]) for o in plain} if set(plain) == set(int8) else None
    pairs = pairs or dict(zip(plain, zip(plain.values(), int8.values(), strict=True), strict=True))
    for row in range(len(pair[0])):
        one = names[row] if len(names) == len(pair[0]) else f"{names[0]} [{row}]"
        for output, (a, b) in pairs.items():
            yield _answer(one, output, a[row], b[row])


def _answer(name: str, output: str, plain: np.ndarray, int8: np.ndarray) -> Answer:
    scores = [v.ndim == 1 and v.size > 1 and v.dtype.kind == "f" for v in (plain, int8)]
    snr = None
    if plain.shape == int8.shape and plain.dtype.kind == int8.dtype.kind == "f" and np.isfinite(plain).any():
        with np.errstate(all="ignore"):
            found = -decibel(noise(plain[None], int8[None]))
        snr = found if np.isfinite(found) else None
    shown = [_top(v) if s else tuple(v.ravel()[:FEW].tolist()) for v, s in zip((plain, int8), scores, strict=True)]
    if not any(scores):
        return Answer(name, output, *shown, None, snr)
    first = [int(v.argmax()) if s else int(v.ravel()[0]) for v, s in zip((plain, int8), scores, strict=True)]
    broken = any(np.isnan(v).any() for v, s in zip((plain, int8), scores, strict=True) if s)
    return Answer(name, output, *shown, first[0] == first[1] and not broken, snr)


def _top(scores: np.ndarray) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-scores, kind="stable")[:TOP]
    return tuple((int(i), float(scores[i])) for i in order)
