"""The verb `try`: single images, sounds, texts or arrays through a float file and its int8 file, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgekd.errors import PASSED, Problem, UsageError, plain
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.run.side_by_side import Answers

EQUAL = 120.0  # dB, the most that is told apart


@click.command()
@click.argument("float_file", metavar="FLOAT", type=click.Path())
@click.argument("int8_file", metavar="INT8", type=click.Path())
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@_options.axes
@_options.preprocess
@click.option("--tokenizer", type=click.Path(), help="A tokenizer.json: INPUT may be a text or a .txt file.")
@click.option("--names", type=click.Path(), help="A text file with the name of a class in each line.")
@_options.json_file("Write the answers to this file.")
@_options.quiet
def command(float_file, int8_file, inputs, **settings):
    """Give each INPUT (an image, a .wav, a text or an .npz) to both files and print what they answer, side by side."""
    return _options.finish(side_by_side(float_file, int8_file, inputs, **settings))


@dataclass(frozen=True)
class Told:
    """Prints as a table."""

    a: str
    b: str
    answers: Answers
    names: tuple[str, ...] = ()
    exit_code: int = PASSED

    def __str__(self) -> str:
        from edgekd.report.tables import aligned

        self, found = plain(self), plain(self.answers.rows)
        rows = [("input", "output", self.a, self.b, "")]
        for i, r in enumerate(found):
            again = i > 0 and found[i - 1].input == r.input
            told = [] if r.same is None else ["same answer" if r.same else "ANOTHER ANSWER"]
            told += [] if r.snr_db is None else ["equal" if r.snr_db >= EQUAL else f"{r.snr_db:.1f} dB"]
            rows.append(
                ("" if again else r.input, r.output, self._shown(r.plain), self._shown(r.int8), ", ".join(told))
            )
        judged = [r.same for r in found if r.same is not None]
        lines = [aligned(rows)]
        if judged:
            lines.append(f"\n{sum(judged)} of {len(judged)} answers are the same")
        if self.answers.left:
            lines.append(f"{self.answers.left} more samples are not shown")
        return "\n".join(lines)

    def _shown(self, values: Sequence[Any]) -> str:
        name = lambda i: self.names[i] if i < len(self.names) else str(i)
        return ", ".join(f"{name(v[0])} {v[1]:.4g}" if isinstance(v, tuple) else f"{v:.4g}" for v in values)


def side_by_side(
    float_file: Path | str,
    int8_file: Path | str,
    inputs: Sequence[Path | str],
    *,
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    tokenizer: Path | str | None = None,
    names: Path | str | None = None,
    json: Path | str | None = None,
    quiet: bool = True,
) -> Told:
    """What two files answer to `inputs`: paths of images, .wav or .npz files, and texts with a `tokenizer` file. `axes`
    and `preprocess` as in `quantize`; `names`: a file with the name of a class in each line. Raises UsageError with
    every problem, RunFailed where a file breaks its runtime."""
    from edgekd.files import reading, write_found
    from edgekd.progress import reporter
    from edgekd.run import side_by_side as run
    from edgekd.samples.source import Source, spared

    others = {"the file of --names": names, "the file of --tokenizer": tokenizer}
    others |= {f"the input {i}": i for i in inputs}
    spared(json, [float_file, int8_file], Source(None, axes, preprocess), others)
    known: tuple[str, ...] = ()
    if names is not None:
        with reading(Path(names)):
            try:
                known = tuple(Path(names).read_text(encoding="utf-8").splitlines())
            except UnicodeDecodeError:
                raise UsageError(Problem(str(names), "is not text in UTF-8", "one name a line")) from None
    files = Path(float_file), Path(int8_file)
    progress = reporter(quiet)
    try:
        source = Source(None, axes, preprocess)
        how = None if tokenizer is None else Path(tokenizer)
        answers = run.asked(files, [str(i) for i in inputs], source, how, progress)
    finally:
        progress.close()
    shown = [f.name for f in files] if files[0].name != files[1].name else [str(f) for f in files]
    told = Told(*shown, answers, known)
    write_found(json, "edgekd.answers/1", told, "exit_code")
    return told
