"""What a person says of samples: where they are, and how they become the inputs of a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from edgekd.errors import Problem, UsageError
from edgekd.files import not_over
from edgekd.onnx_files import external
from edgekd.samples.media import kind_of

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


def overwritten(
    out: Path | str | None,
    models: Sequence[Path | str | None],
    source: Source = Source(),
    others: Mapping[str, Path | str | None] = MappingProxyType({}),
    option: str = "--json",
) -> list[Problem]:
    """Why `out` may not be written: it is one of the `models`, a file that holds their weights, one of the samples of
    `source`, or of `others` {what it is: path}; or it is there and no regular file."""
    if out is None:
        return []
    hint = f"give {option} another name"
    inputs: dict[str, Path | str | None] = {"read by --preprocess": source.preprocess, **others}
    if not source.random:
        inputs["the data"] = None if Path(str(source.data)).is_dir() else source.data
    given = [Path(m) for m in models if m is not None]
    inputs |= {f"the model {path}" if len(given) > 1 else "the model itself": path for path in given}
    if os.path.exists(out):
        for path in given:
            with contextlib.suppress(UsageError):  # told where the model is read
                inputs |= {f"a file with weights of {path}": file for file in external.files(path)}
    problems = not_over(out, inputs, hint)
    if not problems and not source.random and _sample(Path(out), Path(str(source.data))):
        problems = [Problem(str(out), "is one of the samples of --data: it would be lost", hint)]
    return problems


def spared(
    json: Path | str | None,
    models: Sequence[Path | str | None],
    source: Source = Source(),
    others: Mapping[str, Path | str | None] = MappingProxyType({}),
    option: str = "--json",
) -> None:
    """Raises UsageError where `overwritten` has a problem: before anything runs."""
    if problems := overwritten(json, models, source, others, option):
        raise UsageError(*problems)


def _sample(out: Path, folder: Path) -> bool:
    """Whether a file is there that a folder's samples are read from."""
    return kind_of(out) is not None and out.is_file() and folder.is_dir() and folder.resolve() in out.resolve().parents


def refused_random(source: Source, why: str) -> None:
    """Raises UsageError where random samples are given for what needs real ones."""
    if source.data == RANDOM:
        hint = "give real samples: --data FILE.npz or FOLDER; `random` is for profile and compare"
        raise UsageError(Problem("--data random", why, hint))
