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
from edgekd.errors import BROKEN, INTERRUPTED, USAGE, EdgekdError, plain
from edgekd.verbs._group import Folder

HELP = """Distil, prune and quantize a teacher for the edge; profile, choose and gate the exported file.

\b
edgekd compress                 the built-in example: handwritten digits, under two minutes
edgekd compress recipe.toml     your own
"""
_SIGNALS: list[int] = []  # that came while a command ran
NO_ROOM = "No usable temporary directory"  # tempfile's own error where all of them are full or refused
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

cli = click.version_option(__version__, prog_name="edgekd")(
    Folder("edgekd.verbs", name="edgekd", help=HELP, context_settings=SETTINGS)
)


def run(arguments: list[str] | None = None) -> int:
    """The command line as a function: prints, and returns the exit code of the contract."""
    _SIGNALS.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as behind nohup
        signal.signal(signal.SIGINT, _interrupt)
    verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    try:
        return cli.main(arguments, prog_name="edgekd", standalone_mode=False) or 0
    except EdgekdError as error:
        if _SIGNALS:  # what was stopped may have become an error on its way here
            return _stopped(verb)
        count = len(error.problems)
        click.echo("\n".join(f"error: {p}" for p in error.problems), err=True)
        if count > 1:
            click.echo(f"{count} problems", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _stopped(verb)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            text = plain(str(error.filename or error))
            click.echo(f"error: {text[:80]}...: is too long for the name of a file", err=True)
            return USAGE
        if error.errno not in (errno.ENOSPC, system.QUOTA) and NO_ROOM not in str(error):
            return _internal(error, verb)
        place = plain(str(error.filename2 or error.filename or "while writing"))
        full = f"no space is left on the disk ({place})"
        if NO_ROOM in str(error):  # tempfile doesn't say which of the two
            full = "no temporary folder can be written to: none has space, or none is yours to write in"
        click.echo(f"error: {full}{_kept(verb)[0]}\n  hint: free some, move the store "
                   f"with EDGEKD_STORE or temporary files with TMPDIR{_kept(verb)[1]}", err=True)  # fmt: skip
        return BROKEN
    except ModuleNotFoundError as error:
        unfit = environment.left_out(error)
        if unfit is None:
            return _internal(error, verb)
        click.echo(f"error: {unfit}", err=True)
        return unfit.exit_code
    except Exception as error:
        return _internal(error, verb)


def _stopped(verb: str) -> int:
    click.echo("interrupted" + "".join(_kept(verb)).replace("; finished", ": finished", 1), err=True)
    return INTERRUPTED


def _kept(verb: str) -> tuple[str, str]:
    """What is left of a verb that was stopped, and what to do: only `compress` goes on where it was."""
    if verb != "compress":
        return "", ""
    return "; finished work is kept", "; run the same command to resume"


def _internal(error: Exception, verb: str) -> int:
    """The contract promises an exit code and no traceback, whatever happens."""
    if _SIGNALS:
        return _stopped(verb)
    if os.environ.get("EDGEKD_DEBUG"):
        traceback.print_exception(error)
    text = f"error: internal error: {type(error).__name__}: {plain(str(error))}"
    click.echo(f"{text}\n  hint: EDGEKD_DEBUG=1 shows the traceback", err=True)
    return BROKEN


def _interrupt(signum: int, frame: object) -> None:
    _SIGNALS.append(signum)  # an extension module that is being imported makes an ImportError of the exception
    raise KeyboardInterrupt
