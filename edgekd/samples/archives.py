"""Samples in .npz files: one file with all of them, or a folder with one file per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekd import inputs
from edgekd.errors import Problem, UsageError
from edgekd.results import load_arrays
from edgekd.samples import values
from edgekd.samples.signature import Signature

LIMIT = 2**34  # bytes of data, unpacked: a small archive may claim more than the memory there is
HINT = "write it with np.savez(path, inputs=..., labels=...)"
SHOWN = 10  # wrong files that are told one by one


def read(path: Path, mapped: float = inputs.MAPPED) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(arrays by name, labels) of an .npz; the name "" stands for a file's only input. Arrays of `mapped` bytes or
    more stay in the file. Raises UsageError with every problem."""
    arrays = load_arrays(path, LIMIT, HINT, mapped)
    labels = arrays.pop("labels", None)
    found = {"" if name == "inputs" else name: array for name, array in arrays.items()}
    problems = []
    if not found:
        problems.append(Problem(str(path), "has no `inputs`", HINT))
    elif "" in found and len(found) > 1:
        others = ", ".join(name for name in found if name)
        hint = "either `inputs`, or one array per input name"
        problems.append(Problem(str(path), f"has `inputs` and also {others}", hint))
    if problems:
        raise UsageError(*problems)
    return found, labels


def read_all(files: Sequence[Path]) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray] | None]:
    """(arrays of every file, labels of every file if they have some). Raises UsageError with what is wrong."""
    found, labels, problems, held = [], [], [], 0
    blocks: dict[str, inputs.Block] = {}
    for file in files:
        try:
            arrays, label = read(file, math.inf)  # a mapped file is an open one
        except UsageError as error:
            problems += error.problems
            continue
        if found and set(arrays) != set(found[0]):
            problems.append(Problem(str(file), f"has {_names(arrays)}, and {files[0].name} has {_names(found[0])}"))
        held += sum(a.nbytes for a in arrays.values())
        if held > LIMIT:
            raise UsageError(Problem(str(file.parent), f"holds more than {LIMIT} bytes", "give fewer files"))
        kept = {name: blocks.setdefault(name, inputs.Block(len(files))).keep(a) for name, a in arrays.items()}
        found.append(kept)
        labels.append(label)
    some = [label for label in labels if label is not None]
    if some and len(some) < len(labels):
        which = files[next(i for i, label in enumerate(labels) if label is None)]
        problems.append(Problem(str(which), "has no `labels`, and other files have some"))
    if problems:
        more = len(problems) - SHOWN
        raise UsageError(*problems[:SHOWN], *([f"and {more} more wrong files"] if more > 0 else []))
    return found, some or None


def named(
    arrays: Mapping[str, np.ndarray], signature: Signature, place: str, given: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """(arrays by the names of the model's inputs, problems). `given`: inputs that need none."""
    wanted = [name for name in signature.inputs if name not in given]
    if not signature.inputs:
        hint = "a file that computes the same every time has no ranges"
        return {}, [Problem(place, "is for a model that takes no input", hint)]
    if "" in arrays:
        if len(wanted) != 1:
            what = f"has one array `inputs`, and the model takes {', '.join(wanted)}"
            return {}, [Problem(place, what, "give one array per input name")]
        arrays = {wanted[0]: arrays[""]}
    problems = [
        Problem(place, f"has no array for the input {name}", f"it has {', '.join(arrays)}")
        for name in wanted
        if name not in arrays
    ]
    problems += [
        Problem(place, f"{name} is not an input of the model", f"its inputs: {', '.join(wanted)}")
        for name in arrays
        if name not in wanted
    ]
    return {name: arrays[name] for name in wanted if name in arrays}, problems


def label_rows(labels: Sequence[np.ndarray]) -> np.ndarray:
    """[n] labels of files: numbers where each has one, else an array of arrays."""
    if all(a.size == 1 for a in labels):
        return np.concatenate([a.reshape(1) for a in labels])
    return np.stack(labels) if len({a.shape for a in labels}) == 1 else values.ragged(labels)


def _names(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(name or "inputs" for name in arrays)
