"""Metrics of strings: what is decoded from scores per step against the label's string."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from edgekd.metrics.formulas import FORMULAS
from edgekd.metrics.selection import pair
from edgekd.outputs import Output, rows
from edgekd.records import Metric


def character_error_rate(
    of: Output, *, blank: int | None = None, output: str | None = None, name: str = "character_error_rate"
) -> Metric:
    """Insertions, deletions and substitutions that turn decoded strings into the labels', in percent of the labels'
    length, over all samples. A character is a class number, `of` = classes(axis=..., ignore_index=...); labels [n, L]
    are padded with `ignore_index`. `blank`: the class between symbols of an output of CTC (default: that of `of`),
    whose best path is decoded without repeats and blanks (greedy decoding); None: one symbol at every position that
    counts.
    `output`, `name`: as of top1."""
    return _edited(name, of, blank, output, list)


def word_error_rate(
    of: Output, *, space: int, blank: int | None = None, output: str | None = None, name: str = "word_error_rate"
) -> Metric:
    """`character_error_rate` over words, which the class `space` separates."""

    def words(string: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(group) for between, group in groupby(string, lambda c: c == space) if not between]

    return _edited(name, of, blank, output, words)


def decoded(of: Output, values: np.ndarray, labels: np.ndarray, blank: int | None = None) -> list[list[int]]:
    """The string of every sample by the greatest scores [n, ...] of an output of classes; of equal scores the first."""
    best, wanted = rows(of, values).argmax(-1), np.asarray(labels).reshape(len(labels), -1)
    if blank is not None:
        return [[c for c, _ in groupby(path.tolist()) if c != blank] for path in best]
    if best.shape != wanted.shape:
        raise ValueError(f"outputs have {best.shape[1]} positions, labels {wanted.shape[1]}: `blank` for CTC")
    return [path[_told(of, label)].tolist() for path, label in zip(best, wanted, strict=True)]


def edits(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    """The fewest insertions, deletions and substitutions between two sequences (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for i, one_of in enumerate(found, 1):
        before, row = row, [i]
        for j, other in enumerate(wanted, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one_of != other)))
    return row[-1]


def _told(of: Output, label: np.ndarray) -> np.ndarray:
    return np.ones(label.shape, bool) if of.ignore_index is None else label != of.ignore_index


def _edited(name: str, of: Output, blank: int | None, output: str | None, parts: Any) -> Metric:
    blank = of.blank if blank is None else blank
    if of.kind != "classes":
        raise ValueError(f"{name} takes scores of classes, not {of.kind}")

    def records(outputs: Any, labels: Any) -> np.ndarray:
        values, labels = pair(outputs, labels, output)
        labels = labels.reshape(len(labels), -1)
        strings = decoded(of, values, labels, blank)
        wanted = [parts(label[_told(of, label)].tolist()) for label in labels]
        both = zip(strings, wanted, strict=True)
        return np.array([[edits(parts(a), b), len(b)] for a, b in both], np.float64).reshape(-1, 2)

    return Metric(name, "%", "lower", records, FORMULAS["error_rate"], "error_rate")
