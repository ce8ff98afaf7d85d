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
    from edgekd.run.side_by_side import Answer, Answers

WIDTH = 140  # columns, where there is no terminal


@click.command()
@click.argument("float_file", metavar="FLOAT", type=click.Path())
@click.argument("int8_file", metavar="INT8", type=click.Path())
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@_options.axes
@_options.preprocess
@_options.states
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
        from edgekd.report import tables

        self = plain(self)
        found = self.answers.rows
        heads = ("input", "output", self.a, self.b, "")
        rows = []
        for i, r in enumerate(found):
            again = i > 0 and found[i - 1].input == r.input
            cells = self._shown(r.plain), self._shown(r.int8), self._told(r)
            rows.append(("" if again else r.input, r.output, *cells))
        table = tables.aligned([heads, *rows])
        if max(map(len, table.splitlines())) > tables.columns(WIDTH):
            table = tables.folded("", heads, rows, WIDTH).strip("\n")
        shape = lambda o: f" [{', '.join(map(str, o.shape))}]" if o.shape else ""
        lines = [table, "", *(f"output {o.name}{shape(o)}: {o.seems}" for o in self.answers.outputs)]
        lines += self.answers.notes
        judged = [r.same for r in found if r.same is not None]
        if judged:
            lines.append(f"{sum(judged)} of {len(judged)} answers are the same")
        if self.answers.left:
            lines.append(f"{self.answers.left} more samples are not shown")
        return "\n".join(lines)

    def _told(self, row: Answer) -> str:
        from edgekd.run.side_by_side import EQUAL

        broken = [name for name, nan in zip((self.a, self.b), row.nan, strict=True) if nan]
        told = [f"NaN in {' and '.join(broken)}"] if broken else []
        told += [] if row.same is None else ["same answer" if row.same else "ANOTHER ANSWER"]
        told += [] if row.equal is None or row.same else [f"{100 * row.equal:.1f} % equal values"]
        told += [] if row.snr_db is None else ["equal" if row.snr_db >= EQUAL else f"{row.snr_db:.1f} dB"]
        return ", ".join(told)

    def _shown(self, values: Sequence[Any]) -> str:
        """Scores with the names of their classes, and so one integer alone; other values as they are."""
        name = lambda i: self.names[i] if 0 <= i < len(self.names) else str(i)
        if len(values) == 1 and type(values[0]) is int:
            return name(values[0])
        one = lambda v: (
            f"{name(v[0])} {v[1]:.4g}" if isinstance(v, tuple) else f"{v:.4g}" if type(v) is float else str(v)
        )
        return ", ".join(map(one, values))


def side_by_side(
    float_file: Path | str,
    int8_file: Path | str,
    inputs: Sequence[Path | str],
    *,
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    states: Mapping[str, str] = MappingProxyType({}),
    tokenizer: Path | str | None = None,
    names: Path | str | None = None,
    json: Path | str | None = None,
    quiet: bool = True,
) -> Told:
    """What two files answer to `inputs`: paths of images, .wav or .npz files, and texts with a `tokenizer` file.
    `axes`, `preprocess` and `states` as in `quantize`; `names`: a file with the name of a class in each line. Raises
    UsageError with every problem, RunFailed where a file breaks its runtime."""
    from edgekd.files import content, reading, write_found
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
                known = tuple(content(names).decode().splitlines())
            except UnicodeDecodeError:
                raise UsageError(Problem(str(names), "is not text in UTF-8", "one name a line")) from None
    files = Path(float_file), Path(int8_file)
    progress = reporter(quiet)
    try:
        source = Source(None, axes, preprocess, states)
        how = None if tokenizer is None else Path(tokenizer)
        answers = run.asked(files, [str(i) for i in inputs], source, how, progress)
    finally:
        progress.close()
    shown = [f.name for f in files] if files[0].name != files[1].name else [str(f) for f in files]
    told = Told(*shown, answers, known)
    write_found(json, "edgekd.answers/1", told, "exit_code")
    return told
