"""What outputs seem to be, and answers that tell nothing: those of a file that answers alike to everything, or agrees
with another by chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekd.run.side_by_side import Answer

ENOUGH = 4  # answers that are looked at together
SOUND = 0.9  # share of equal answers that a file in use has at least
CHANCE = 0.05  # what is less probable is no chance


@dataclass(frozen=True)
class Output:
    """An output, with the `shape` that the float file gives it for one sample; `seems`: what it seems to be, by its
    type, shape and values; `classes`: number of classes, if it is one of scores."""

    name: str
    shape: tuple[int, ...]
    seems: str
    classes: int | None = None


def known(name: str, plain: np.ndarray, int8: np.ndarray) -> Output:
    """What an output of samples [n, ...] seems to be."""
    shape = np.shape(plain[0]) if len(plain) else ()
    first = np.asarray(plain[0]) if len(plain) else np.zeros(0)
    if first.dtype.kind != "f" and first.size == 1:
        return Output(name, shape, "an integer, such as a class index")
    if first.dtype.kind != "f" or len(shape) != 1 or first.size < 2:
        return Output(name, shape, "one value" if first.size == 1 else "values, of which the first are shown")
    what = "probabilities" if (first >= 0).all() and abs(float(first.sum()) - 1) < 1e-3 else "scores"
    other = "; the other file answers with the class index" if np.asarray(int8).dtype.kind in "iu" else ""
    seems = f"{what} of {first.size} classes, of which the greatest are shown as class and score{other}"
    return Output(name, shape, seems, first.size)


def told(rows: Sequence[Answer], outputs: Sequence[Output], files: tuple[Path, Path]) -> Iterator[str]:
    for output in outputs:
        mine = [r for r in rows if r.output == output.name and r.same is not None and output.classes]
        if output.classes is None or len(mine) < ENOUGH:
            continue
        answers = {_first(r.plain) for r in mine}, {_first(r.int8) for r in mine}
        alike = [file.name for file, found in zip(files, answers, strict=True) if len(found) == 1]
        if alike:
            who = "both files give" if len(alike) == 2 else f"{alike[0]} gives"
            text = f"{who} one class of {output.name} to all {len(mine)} inputs"
            yield f"{text}: are they what it was trained for, and read as in training?"
        agreed = sum(r.same is True for r in mine)
        as_chance = _tail(agreed, len(mine), 1 / output.classes) > CHANCE
        if as_chance and _tail(len(mine) - agreed, len(mine), 1 - SOUND) < CHANCE:
            text = f"{agreed} of {len(mine)} equal answers of {output.classes} classes is no more than by chance"
            yield f"{output.name}: {text}: is one file made of the other, and do both take the same inputs?"


def _first(answer: Sequence[object]) -> object:
    """The class that is answered."""
    one = answer[0]
    return one[0] if isinstance(one, tuple) else one


def _tail(least: int, of: int, share: float) -> float:
    """How probable so many or more of `of` are, each with this probability."""
    ways = lambda k: math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
    each = (ways(k) + k * math.log(share) + (of - k) * math.log1p(-share) for k in range(least, of + 1))
    return sum(map(math.exp, each))
