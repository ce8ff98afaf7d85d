"""Single inputs through two files: what each answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekd.errors import Problem, UsageError, gathered
from edgekd.files import content, reading
from edgekd.measure import rolled
from edgekd.measure.machine import user_error
from edgekd.probes import static
from edgekd.progress import Silent
from edgekd.quantization.diagnosis.signal_to_noise import EQUAL, decibel, noise
from edgekd.run.answer_notes import Output, known, told
from edgekd.samples import axes, media, read, texts, values
from edgekd.samples.rows import Samples
from edgekd.samples.signature import Signature, of_model
from edgekd.samples.source import Source
from edgekd.store.scratch import scratch

__all__ = ["EQUAL", "Answer", "Answers", "asked"]

MOST = 16  # samples of one file that are shown
TOP = 3  # classes that are shown
FEW = 4  # values that are shown of an output that is no scores


@dataclass(frozen=True)
class Answer:
    """What both files say to one input. `plain`, `int8`: the greatest scores as (class, score), or the first values of
    an output that is no scores; `same`: whether the greatest is of one class, or integers are equal, None of other
    values; `snr_db`: signal to noise, None where one is an integer, empty or not finite; `equal`: share of equal
    integers, of several; `nan`: whether (float, int8) has a NaN."""

    input: str
    output: str
    plain: tuple[tuple[int, float], ...] | tuple[float, ...]
    int8: tuple[tuple[int, float], ...] | tuple[float, ...]
    same: bool | None
    snr_db: float | None
    equal: float | None = None
    nan: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Answers:
    """`rows` of all inputs; `left`: samples that are not shown; `outputs`: what they seem to be; `notes` on how the
    inputs were read, and on answers that tell nothing."""

    rows: tuple[Answer, ...]
    left: int = 0
    outputs: tuple[Output, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Given:
    """The first `samples` of an input, of `total`; `notes`: how they were read."""

    samples: Samples
    total: int
    notes: tuple[str, ...] = ()


def asked(
    files: tuple[Path, Path], inputs: Sequence[str], source: Source, tokenizer: Path | None, progress: Silent
) -> Answers:
    """Runs both files on every input, each in the form that it takes; of a streaming model the steps of sequences, with
    the states that each file makes. Raises UsageError with every problem."""
    problems: list[Problem] = []
    models = [gathered(lambda path=path: of_model(static.read(path)), problems) for path in files]
    how = gathered(lambda: texts.tokenizer(tokenizer), problems) if tokenizer is not None else None
    given = [
        (names, [gathered(lambda i=names, m=m: _read(i, source, how, m), problems) for m in models if m is not None])
        for names in _groups(inputs if tokenizer is None or how is not None else ())  # else it can't be told what is
    ]
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    rows: list[Answer] = []
    seen: dict[str, Output] = {}
    with progress.task("run both files") as advance:
        for number, (names, pair) in enumerate(given, 1):
            rows += _answers(names, files, [g.samples for g in pair], source.states, seen)
            advance(number, len(given), names[0])
    left = sum(pair[0].total - len(pair[0].samples) for _, pair in given)
    notes = [note for _, pair in given for note in pair[0].notes]
    outputs = tuple(seen.values())
    return Answers(tuple(rows), left, outputs, (*dict.fromkeys(notes), *told(rows, outputs, files)))


def _groups(inputs: Sequence[str]) -> list[list[str]]:
    """Images that follow each other together, sounds too: a file is opened once for all of them."""
    kinds = [media.kind_of(Path(name)) for name in inputs]
    key = lambda i: kinds[i] if kinds[i] in ("images", "sounds") else i
    return [[inputs[i] for i in group] for _, group in itertools.groupby(range(len(inputs)), key)]


def _read(names: Sequence[str], source: Source, how: object | None, signature: Signature) -> _Given:
    given, path = names[0], Path(names[0])
    there = _there(path)
    if how is not None and (not there or path.suffix == ".txt"):
        text = _text(path) if there else given
        one = texts.arrays(text, how, signature, given)
        placed, problems = axes.alone(signature, [one], source.axes, given, [given])
        if problems:
            raise UsageError(*problems)
        found = Samples(placed.arrays, placed.axes, signature.answer_axes(), axes.size(signature, placed.axes))
        return _Given(found, len(found))
    hint = "an image, a .wav or an .npz; a text needs --tokenizer"
    missing = [Problem(name[:200], "there is no such file", hint) for name in names if not _there(Path(name), True)]
    if missing:
        raise UsageError(*missing)
    if source.states:
        return _steps(names, source, signature)
    read_ = read.files([Path(name) for name in names], source, signature)
    every, most = read_.samples, max(MOST, len(names))
    notes = [read_.note] if read_.note else []
    if media.kind_of(path) == "archives":
        notes += axes.shown(every.axes, source.axes)
    return _Given(every.take(slice(most)), len(every), tuple(notes))


def _text(path: Path) -> str:
    with reading(path):
        data = content(path)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(Problem(str(path), "is not text in UTF-8")) from None


def _there(path: Path, file: bool = False) -> bool:
    try:
        return path.is_file() if file else path.exists()
    except OSError:  # a text that is too long for a name
        return False


def _steps(names: Sequence[str], source: Source, signature: Signature) -> _Given:
    """The first steps of sequences; states are 0 in all of them, as each file makes its own behind the first."""
    if media.kind_of(Path(names[0])) != "archives":
        hint = "an .npz with arrays [n, steps, ...]"
        raise UsageError(*(Problem(name, "is no .npz, and --state needs sequences", hint) for name in names))
    every = read.read_sequences(replace(source, data=names[0], preprocess=None), signature)
    cut = replace(every, arrays={n: values.ragged([a[:MOST] for a in parts]) for n, parts in every.arrays.items()})
    made = {output: every.start[name] for name, output in every.states.items()}
    few = cut.steps(lambda feed: made, range(min(len(cut), MOST)))
    return _Given(few.take(slice(MOST)), sum(every.lengths))


def _answers(
    names: Sequence[str],
    files: tuple[Path, Path],
    pair: Sequence[Samples],
    states: Mapping[str, str],
    seen: dict[str, Output],
) -> Iterator[Answer]:
    with scratch() as folder, user_error():
        plain, int8 = (
            {o: a for o, a in rolled.score(f, s, Path(folder) / str(i)).items() if o not in states.values()}
            for i, (f, s) in enumerate(zip(files, pair, strict=True))
        )
    if len(plain) != len(int8):
        raise UsageError(Problem(str(files[1]), f"has {len(int8)} outputs, and {files[0].name} has {len(plain)}"))
    pairs = {o: (plain[o], int8[o]) for o in plain} if set(plain) == set(int8) else None
    pairs = pairs or dict(zip(plain, zip(plain.values(), int8.values(), strict=True), strict=True))
    for output, (a, b) in pairs.items():
        seen.setdefault(output, known(output, a, b))
    for row in range(len(pair[0])):
        one = names[row] if len(names) == len(pair[0]) else f"{names[0]} [{row}]"
        one = f"{names[0]}, {pair[0].names[row]}" if states else one
        for output, (a, b) in pairs.items():
            yield _answer(one, output, np.asarray(a[row]), np.asarray(b[row]))


def _answer(name: str, output: str, plain: np.ndarray, int8: np.ndarray) -> Answer:
    both = (plain, int8)
    nan = [bool(v.dtype.kind == "f" and np.isnan(v).any()) for v in both]
    snr = None
    if plain.shape == int8.shape and plain.dtype.kind == int8.dtype.kind == "f" and not any(nan):
        with np.errstate(all="ignore"):
            found = -decibel(noise(plain[None], int8[None])) if np.isfinite(plain).any() else np.nan
        snr = found if np.isfinite(found) else None
    shown = [_top(v) if _scores(v) else tuple(v.ravel()[:FEW].tolist()) for v in both]
    classes = _classes(plain, int8)
    equal = None
    if classes is None:
        return Answer(name, output, *shown, None, snr, None, (nan[0], nan[1]))
    same = classes[0].shape == classes[1].shape and bool((classes[0] == classes[1]).all()) and not any(nan)
    if classes[0].size > 1 and classes[0].shape == classes[1].shape:
        equal = float((classes[0] == classes[1]).mean())
    return Answer(name, output, *shown, same, snr, equal, (nan[0], nan[1]))


def _scores(values: np.ndarray) -> bool:
    return values.ndim == 1 and values.size > 1 and values.dtype.kind == "f"


def _classes(plain: np.ndarray, int8: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The integers that both answer: their own, or the classes of the greatest scores [classes, ...]; None where it is
    neither."""
    whole = [v.dtype.kind in "iub" for v in (plain, int8)]
    if all(whole):
        return (plain, int8) if plain.size or int8.size else None
    if not any(whole):
        return (plain.argmax(0), int8.argmax(0)) if _scores(plain) and _scores(int8) else None
    integers, floats = (plain, int8) if whole[0] else (int8, plain)
    if floats.ndim == 0 or floats.shape[0] < 2 or floats[0].size != integers.size:
        return None
    greatest, integers = floats.argmax(0).ravel(), integers.ravel()
    return (integers, greatest) if whole[0] else (greatest, integers)


def _top(scores: np.ndarray) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-scores, kind="stable")[:TOP]
    return tuple((int(i), float(scores[i])) for i in order)
