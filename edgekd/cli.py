"""The command line: verbs without logic. Results go to stdout, progress and logs to stderr; nothing heavy is imported
before a verb runs."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import traceback

import click

from edgekd import __version__
from edgekd.errors import BROKEN, INTERRUPTED, EdgekdError, plain

LISTED = ("targets", "tasks", "stages", "losses", "ensembles", "criteria", "ranges", "formats", "runtimes", "metrics")
SCHEMAS = ("result", "manifest", "budget", "target", "recipe")


COLOUR = re.compile("(\x1b\\[[0-9;]*m)")
ON = "A board at ssh://[user@]host[:port]: it needs sshd, and Python 3.8 with onnxruntime and numpy."


class Where(click.ParamType):
    """`emulator`, or the address of a board, which is checked where it is used."""

    name = "address"

    def convert(self, value, param, ctx):
        if value != "emulator" and not value.startswith("ssh://"):
            self.fail(f"{value!r} is neither `emulator` nor ssh://[user@]host[:port]", param, ctx)
        return value


class Board(click.ParamType):
    """`TARGET=ADDRESS`, as a pair."""

    name = "board"

    def convert(self, value, param, ctx):
        target, _, address = value.partition("=")
        if not target or not address:
            self.fail(f"{value!r} is not TARGET=ADDRESS, for example raspberry-pi-4=ssh://pi@board", param, ctx)
        return target, address


class Duration(click.ParamType):
    """`90s`, `20m`, `2h` or plain seconds, as seconds."""

    name = "duration"

    def convert(self, value, param, ctx):
        if isinstance(value, (int, float)):
            return float(value)
        number, unit = (value[:-1], value[-1]) if value[-1:] in "smh" and value else (value, "s")
        try:
            seconds = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is no duration; write 90s, 20m or 2h", param, ctx)
        return seconds


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgekd")
def cli():
    """Distil, prune and quantize a teacher for the edge; profile, choose and gate the exported file.

    \b
    edgekd compress                 the built-in example: handwritten digits, under two minutes
    edgekd compress recipe.toml     your own
    """


def show(text: str) -> None:
    """A result on stdout: lines, and the colours of a table on a terminal; nothing else that a terminal would obey."""
    click.echo(
        "\n".join(
            "".join(p if COLOUR.fullmatch(p) else plain(p) for p in COLOUR.split(line)) for line in text.split("\n")
        )
    )


quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")


@cli.command()
@click.argument("recipe", required=False, type=click.Path())
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="T",
    help="A target's name or file; replaces the recipe's list. Repeat for several.",
)
@click.option("--out", type=click.Path(), help="Folder of the run [default: runs/<task>].")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="Change a setting of the recipe. Repeat for several.",
)
@click.option(
    "--on",
    "on",
    multiple=True,
    type=Board(),
    metavar="T=ADDRESS",
    help="Where target T's board is: T=ssh://[user@]host[:port].",
)
@click.option(
    "--time-budget",
    type=Duration(),
    help="Begin no further training after this long (90s, 20m, 2h); conclude with what is there.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Threads of the trainings; part of a run's identity [default: 2].",
)
@click.option(
    "--fresh", is_flag=True, help="Replace the run of another recipe in the folder; finished work stays in the store."
)
@click.option("--dry-run", is_flag=True, help="Check everything and show the steps; compute nothing.")
@quiet_option
def compress(recipe, targets, out, sets, on, time_budget, threads, fresh, dry_run, quiet):
    """Distil, prune, quantize, export, profile, choose and gate by RECIPE (TOML); without one, the built-in example.

    A recipe names code (tasks, models, losses) and runs it: use recipes that you trust.
    Interrupted or killed, the same command goes on from the last checkpoint.
    """
    from edgekd.run.execute import compress

    given = {
        "targets": targets,
        "out": out,
        "sets": sets,
        "on": dict(on),
        "time_budget": time_budget,
        "threads": threads,
        "fresh": fresh,
    }
    outcome = compress(recipe, **given, dry_run=dry_run, quiet=quiet)
    show(str(outcome))
    return 0 if isinstance(outcome, str) else outcome.exit_code


@cli.command()
@click.argument("model", type=click.Path())
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="T",
    help="A target's name or file [default: host]; several with --on emulator.",
)
@click.option("--on", type=Where(), metavar="WHERE", help=f"{ON} Or `emulator`: run as the target's CPU, no times.")
@click.option(
    "--data", type=click.Path(), help="An .npz with `inputs` and optionally `labels`; without: seeded random inputs."
)
@click.option("--preset", type=click.Choice(["quick", "standard", "certify"]), default="standard", show_default=True)
@click.option("--json", "json_file", type=click.Path(), help="Write the measurements to this file.")
@click.option("--trace", type=click.Path(), help="Write a Chrome trace of the operators to this file.")
@quiet_option
def profile(model, targets, on, data, preset, json_file, trace, quiet):
    """Measure an exported MODEL: latency, load, memory, operators; and accuracy where the data has labels.

    \b
    With --on ssh://user@host[:port]: on that board, by your ssh configuration and keys; nothing is left there.
      ?python=~/venv/bin/python after it, or EDGEKD_REMOTE_PYTHON, names another interpreter there;
      EDGEKD_SSH_CONFIG another ssh configuration here.

    With --on emulator, or for a target that this machine can't stand for: what it answers under each target's
    instruction set, held against this machine; its latency predicted, not timed. Without an emulator what is counted
    and predicted remains, with exit code 4.
    """
    from edgekd import targets as devices
    from edgekd.errors import Problem, UsageError
    from edgekd.verbs import _counted, _emulated
    from edgekd.verbs import profile as measuring

    if on is None and len(targets) == 1 and not devices.runs(device := devices.load(targets[0])):
        if data is not None or trace is not None:
            hint = "leave it out: what is counted on the file needs no samples"
            raise UsageError(Problem("--data" if data else "--trace", f"nothing runs as {device.name} here", hint))
        sized = _counted.sizes(model, device, json=json_file)
        show(str(sized))
        return sized.exit_code
    if on == "emulator":
        outcome = _emulated.emulate(model, targets=targets, data=data, json=json_file, quiet=quiet)
    elif len(targets) > 1:
        raise UsageError(
            Problem(
                "--target", f"{len(targets)} are given, and times are taken for one", "--on emulator runs as several"
            )
        )
    else:
        target = targets[0] if targets else "host"
        outcome = measuring.profile(
            model, target=target, data=data, preset=preset, json=json_file, trace=trace, on=on, quiet=quiet
        )
    show(str(outcome))
    if outcome.exit_code and isinstance(outcome, _emulated.Emulated):
        click.echo("\n".join(f"error: {p}" for p in outcome.problems), err=True)
    return outcome.exit_code


@cli.command()
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    required=True,
    type=click.Path(),
    help="An .npz with `inputs` (or an array per input name) and optionally `labels`.",
)
@click.option("--out", required=True, type=click.Path(), help="The int8 file to write.")
@click.option(
    "--target",
    default="host",
    show_default=True,
    metavar="T",
    help="A target's name or file: the weights' lattices suit it.",
)
@click.option(
    "--ranges",
    default="minmax",
    show_default=True,
    metavar="R",
    help="How ranges are taken: minmax, percentile, entropy, mse.",
)
@click.option("--weight-bits", type=click.Choice(["8", "7"]), help="Instead of the target's.")
@click.option(
    "--full-range", is_flag=True, help="Weights take all of int8: x86 with AVX2 and without VNNI may answer otherwise."
)
@click.option("--samples", type=int, default=512, show_default=True, help="Use at most this many samples.")
@click.option(
    "--float-layer", "float_layers", multiple=True, metavar="NAME", help="Keep this layer in float. Repeat for several."
)
@quiet_option
def quantize(model, data, out, target, ranges, weight_bits, full_range, samples, float_layers, quiet):
    """Quantize a float ONNX MODEL of any making to int8 by samples of its inputs, and check the file."""
    from edgekd.verbs.quantize import quantize

    bits = None if weight_bits is None else int(weight_bits)
    settings = {
        "ranges": ranges,
        "weight_bits": bits,
        "full_range": full_range,
        "samples": samples,
        "float_layers": float_layers,
    }
    outcome = quantize(model, data=data, out=out, target=target, **settings, quiet=quiet)
    show(str(outcome))
    return outcome.exit_code


@cli.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--target", default="host", show_default=True, metavar="T", help="A target's name or file.")
@click.option("--on", metavar="ADDRESS", help=ON)
@click.option("--preset", type=click.Choice(["quick", "standard", "certify"]), default="standard", show_default=True)
@click.option("--json", "json_file", type=click.Path(), help="Write the comparison to this file.")
@quiet_option
def compare(a, b, target, on, preset, json_file, quiet):
    """Time two exported files interleaved (A B B A) and print the ratio B/A with its interval."""
    from edgekd.verbs.profile import compare

    outcome = compare(a, b, target=target, on=on, preset=preset, json=json_file, quiet=quiet)
    show(str(outcome))
    return outcome.exit_code


@cli.command()
@click.argument("path", type=click.Path())
@click.option(
    "--budget", type=click.Path(), help="A TOML file with [any] and [TARGET] tables [default: the run's own gate]."
)
@click.option("--baseline", type=click.Path(), help="A bundle to compare with.")
@click.option("--only", type=click.Choice(["deterministic"]), help="Judge counted numbers only.")
@click.option("--inconclusive", type=click.Choice(["fail", "warn"]), default="fail", show_default=True)
@click.option("--why", is_flag=True, help="Say what every line was judged on.")
@click.option("--junit", type=click.Path(), help="Write JUnit XML.")
@click.option("--markdown", type=click.Path(), help="Append a summary in Markdown.")
@click.option("--sarif", type=click.Path(), help="Write SARIF.")
@click.option("--json", "json_file", type=click.Path(), help="Write the checks as JSON.")
def gate(path, budget, baseline, only, inconclusive, why, junit, markdown, sarif, json_file):
    """Judge a RUN or BUNDLE folder against budgets. Exit code 0 passed, 1 failed, 3 inconclusive, 5 baseline
    unusable."""
    from edgekd.verbs.gate import gate

    outcome = gate(
        path,
        budget=budget,
        baseline=baseline,
        only=only,
        inconclusive=inconclusive,
        why=why,
        junit=junit,
        markdown=markdown,
        sarif=sarif,
        json=json_file,
    )
    show(str(outcome))
    return outcome.exit_code


@cli.command()
@click.argument("run", type=click.Path())
def report(run):
    """Write report.html and report.md of a RUN folder again."""
    from edgekd.verbs.gate import report

    show(str(report(run)))
    return 0


@cli.command()
@click.argument("path", type=click.Path())
@click.option(
    "--fix", is_flag=True, help="Mend it: try what would help, keep the cheapest that does in fixed/, and measure it."
)
@click.option("--float", "plain", type=click.Path(), help="For an int8 file: the float file that it was made of.")
@click.option("--data", type=click.Path(), help="For an int8 file: an .npz with `inputs` and optionally `labels`.")
@click.option("--target", metavar="T", help="For an int8 file: a target's name or file [default: host].")
@click.option("--json", "json_file", type=click.Path(), help="Write what was found as JSON.")
@quiet_option
def explain(path, fix, plain, data, target, json_file, quiet):
    """Say where a RUN lost accuracy: stage by stage, then which layers of the chosen int8 file lose it, why, and what
    would help.

    PATH is the folder of a run, or an int8 file of any making with --float and --data. With --fix the exit code is 1
    where nothing helps.
    """
    from edgekd.verbs.explain import explain

    outcome = explain(path, plain=plain, data=data, target=target, fix=fix, json=json_file, quiet=quiet)
    show(str(outcome))
    return outcome.exit_code


@cli.command("list")
@click.argument("kind", required=False, type=click.Choice(LISTED))
@click.argument("name", required=False)
def list_(kind, name):
    """Show what can be named in a recipe: targets, tasks, losses, ...; `list targets NAME`: a target's facts and their
    sources."""
    from edgekd.verbs.list import listing, target

    if name is not None:
        if kind != "targets":
            raise click.UsageError(f"`list {kind}` takes no name; `list targets NAME` does")
        show(target(name))
        return 0
    show(listing([kind] if kind else list(LISTED)))
    return 0


@cli.group()
def targets():
    """Times a target's board (calibrate). `edgekd list targets` shows the targets there are."""


