"""The one reader of samples: a file or a folder -> samples that fit a model, or every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.samples import archives, axes, generated, images, media, sequences, sounds, values
from edgekd.samples.preprocess import load
from edgekd.samples.rows import Samples
from edgekd.samples.sequences import Sequences
from edgekd.samples.signature import Signature
from edgekd.samples.source import Source

Choose = Callable[[int, int | None], np.ndarray]  # (samples, how many the model takes at once) -> which to read
MOST = 2**16  # samples that a model may take at once, where there are fewer


@dataclass(frozen=True)
class Given:
    """`samples` of those that the data has, `total`; `note`: what is to be known of how they were read."""

    samples: Samples
    total: int
    note: str = ""


def read(source: Source, signature: Signature, choose: Choose | None = None, few: bool = False) -> Given:
    """The samples of a file or a folder; of these that `choose` takes. Random ones where none are given. `few`: there
    may be fewer than the model takes at once. Raises UsageError with every problem, EnvironmentUnfit where a library is
    missing."""
    choose = choose or (lambda total, size: np.arange(total))
    if source.states:
        raise UsageError(Problem("--state", "is for sequences"))
    signature = axes.settled(signature, source.axes, {})
    if source.random:
        if wrong := needless(source):
            raise UsageError(*wrong)
        return Given(found := generated.random(signature, source.axes), len(found))
    problems = axes.unknown(signature, source.axes)
    if problems:
        raise UsageError(*problems)
    path = Path(source.place)
    if path.is_dir():
        return _folder(path, source, signature, choose)
    problems += needless(source)
    arrays, labels = archives.read(path)
    named, wrong = archives.named(arrays, signature, str(path))
    signature = axes.settled(signature, source.axes, named)
    placed, more = axes.placed(signature, named, source.axes, str(path))
    problems += wrong + more
    if labels is not None:
        labels = labels[None] if placed.note and labels.ndim else labels
    counts: dict[str, int | None] = {name: len(a) for name, a in placed.arrays.items()}
    counts |= {} if labels is None else {"labels": len(labels) if labels.ndim else None}
    if placed.arrays and (len(set(counts.values())) > 1 or 0 in counts.values()):
        raise UsageError(*problems, axes.uneven(counts, str(path)))
    size = axes.size(signature, placed.axes)
    rows = _chosen(choose, placed.total, size, str(path)) if placed.total else np.arange(0)
    return _checked(placed, labels, rows, signature, str(path), problems, (), size, few)


def files(paths: Sequence[Path], source: Source, signature: Signature) -> Given:
    """The samples of one .npz, or of images or .wav files of one kind; there may be fewer than the model takes at
    once. Raises as `read`."""
    kind = media.kind_of(paths[0])
    if kind == "archives":
        return read(replace(source, data=paths[0], preprocess=None), signature, few=True)
    if kind is None:
        text = f"is {paths[0].suffix or 'a file'}, and no image, .wav or .npz"
        raise UsageError(Problem(str(paths[0]), text, "a text needs --tokenizer tokenizer.json"))
    found = media.Files(None, kind, tuple(paths), None)
    return _media(found, source, signature, lambda total, size: np.arange(total), few=True)


def readable(source: Source) -> None:
    """Raises UsageError with what is wrong with the data, as far as that can be told without a model."""
    path = Path(source.place)
    if path.is_dir():
        media.listed(path)
    else:
        archives.read(path)


def read_sequences(source: Source, signature: Signature) -> Sequences:
    """The sequences of a file or a folder for a streaming model. Raises UsageError with every problem."""
    if source.random:
        hint = "give sequences: --data FILE.npz with arrays [n, steps, ...], or a folder with one .npz for each"
        raise UsageError(Problem("--state", "needs sequences, and there is no --data", hint))
    problems, path = [*axes.unknown(signature, source.axes), *needless(source)], Path(source.place)
    problems += sequences.misnamed(signature, source.states)
    states = [*source.states, *source.states.values()]  # these too, where they are given the wrong way round
    names, labels = [], None
    if path.is_dir():
        files = media.listed(path)
        if files.kind != "archives":
            raise UsageError(
                Problem(str(path), f"holds {files.kind}, and --state needs sequences", "one .npz for each")
            )
        each, label = archives.read_all(files.paths)
        named = [archives.named(a, signature, str(path), states) for a in each]
        names, problems = files.names(range(len(each))), problems + named[0][1]
        labels = None if label is None else values.ragged(label)
        given = [n for n, _ in named]
    else:
        arrays, one = archives.read(path)
        given, wrong = archives.named(arrays, signature, str(path), states)
        problems += wrong
        labels = None if one is None else values.ragged(list(one)) if one.ndim > 1 else one
    if problems:
        raise UsageError(*problems)
    found, problems = sequences.gathered(signature, given, source.states, source.axes, str(path), names)
    if found is None:
        raise UsageError(*problems)
    if labels is not None:
        problems += _of_steps(found, labels, str(path))
        problems += [] if problems else values.labels(labels, str(path), None)
    if problems:
        raise UsageError(*problems)
    return replace(found, labels=labels)


def needless(source: Source) -> list[Problem]:
    """What is wrong with saying how files become arrays, where none of images or sounds are read."""
    wrong = Problem("--preprocess", "is for a folder of images or .wav files", "leave it out")
    return [] if source.preprocess is None else [wrong]


def _of_steps(found: Sequences, labels: np.ndarray, place: str) -> list[Problem]:
    if len(labels) == len(found) and all(np.shape(a)[:1] == (n,) for a, n in zip(labels, found.lengths, strict=True)):
        return []
    return [Problem(place, "`labels` has not one label for each step of each sequence", "labels [n, steps]")]


def _folder(path: Path, source: Source, signature: Signature, choose: Choose) -> Given:
    files = media.listed(path)
    if files.kind == "archives":
        return _archives(path, files, source, signature, choose)
    return _media(files, source, signature, choose)


def _media(files: media.Files, source: Source, signature: Signature, choose: Choose, few: bool = False) -> Given:
    """Images or sounds."""
    place = files.place
    if len(signature.inputs) != 1:
        text = f"holds {files.kind}, and the model takes {', '.join(signature.inputs)}"
        raise UsageError(Problem(place, text, "a model of several inputs needs .npz files"))
    ((name, tensor),) = signature.inputs.items()
    how = None if source.preprocess is None else load(source.preprocess)
    if files.kind == "sounds" and str(source.preprocess) == "imagenet":
        raise UsageError(Problem("--preprocess", "imagenet is for images, and these are sounds", "unit, or FILE.json"))
    reader = images.reader if files.kind == "images" else sounds.reader
    one: Callable[[Path], np.ndarray] = reader(tensor, how, name, place)
    axis: dict[str, int | None] = {name: source.axes.get(name, 0)}
    size = axes.size(signature, axis)
    rows = _chosen(choose, len(files.paths), size, place)
    read_all = media.collected([files.paths[i] for i in rows], one)
    names = files.names(rows)
    placed, problems = axes.alone(signature, [{name: a} for a in read_all], axis, place, names)
    labels = None if files.labels is None else files.labels[rows]
    if problems:
        raise UsageError(*problems)
    found = _checked(placed, labels, np.arange(len(rows)), signature, place, [], names, size, few)
    return replace(found, total=len(files.paths))


def _archives(path: Path, files: media.Files, source: Source, signature: Signature, choose: Choose) -> Given:
    problems = needless(source)
    size = axes.size(signature, axes.expected(signature, source.axes))
    rows = _chosen(choose, len(files.paths), size, str(path))
    names = files.names(rows)
    given, labels = archives.read_all([files.paths[i] for i in rows])
    named = [archives.named(arrays, signature, str(path)) for arrays in given]
    problems += named[0][1]
    if problems:
        raise UsageError(*problems)
    placed, problems = axes.alone(signature, [n for n, _ in named], source.axes, str(path), names)
    if problems:
        raise UsageError(*problems)
    put = None if labels is None else archives.label_rows(labels)
    found = _checked(placed, put, np.arange(len(rows)), signature, str(path), [], names, size)
    return replace(found, total=len(files.paths))


def _chosen(choose: Choose, total: int, size: int | None, place: str) -> np.ndarray:
    """What is chosen. Raises UsageError where the model takes so many at once that even their numbers are too many."""
    if size is not None and size > max(total, MOST):
        hint = "export the model with an open number of samples"
        raise UsageError(Problem(place, f"has {total} samples, the model takes {size} at once", hint))
    return choose(total, size)


def _checked(
    placed: axes.Placed,
    labels: np.ndarray | None,
    rows: np.ndarray,
    signature: Signature,
    place: str,
    problems: list[Problem],
    names: list[str] | tuple[str, ...],
    size: int | None,
    few: bool = False,
) -> Given:
    """The chosen samples in the types that the model takes. All are checked, chosen or not. `few`: there may be fewer
    than the model takes at once. Raises UsageError with
    every problem, the `problems` that are known already among them."""
    arrays, problems = {}, list(problems)
    everything = len(rows) == placed.total and bool((rows == np.arange(placed.total)).all())
    for name, array in placed.arrays.items():
        dtype, constant = signature.inputs[name].dtype, placed.axes[name] is None
        checked = array[:1] if constant else array
        if not few and size is not None and isinstance(placed.axes[name], int) and placed.total < size:
            problems.append(Problem(place, f"{name} has {placed.total} samples, the model takes {size} at once"))
        wrong = values.wrong(name, checked, dtype, place, names)
        problems += wrong
        if not wrong:
            made = values.taken(checked, np.arange(1) if constant else rows, dtype)
            arrays[name] = np.broadcast_to(made, (len(rows), *made.shape[1:])) if constant else made
    if labels is not None:
        problems += values.labels(labels, place, signature.classes(), names)
    if problems:
        raise UsageError(*problems)
    kept = None if labels is None else labels[rows]
    chosen = [names[i] for i in rows] if len(names) else [f"sample {i}" for i in rows] if not everything else ()
    return Given(Samples(arrays, placed.axes, signature.answer_axes(), size, kept, chosen), placed.total, placed.note)
