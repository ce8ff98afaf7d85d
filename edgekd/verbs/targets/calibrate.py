"""The verb `targets calibrate`: probe networks timed on the user's own board, kept as that target's calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.errors import PASSED, EnvironmentUnfit, Problem, UsageError, plain
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.predicting import calibration, costs
    from edgekd.records import Target

ROWS = 4  # random samples that a probe is timed with


@dataclass(frozen=True)
class Calibrated:
    """What was timed on a board. Prints as a table: each probe's time, and how far the fit without it is off."""

    target: str
    file: Path
    times: Mapping[tuple[str, str], float]
    left_out: Mapping[tuple[str, str], calibration.Prediction]
    environment: Mapping[str, Any]
    noisy: tuple[str, ...] = ()
    note: str = ""
    exit_code: int = PASSED

    def __str__(self) -> str:
        self = plain(self)
        lines = [
            f"{self.target} ({self.environment['cpu']})",
            "",
            f"{'probe':<14} {'':<6} {'measured ms':>12} {'without it: ms':>15}  95 % interval",
        ]
        for (name, precision), ms in self.times.items():
            p = self.left_out[name, precision]
            missed = "" if p.low <= ms <= p.high else "  missed"
            figures = f"{ms:>12.4g} {p.value:>15.4g}  [{p.low:.4g}, {p.high:.4g}]"
            lines.append(f"{name:<14} {precision:<6} {figures}{missed}")
        off = sorted(abs(p.value / self.times[k] - 1) for k, p in self.left_out.items())
        inside = sum(p.low <= self.times[k] <= p.high for k, p in self.left_out.items())
        lines += [
            "",
            f"each probe predicted by the others: median error {100 * off[len(off) // 2]:.0f} %, {inside} of "
            f"{len(off)} inside the interval",
            "(harder than a network: a probe has much of one kind of work, of which the others then say little)",
        ]
        if self.noisy:
            few = ", ".join(self.noisy[:4])
            lines.append(f"noisy: {len(self.noisy)} of {len(off)} times; on an idle board, run it again: {few}")
        lines += [f"timed {self.note}"] if self.note else []
        return "\n".join([*lines, f"kept in {self.file}; predictions for {self.target} use it from now on"])


@click.command()
@click.argument("name")
@click.option("--on", metavar="ADDRESS", help=f"{_options.BOARD} [default: this machine]")
@_options.quiet
def command(name, on, quiet):
    """Time small probe networks on a board of kind NAME, so that latencies can be predicted for it where no board is.

    Takes a few minutes; run the same command to resume. What was timed is kept in EDGEKD_CALIBRATIONS [default: the
    user's data folder].
    """
    return _options.finish(calibrate(name, on=on, quiet=quiet))


def calibrate(name: str, *, on: str | None = None, quiet: bool = True) -> Calibrated:
    """Times the probe networks as target `name` on the board at `on` (default: this machine), and keeps them as its
    calibration, in place of an older one. What was timed is kept until all is: the same call resumes. Raises as
    `profile` does."""
    from edgekd import runtimes
    from edgekd import targets as devices
    from edgekd.files import writing
    from edgekd.measure.machine import host_of, named, stands_for
    from edgekd.predicting import calibration, latency, probes, shipped
    from edgekd.predicting.of_file import folder
    from edgekd.predicting.population import Table
    from edgekd.progress import reporter

    wanted = named(name)
    if wanted is not None and not devices.runs(wanted):
        raise UsageError(
            Problem(
                f"target {name}",
                "can't be timed: edgekd has no runtime for it",
                "its files are counted: edgekd profile --target",
            )
        )
    if wanted is not None:
        wanted = next((d for d in devices.each(wanted) if devices.deployment(d).is_onnx), None)
        if wanted is None:
            text = "can't be timed: none of its runtimes takes ONNX files, as the probes are"
            raise UsageError(Problem(f"target {name}", text, "its files are timed: edgekd profile --target"))
    progress = reporter(quiet)
    try:
        with host_of(on, progress) as host:
            try:
                device, host = stands_for(host, wanted)
            except EnvironmentUnfit as error:
                hint = (
                    f"the address of a {name} board: --on ssh://user@host"
                    if on is None
                    else "the address of a board of that kind"
                )
                raise EnvironmentUnfit(*(Problem(p.place, p.message, hint) for p in error.problems)) from None
            made = latency.device_of(device)
            if made is None:
                hint = "write clock_mhz, and core unless it is an x86, in a target file of your own"
                raise UsageError(Problem(f"target {device.name}", "doesn't say its core and clock", hint))
            place = folder()
            work = place / f".{device.name}-{device.threads}"
            with writing(place, "set EDGEKD_CALIBRATIONS to another folder"):
                work.mkdir(parents=True, exist_ok=True)
            times, noisy = _times(device, host, work, progress)
    finally:
        progress.close()
    library = next(iter(runtimes.needs(device.runtime.name)), "")
    version = host.facts["versions"].get(library, "")
    source = f"timed on {host.facts['cpu']} with {device.runtime.name} {version}".rstrip()
    rows = probes.rows(times, source)
    board = shipped.Board(device.name, device.title, device.runtime.name, (Table(device.name, made, rows),))
    path = place / f"{device.name}.json"
    shipped.write(path, board, [[f"{network}" for network, _ in times]])
    for file in sorted(work.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    work.rmdir()
    left_out = {}
    for number, key in enumerate(times):
        fitted = shipped.calibrate(
            made, runtime=device.runtime.name, rows=(*rows[:number], *rows[number + 1 :]), name=device.name
        )
        left_out[key] = calibration.of(rows[number].costs, fitted, key[1])
    return Calibrated(device.name, path, times, left_out, host.facts, noisy, devices.differing(device, host.facts))


def _times(
    device: Target, host: Any, work: Path, progress: Any
) -> tuple[dict[tuple[str, costs.Precision], float], tuple[str, ...]]:
    """({probe: milliseconds}, probes whose times vary too much): a network's float and int8 file in one interleaved
    job, network by network."""
    import tempfile

    import numpy as np

    from edgekd.measure import jobs
    from edgekd.measure.machine import user_error
    from edgekd.predicting import costs, probes

    files = probes.models()
    networks, found, noisy = list(dict.fromkeys(name for name, _ in files)), {}, []
    with (
        tempfile.TemporaryDirectory(prefix="edgekd-") as place,
        progress.task("time the probes") as advance,
        user_error(),
    ):
        for number, network in enumerate(networks):
            models = {precision: Path(place) / f"{number}-{precision}.onnx" for precision in costs.PRECISIONS}
            for precision, path in models.items():
                path.write_bytes(files[network, precision])
            shape = probes.NETWORKS[network][0]
            inputs = np.random.default_rng(0).normal(size=(ROWS, *shape[1:])).astype(np.float32)
            timed = jobs.profile(
                models,
                inputs,
                jobs.Session(
                    preset="probe", threads=device.threads, folder=work / str(number), target=device, host=host
                ),
            )
            for precision, figures in timed.items():
                p50 = next(m for m in figures if m.name == "latency_p50_ms")
                found[network, precision] = p50.value
                noisy += [f"{network} {precision}"] if "noisy" in p50.note else []
            advance(number + 1, len(networks), network)
    return found, tuple(noisy)
