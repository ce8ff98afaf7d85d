"""The command line: finds the verbs in `verbs/`, and gives the exit code of the contract for whatever happens. Results
go to stdout, progress and logs to stderr."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback

import click

from edgekd import __version__, environment, system
from edgekd.errors import BROKEN, INTERRUPTED, EdgekdError, plain
from edgekd.verbs._group import Folder

HELP = """Distil, prune and quantize a teacher for the edge; profile, choose and gate the exported file.

\b
edgekd compress                 the built-in example: handwritten digits, under two minutes
edgekd compress recipe.toml     your own
"""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

cli = click.version_option(__version__, prog_name="edgekd")(
    Folder("edgekd.verbs", name="edgekd", help=HELP, context_settings=SETTINGS)
)


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
        click.echo("interrupted: finished work is kept; run the same command to resume", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, system.QUOTA):
            return _internal(error)
        place = plain(str(error.filename or "while writing"))
        click.echo(f"error: no space is left on the disk ({place}); finished work is intact\n  hint: free some, or "
                   "move the store with EDGEKD_STORE; run the same command to resume", err=True)  # fmt: skip
        return BROKEN
    except ModuleNotFoundError as error:
        unfit = environment.left_out(error)
        if unfit is None:
            return _internal(error)
        click.echo(f"error: {unfit}", err=True)
        return unfit.exit_code
    except Exception as error:
        return _internal(error)


def _internal(error: Exception) -> int:
    """The contract promises an exit code and no traceback, whatever happens."""
    if os.environ.get("EDGEKD_DEBUG"):
        traceback.print_exception(error)
    text = f"error: internal error: {type(error).__name__}: {plain(str(error))}"
    click.echo(f"{text}\n  hint: EDGEKD_DEBUG=1 shows the traceback", err=True)
    return BROKEN


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
