"""Addresses of boards: `ssh://[user@]host[:port][?python=/path/to/python]`, checked strictly, and the command that goes
there.

Nothing of an address reaches a shell but the interpreter's path, which is quoted; a host can't be taken for an option
(OpenSSH ssh(1): `--`)."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from dataclasses import dataclass
from urllib.parse import unquote

from edgekd.errors import Problem, UsageError

FORM = "ssh://user@host, ssh://host:2222, ssh://[fe80::1%eth0], or ssh://host?python=/path/to/venv/bin/python"
PYTHON = "EDGEKD_REMOTE_PYTHON"
CONFIG = "EDGEKD_SSH_CONFIG"


@dataclass(frozen=True)
class Address:
    """The address of a board. `host`: a name of the user's ssh configuration or of DNS, or an IP address; `python`: the
    interpreter on the board."""

    user: str | None
    host: str
    port: int | None
    python: str = "python3"

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host


def parse(text: str) -> Address:
    """Parses an address. Raises UsageError with every problem."""
    place, problems = "--on", []
    if not text.startswith("ssh://"):
        raise UsageError(Problem(place, f"{_shown(text)} is not a valid address", FORM))
    rest, _, query = text.removeprefix("ssh://").partition("?")
    user, at, host = rest.rpartition("@")
    if ":" in user:
        problems.append(Problem(place, "a password is never part of an address", "use a key: ssh-copy-id user@host"))
    elif at and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", user):
        problems.append(
            Problem(
                place,
                f"{_shown(user)} is not a valid user name",
                "use letters, digits, `_`, `.` and `-`, but not `-` first",
            )
        )
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", host, re.DOTALL)
    name, port = (
        bracketed.groups() if bracketed else (host.partition(":")[0], host.partition(":")[2] if ":" in host else None)
    )
    if bracketed and not _ipv6(name):
        problems.append(Problem(place, f"{_shown(name)} is not an IPv6 address"))
    elif not bracketed and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", name):
        problems.append(
            Problem(
                place,
                f"{_shown(name)} is not a valid host name",
                f"use letters, digits, `_`, `.` and `-`, but not `-` first: {FORM}",
            )
        )
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        hint = "write an IPv6 address in brackets" if ":" in port else "a number from 1 to 65535"
        problems.append(Problem(place, f"{_shown(port)} is not a port", hint))
    key, _, value = query.partition("=")
    if query and key != "python":
        problems.append(Problem(place, f"{_shown(key)} can't be set in an address", "python=/path/to/python can"))
    python = unquote(value) if key == "python" else os.environ.get(PYTHON) or "python3"
    if not re.fullmatch(r"(~/|/)?[\w.][\w.+@ /-]*", python) or len(python) > 500:
        where = place if key == "python" else PYTHON
        problems.append(
            Problem(where, f"{_shown(python)} is not a valid path of an interpreter", "such as ~/venv/bin/python")
        )
    if problems:
        raise UsageError(*problems)
    return Address(user or None, name, None if port is None else int(port), python)


def command(address: Address, code: str) -> list[str]:
    """The system's ssh with the user's configuration, keys and known hosts, running `code` (without quotes, `!`,
    backslashes) as Python there.

    It never asks anything (BatchMode), so a key that is not known is an error; that keys are checked is left as
    configured."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "15",  # a line that is dead is noticed within a minute
        "ServerAliveCountMax": "4",
        "LogLevel": "ERROR",
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
    }
    config = os.environ.get(CONFIG)
    given = ["ssh", *(["-F", config] if config else []), *(f"-o{name}={value}" for name, value in options.items())]
    given += [*(["-p", str(address.port)] if address.port else []), *(["-l", address.user] if address.user else [])]
    return [*given, "--", address.host, f"exec {_quoted(address.python)} -c '{code}'"]


def _quoted(path: str) -> str:
    """For any shell; `~/` in front is the home folder there."""
    return "~/" + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def _ipv6(text: str) -> bool:
    number, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(number)
    except ValueError:
        return False
    return not percent or re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", zone) is not None


def _shown(text: str) -> str:
    return repr(text if len(text) < 80 else text[:77] + "...")
