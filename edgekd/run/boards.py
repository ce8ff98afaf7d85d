"""The boards that `--on TARGET=ADDRESS` names."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial

from edgekd.errors import Problem, UsageError, gathered
from edgekd.hosts import address
from edgekd.measure.machine import host_of, stands_for
from edgekd.progress import Silent
from edgekd.records import Host
from edgekd.run.resolve import Resolved
from edgekd.targets import HOST


def check(on: Mapping[str, str], resolved: Resolved) -> None:
    """Raises UsageError where `on` names a target that the recipe does not have, or an address is not valid."""
    names = [t.name for t in resolved.targets]
    problems: list[Problem] = []
    for target, where in on.items():
        if target not in names:
            problems.append(
                Problem(
                    f"--on {target}={where}",
                    f"`{target}` is not a target of the recipe",
                    f"its targets: {', '.join(names)}",
                )
            )
        gathered(partial(address.parse, where), problems)
    if problems:
        raise UsageError(*problems)


def connect(
    on: Mapping[str, str], resolved: Resolved, progress: Silent, stack: contextlib.ExitStack
) -> dict[str, Host]:
    """{target: its board}, connected until the stack closes. Targets that are cores of one board share a connection.
    The board of `host` must match this machine, since the plan uses this machine's facts."""
    named = {t.name: t for t in resolved.targets} | {
        t.name: dataclasses.replace(t, name="this machine") for t in resolved.targets if t.name == HOST
    }
    hosts = {where: stack.enter_context(host_of(where, progress)) for where in dict.fromkeys(on.values())}
    return {t: stands_for(hosts[where], named[t])[1] for t, where in on.items()}