@targets.command()
@click.argument("name")
@click.option("--on", metavar="ADDRESS", help=f"{ON} [default: this machine]")
@quiet_option
def calibrate(name, on, quiet):
    """Time small probe networks on a board of kind NAME, so that latencies can be predicted for it where no board is.

    Takes some minutes; cut off, the same command goes on. What was timed is kept in EDGEKD_CALIBRATIONS [default: the
    user's data folder].
    """
    from edgekd.verbs.calibrate import calibrate

    outcome = calibrate(name, on=on, quiet=quiet)
    show(str(outcome))
    return outcome.exit_code


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--setup",
    "wanted",
    type=click.Choice(["arm-emulator"]),
    help="Fetch what runs files as ARM CPUs here; no root. Again: verify it.",
)
@quiet_option
def doctor(as_json, wanted, quiet):
    """Check this machine: versions, CPU features, the store, what limits timing; or set it up to emulate ARM."""
    from edgekd.verbs.list import doctor, setup

    if wanted is not None:
        show(setup(wanted, quiet=quiet))
        return 0
    text, code = doctor(as_json)
    show(text)
    return code


@cli.command()
@click.argument("kind", type=click.Choice(SCHEMAS))
def schema(kind):
    """Print the JSON Schema of a file that edgekd reads or writes."""
    from edgekd.results import schema

    click.echo(json.dumps(schema(kind), indent=2, sort_keys=True))
    return 0


def run(arguments: list[str] | None = None) -> int:
    """The command line as a function: prints, and returns the exit code of the contract."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return cli.main(arguments, prog_name="edgekd", standalone_mode=False) or 0
    except EdgekdError as error:
        count = len(error.problems)
        click.echo("\n".join(f"error: {p}" for p in error.problems), err=True)
        if count > 1:
            click.echo(f"{count} problems", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: what was finished is kept, the same command goes on", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _internal(error)
        place = plain(str(error.filename or "while writing"))
        click.echo(f"error: no space is left on the disk ({place}); finished work is intact\n  hint: free some, or "
                   "move the store with EDGEKD_STORE; the same command goes on", err=True)  # fmt: skip
        return BROKEN
    except Exception as error:
        return _internal(error)


def _internal(error: Exception) -> int:
    """The contract promises an exit code and no traceback, whatever happens."""
    if os.environ.get("EDGEKD_DEBUG"):
        traceback.print_exception(error)
    click.echo(
        f"error: internal error: {type(error).__name__}: {plain(str(error))}\n  hint: EDGEKD_DEBUG=1 shows the "
        "traceback",
        err=True,
    )
    return BROKEN


def _interrupt(signum, frame):
    raise KeyboardInterrupt
