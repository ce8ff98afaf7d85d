"""What a person says of samples: where they are, and how they become the inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekd.errors import Problem, UsageError

RANDOM = "random"


@dataclass(frozen=True)
class Source:
    """`data`: an .npz, a folder of .npz, images or .wav files, or "random"; None: nothing was given. `axes` {input: the
    axis of its samples, None: the same array for every sample}; `preprocess` a name or a JSON file; `states` {input:
    the output that it takes the value of at the next step}."""

    data: Path | str | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    preprocess: Path | str | None = None
    states: Mapping[str, str] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        return self.data is None or self.data == RANDOM

    @property
    def place(self) -> str:
        return str(self.data)

    def words(self) -> list[str]:
        """The options of a command that say the same."""
        found = [] if self.data is None else ["--data", str(self.data)]
        found += [w for n, k in self.axes.items() for w in ("--axis", f"{n}={'none' if k is None else k}")]
        found += [] if self.preprocess is None else ["--preprocess", str(self.preprocess)]
        return found + [w for name, output in self.states.items() for w in ("--state", f"{output}={name}")]


def refused_random(source: Source, why: str) -> None:
    """Raises UsageError where random samples are given for what needs real ones."""
    if source.data == RANDOM:
        hint = "give real samples: --data FILE.npz or FOLDER; `random` is for profile and compare"
        raise UsageError(Problem("--data random", why, hint))
