"""Which machine a target's figures are taken on: this one or a board, if it has the target's core and features and none
more."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgekd import targets as devices
from edgekd.errors import EdgekdError, EnvironmentUnfit, Problem, RunFailed, UsageError, first_line
from edgekd.hosts import local, ssh
from edgekd.progress import Silent
from edgekd.records import Host, Measurement, Target


@contextlib.contextmanager
def host_of(on: str | None, progress: Silent) -> Iterator[Host]:
    """This machine, or the board at an address."""
    if on is None:
        yield local.host()
        return
    with ssh.connect(on, progress.task) as host:
        yield host


def named(target: str) -> Target | None:
    """The target; None for the host's own, whose facts are not known yet."""
    return None if target == devices.HOST else devices.load(target)


def stands_for(host: Host, target: Target | None) -> tuple[Target, Host]:
    """The target, and the host held to its kind of cores, where the host matches it: it has the core and all
    features, and none more that kernels are chosen by."""
    device = target or devices.host(host.facts)
    lacking, more = devices.lacking(device, host.facts), devices.surplus(device, host.facts)
    kinds = host.facts.get("clusters", {})
    named = all(name.startswith(("Cortex-", "Neoverse-")) for name in kinds)  # other makers' cores may be of any kind
    if device.core and kinds and named and not _cores(host, device):
        lacking = [*lacking, f"a {device.core} (it has {' and '.join(kinds)})"]
    hint = (
        "a time that was not taken on the target's kind of machine is not measured; --target host profiles for the "
        "machine itself"
    )
    if lacking:
        raise EnvironmentUnfit(Problem(f"target {device.name}", f"{host.name} lacks {', '.join(lacking)}", hint))
    if more:
        what = f"{host.name} also has {', '.join(more)}, by which other kernels are chosen"
        raise EnvironmentUnfit(
            Problem(
                f"target {device.name}",
                what,
                hint + ("; --on emulator runs as the target's" if device.emulated_as else ""),
            )
        )
    missing = [p for t in devices.each(device) for p in host.lacks(t.runtime.name)]
    if missing:
        raise EnvironmentUnfit(*dict.fromkeys(missing))
    return device, dataclasses.replace(host, cores=_cores(host, device))


def noted(
    figures: Iterable[Measurement], target: Target | None, facts: Mapping[str, Any], *more: str
) -> list[Measurement]:
    """Figures that the runtime of a machine with `facts` made for the target, with the note that it is of another
    version than the target's."""
    text = (*more, devices.differing(target, facts) if target is not None else "")
    return [dataclasses.replace(m, note="; ".join(filter(None, (m.note, *text)))) for m in figures]


def _cores(host: Host, device: Target) -> tuple[int, ...]:
    """The CPUs of a board that are of the target's kind: on one with big and little cores, those that its processes are
    held to."""
    return next(
        (tuple(numbers) for name, numbers in host.facts.get("clusters", {}).items() if name.lower() == device.core), ()
    )


@contextlib.contextmanager
def user_error() -> Iterator[None]:
    """A file from elsewhere that its runtime refuses is an input that is wrong, not a run that failed."""
    try:
        yield
    except RunFailed as error:
        raise UsageError(*error.problems) from error


@contextlib.contextmanager
def runnable(place: str, how: str = "on the samples", kind: type[EdgekdError] = UsageError) -> Iterator[None]:
    """The same where a file is opened by onnxruntime in this process: an error of this `kind`, by default that of a
    file from elsewhere."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):  # its classes have no base of their own
            raise
        told = first_line(error)
        raise kind(Problem(place, f"onnxruntime can't run it {how}: {told}")) from None
