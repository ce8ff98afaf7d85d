"""Parameter types and options that several verbs share, and how a result is printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from edgekd.errors import plain

COLOUR = re.compile("(\x1b\\[[0-9;]*m)")
BOARD = "A board at ssh://[user@]host[:port]: it needs sshd, and Python 3.8 with onnxruntime and numpy."


class Where(click.ParamType):
    """`emulator`, or the address of a board, which is checked where it is used."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "emulator" and not value.startswith("ssh://"):
            self.fail(f"{value!r} is neither `emulator` nor ssh://[user@]host[:port]", param, ctx)
        return value


class Board(click.ParamType):
    """`TARGET=ADDRESS`, as a pair."""

    name = "board"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        target, _, address = value.partition("=")
        if not target or not address:
            self.fail(f"{value!r} is not TARGET=ADDRESS, for example raspberry-pi-4=ssh://pi@board", param, ctx)
        return target, address


class Duration(click.ParamType):
    """`90s`, `20m`, `2h` or plain seconds, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        number, unit = (value[:-1], value[-1]) if value[-1:] in "smh" and value else (value, "s")
        try:
            seconds = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is not a valid duration; write 90s, 20m or 2h", param, ctx)
        return seconds


class Pair(click.ParamType):
    """`LEFT=RIGHT`, as a pair."""

    name = "pair"

    def __init__(self, form: str, example: str):
        self.form, self.example = form, example

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        left, _, right = value.rpartition("=")
        if not left or not right:
            self.fail(f"{value!r} is not {self.form}, for example {self.example}", param, ctx)
        return left, right


class Axis(Pair):
    """`NAME=K` or `NAME=none`, as a pair of the name and the axis or None."""

    name = "axis"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        left, right = super().convert(value, param, ctx)
        if right != "none" and not (right.isascii() and right.isdecimal() and len(right) < 10):
            self.fail(f"{value!r}: the axis is a number from 0, or none", param, ctx)
        return left, None if right == "none" else int(right)


class State(Pair):
    """`OUT=IN`, as a pair of the input and the output."""

    name = "state"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        output, taken = super().convert(value, param, ctx)
        return taken, output


def _named(ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """{input: what is said of it}. Raises BadParameter where two say something of one."""
    found: dict[str, Any] = {}
    for name, said in pairs:
        if name in found:
            raise click.BadParameter(f"{name} is given twice", ctx, param)
        found[name] = said
    return found


axes = click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=K|none",
    type=Axis("NAME=K or NAME=none", "h0=1"),
    callback=_named,
    help="The axis of an input's samples; none: the same array for all. Repeat for several.",
)
preprocess = click.option(
    "--preprocess",
    metavar="P",
    help="How images or .wav files are read: imagenet, unit (0 to 1) or FILE.json.",
)
states = click.option(
    "--state",
    "states",
    multiple=True,
    metavar="OUT=IN",
    type=State("OUT=IN", "hn=h0"),
    callback=_named,
    help="The data are sequences: input IN takes what output OUT was a step before. Repeat for several.",
)


def samples(text: str, required: bool = False) -> Callable[[Any], Any]:
    """`--data` with this help, and what says how it is read: `axes`, `preprocess`, `states`."""
    options = (click.option("--data", required=required, type=click.Path(), help=text), axes, preprocess, states)

    def added(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return added


def of_model(required: bool = False) -> Callable[[Any], Any]:
    """`--data` of a model, and what is asked of its students."""
    options = (
        click.option(
            "--data",
            required=required,
            metavar="DATA",
            help="With MODEL: an .npz with x_train, y_train, x_test, y_test, a folder of images by class, or "
            "package.module:name of such arrays or of a task.",
        ),
        preprocess,
        click.option(
            "--max-drop",
            metavar="D",
            help="With MODEL: what the first metric may lose: '1 pt', '3 %', or '0.2' in its own unit [default: 1 pt].",
        ),
        click.option(
            "--max",
            "limits",
            multiple=True,
            type=Pair("NAME=LIMIT", 'latency_p50_ms="5 ms"'),
            metavar="NAME=LIMIT",
            help="With MODEL: the greatest value of a measurement, such as latency_p50_ms='5 ms'. Repeat for several.",
        ),
    )

    def added(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return added


quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")
preset = click.option(
    "--preset", type=click.Choice(["quick", "standard", "certify"]), default="standard", show_default=True
)


def json_file(text: str) -> Any:
    """`--json FILE`, as the argument `json`."""
    return click.option("--json", "json", type=click.Path(), help=text)


def show(text: str) -> None:
    """A result on stdout: lines, and the colours of a table on a terminal; nothing else that a terminal would obey."""
    click.echo(
        "\n".join(
            "".join(p if COLOUR.fullmatch(p) else plain(p) for p in COLOUR.split(line)) for line in text.split("\n")
        )
    )


def finish(outcome: Any) -> int:
    """Prints what a verb found; returns its exit code."""
    show(str(outcome))
    return outcome.exit_code
