"""What a target's kernels ask of training, as settings of stages. What a recipe says wins, or is refused where the
kernels can't compute it; what it leaves open is the target's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.errors import Problem
from edgekd.records import Int8, Scheme, Target
from edgekd.run.recipe.stages import Line

AGREED = "pairs16"  # one value for all targets of a recipe: a single target can request the full range
# settings that the target gives where the recipe does not
OPEN = ("multiple_of", *(f.name for f in dataclasses.fields(Int8) if f.name != AGREED))


@dataclass(frozen=True)
class TargetSettings:
    """The settings that a target's kernels need. `multiple_of`: the multiple of channels that they run fast at; `int8`:
    all of the target's int8 facts."""

    multiple_of: int
    int8: Int8

    def serves(self, other: TargetSettings) -> bool:
        """Whether a model made with these settings also suits `other`: none of its int8 facts needs more of the
        kernels."""
        mine, theirs = dataclasses.asdict(self.int8), dataclasses.asdict(other.int8)
        narrow = all(mine[name] <= theirs[name] for name in mine if name != AGREED)
        return narrow and self.multiple_of % other.multiple_of == 0

    def into(self, line: Line) -> Any:
        """The stage with these settings, where the recipe leaves them open."""
        facts = {"multiple_of": self.multiple_of, **dataclasses.asdict(self.int8)}
        fields = {f.name for f in dataclasses.fields(line.stage)}
        given = {name: facts[name] for name in OPEN if name in fields and name not in line.said}
        if AGREED in fields:
            given[AGREED] = getattr(line.stage, AGREED) and facts[AGREED]
        return dataclasses.replace(line.stage, **given) if given else line.stage

    def refuses(self, line: Line, names: str) -> list[Problem]:
        """The recipe's settings that the kernels of the targets called `names` can't compute. A file made by them would
        not be computed with its own scales."""
        said, found = {name: getattr(line.stage, name) for name in line.said}, []
        bits = {k: said[k] for k in ("weight_bits",) if k in said}
        bits |= {f"layer_bits.{name}": given for name, given in getattr(line.stage, "layer_bits", {}).items()}
        for place, given in bits.items():
            if given > (most := self.int8.weight_bits):
                hint = f"leave it out, or write {most} or fewer" if place == "weight_bits" else f"write {most} or fewer"
                text = f"is {given}, and the kernels of {names} take weights of {most} bits"
                found.append(Problem(place, text, hint))
        if said.get("per_channel") and not self.int8.per_channel:
            text = f"is true, and the kernels of {names} take one scale for a whole weight"
            found.append(Problem("per_channel", text, "leave it out"))
        return found

    def slower(self, line: Line) -> str:
        """A note on channel counts of the recipe that the kernels run slowly at; "" if there is none."""
        given = line.stage.multiple_of if "multiple_of" in line.said else None
        if given is None or given % self.multiple_of == 0:
            return ""
        return (
            f"{line.name}: widths are multiples of {given}, as the recipe says; its kernels run well at multiples "
            f"of {self.multiple_of}"
        )


def merged(targets: Iterable[Target]) -> Int8:
    """The int8 facts that all targets allow: of each fact the smallest value."""
    facts = [dataclasses.asdict(t.int8) for t in targets]
    return Int8(**{name: min(f[name] for f in facts) for name in facts[0]})


def scheme(targets: Iterable[Target], **given: Any) -> Scheme:
    """The scheme of an int8 file for all targets; `given` replaces their facts."""
    return Scheme(**{**dataclasses.asdict(merged(targets)), **given})


def grouped(targets: Sequence[Target]) -> dict[TargetSettings, tuple[str, ...]]:
    """{settings: names of the targets that need them}: targets with equal facts form one group."""
    groups: dict[TargetSettings, tuple[str, ...]] = {}
    agreed = {AGREED: getattr(merged(targets), AGREED)} if targets else {}
    for target in targets:
        settings = TargetSettings(target.channel_multiple, dataclasses.replace(target.int8, **agreed))
        groups[settings] = (*groups.get(settings, ()), target.name)
    return groups


def label(stage: Any, settings: TargetSettings) -> str:
    """A suffix for a stage's name, where groups of targets need different settings of it."""
    if not hasattr(stage, "weight_bits"):
        return f"-m{settings.multiple_of}"
    return f"-w{stage.weight_bits}{'' if getattr(stage, 'per_channel', True) else '-per_tensor'}"
