"""What a target's int8 kernels ask of training, as settings of stages. What a recipe says wins, or is refused where the
kernels can't compute it; what it leaves open is the target's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.errors import Problem
from edgekd.records import Target
from edgekd.run.recipe import StageLine

OPEN = ("multiple_of", "weight_bits", "per_channel")  # settings that are a target's where a recipe doesn't say them


@dataclass(frozen=True)
class Wants:
    """`multiple_of`: widths that kernels run well at; `weight_bits`, `per_channel`: what they compute; `pairs16`: what
    all targets agree on."""

    multiple_of: int
    weight_bits: int
    pairs16: bool = True
    per_channel: bool = True

    def serves(self, other: Wants) -> bool:
        """Whether what is made for this want is right for `other` too."""
        narrow = self.weight_bits <= other.weight_bits and self.per_channel <= other.per_channel
        return narrow and self.multiple_of % other.multiple_of == 0

    def into(self, line: StageLine) -> dict[str, Any]:
        """The stage's settings for such a target."""
        settings = dict(line.settings)
        settings |= {name: getattr(self, name) for name in OPEN if name in settings and name not in line.table}
        if "pairs16" in settings:
            settings["pairs16"] = settings["pairs16"] and self.pairs16
        return settings

    def refuses(self, line: StageLine, names: str) -> list[Problem]:
        """What a recipe says that kernels of the targets with these `names` don't compute: a file of another lattice
        would be made than is told."""
        said, most, found = line.table, self.weight_bits, []
        bits = {"weight_bits": said["weight_bits"]} if "weight_bits" in said and "weight_bits" in line.settings else {}
        bits |= {f"layer_bits.{name}": given for name, given in line.settings.get("layer_bits", {}).items()}
        for place, given in bits.items():
            if given > most:
                hint = f"leave it out, or write {most} or fewer" if place == "weight_bits" else f"write {most} or fewer"
                found.append(
                    Problem(place, f"is {given}, and the kernels of {names} take weights of {most} bits", hint)
                )
        if said.get("per_channel") and "per_channel" in line.settings and not self.per_channel:
            found.append(
                Problem(
                    "per_channel",
                    f"is true, and the kernels of {names} take one scale for a whole weight",
                    "leave it out",
                )
            )
        return found

    def slower(self, line: StageLine) -> str:
        """What is to be said of widths that a recipe asks for and kernels don't run well at; "" where there is
        nothing."""
        given = line.table.get("multiple_of") if "multiple_of" in line.settings else None
        if given is None or given % self.multiple_of == 0:
            return ""
        return (
            f"{line.name}: widths are multiples of {given}, as the recipe says; its kernels run well at multiples "
            f"of {self.multiple_of}"
        )


def of(target: Target, pairs16: bool) -> Wants:
    """What one target asks for."""
    return Wants(target.channel_multiple, target.int8.weight_bits, pairs16, target.int8.per_channel)


def label(settings: Mapping[str, Any], want: Wants) -> str:
    """What tells the stages of one name apart that targets want different settings of."""
    if "weight_bits" not in settings:
        return f"-m{want.multiple_of}"
    return f"-w{settings['weight_bits']}{'' if settings.get('per_channel', True) else '-per_tensor'}"
