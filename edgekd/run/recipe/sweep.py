"""The `[sweep]` of a recipe: each setting's values are tried one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.errors import Problem, closest, meant
from edgekd.run.recipe.stages import Line, made

POINTS = 10_000  # of a sweep at most: more is a mistake


@dataclass(frozen=True)
class Choice:
    """One value of a swept setting: `said` as in the recipe, `value` as in the stage."""

    said: Any
    value: Any

    @property
    def text(self) -> str:
        """Its text in the names of candidates."""
        return "".join(c if c.isalnum() or c in "._" else "-" for c in str(self.said)) or "x"


@dataclass(frozen=True)
class Sweep:
    """`seeds` (only the recipe's own if the sweep has none); `choices` {(stage, setting): its values}; `said`: the
    table as in the recipe."""

    seeds: tuple[int, ...]
    choices: Mapping[tuple[str, str], tuple[Choice, ...]]
    said: Mapping[str, Sequence[Any]]

    def points(self, stages: Collection[str]) -> Iterator[dict[tuple[str, str], Choice]]:
        """Every combination of the settings of these stages; the last setting changes first."""
        own = {key: values for key, values in self.choices.items() if key[0] in stages}
        for choices in itertools.product(*own.values()):
            yield dict(zip(own, choices, strict=True))

    def lines(self, line: Line) -> Iterator[Line]:
        """A stage at every combination of its own settings."""
        own = {key: values for (stage, key), values in self.choices.items() if stage == line.name}
        for choices in itertools.product(*own.values()):
            yield line.at({key: choice.value for key, choice in zip(own, choices, strict=True)})


def read(
    said: Mapping[str, Sequence[Any]], lines: Sequence[Line], told: Sequence[str], seed: int, place: str,
    problems: list[Problem],
) -> Sweep:  # fmt: skip
    """`told`: the names of all stages, also of invalid ones."""
    if (points := math.prod(map(len, said.values()))) > POINTS:
        text = f"comes to {points} combinations, more than {POINTS}"
        problems.append(Problem(f"{place}: sweep", text, "sweep fewer keys at a time"))
        return Sweep((seed,), {}, said)
    by_name, choices = {line.name: line for line in lines}, {}
    for path, values in said.items():
        where = f"{place}: sweep.{path}"
        stage, _, key = path.partition(".")
        texts = [repr(value) for value in values]
        if path == "seed":
            wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int)]
            problems += [Problem(where, f"{v!r} is not an integer") for v in wrong]
        elif stage in by_name and key:
            found = tuple(_choice(by_name[stage], key, value, where, problems) for value in values)
            choices[stage, key] = found
            texts = [repr(choice.said if choice.value is None else choice.value) for choice in found]
        elif stage not in told or stage in by_name:  # else the stage itself is reported
            hint = meant([f"{name}.{key}" for name in closest(stage, by_name)], 'write "STAGE.KEY"')
            problems.append(Problem(where, f"no stage is named `{stage}`", hint))
        problems += _values(texts, where)
    return Sweep(tuple(said.get("seed", (seed,))), choices, said)


def _values(texts: Sequence[str], where: str) -> list[Problem]:
    """`texts`: the values, with all settings of the parts that they name."""
    found = [] if texts else [Problem(where, "is empty", "give the values to try")]
    if len(set(texts)) < len(texts):
        found.append(Problem(where, "names a value twice"))
    return found


def _choice(line: Line, key: str, said: Any, where: str, problems: list[Problem]) -> Choice:
    _, settings = made(line.part, {key: said}, where, problems)
    return Choice(said, settings.get(key))
