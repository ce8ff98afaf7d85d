"""The verb `compare`: two exported files timed against each other, on this machine or on a board."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgekd.errors import INCONCLUSIVE, PASSED, plain
from edgekd.store.scratch import scratch
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.measure import jobs, session


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--target", default="host", show_default=True, metavar="T", help="A target's name or file.")
@click.option("--on", metavar="ADDRESS", help=_options.BOARD)
@_options.samples(
    "Samples: an .npz with `inputs`, a folder with one .npz per sample, of images or of .wav files; or random, which "
    "it is by default."
)
@_options.preset
@_options.json_file("Write the comparison to this file.")
@_options.quiet
def command(a, b, **settings):
    """Time two exported files interleaved (A B B A) and print the ratio B/A with its interval."""
    return _options.finish(compare(a, b, **settings))


@dataclass(frozen=True)
class Compared:
    """What `compare` found out. Prints as the ratio, what it means, and both files' figures."""

    a: str
    b: str
    comparison: jobs.Comparison
    environment: Mapping[str, Any]
    exit_code: int = PASSED

    def __str__(self) -> str:
        from edgekd.report.figures import table

        self = plain(self)
        c, (ratio, low, high), verdict = self.comparison, self.comparison.ratio, self.comparison.verdict
        says = f"B is {verdict}" if verdict in ("slower", "faster") else verdict
        lines = [
            f"B / A   {ratio:.3f}  [{low:.3f}, {high:.3f}]   {says} (p50, {c.processes} pairs of processes, 95 %)",
            f"A / A   {c.control[0]:.3f}  [{c.control[1]:.3f}, {c.control[2]:.3f}]   control: A against itself in the "
            "same session",
        ]
        if verdict == "inconclusive":
            lines.append(
                "inconclusive: by its control this session finds a file slower or faster than itself; its ratios say "
                "nothing of the files"
            )
            lines.append("hint: stop what else runs on the machine and compare again, or take --preset certify")
        if c.note:
            lines.append(c.note)
        return "\n".join([*lines, "", f"A: {self.a}", table(c.a), "", f"B: {self.b}", table(c.b)])


def compare(
    a: Path | str,
    b: Path | str,
    *,
    target: str = "host",
    data: Path | str | None = None,
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    states: Mapping[str, str] = MappingProxyType({}),
    preset: session.Preset = "standard",
    json: Path | str | None = None,
    on: str | None = None,
    quiet: bool = True,
) -> Compared:
    """Times two files against each other, interleaved; both take the same inputs: those of `data`, `axes`,
    `preprocess` and `states` as in `quantize`, or random ones. `on`, and what is raised: as in
    `profile`. Where the A/A control excludes 1, the exit code is 3: inconclusive."""

    from edgekd.files import write_found
    from edgekd.measure import jobs, opening, session
    from edgekd.measure.machine import host_of, named, noted, stands_for, user_error
    from edgekd.progress import reporter
    from edgekd.samples.source import Source, spared

    paths, source = [Path(a), Path(b)], Source(data, axes, preprocess, states)
    spared(json, paths, source)
    wanted = opening.taking(named(target), paths[0])
    opening.check(paths, wanted)
    opening.alike(paths, wanted)
    progress = reporter(quiet)
    try:
        with scratch() as folder, host_of(on, progress) as host:
            device, host = stands_for(host, wanted)
            place, runtime = Path(folder), device.runtime.name
            with progress.task("open both files"), user_error():
                given = opening.given(paths[0], source, wanted, place / "signature", host)
                inputs, ran = given.samples, []
                if on is None:  # a file that comes to no end, or breaks its runtime, before it is run hundreds of times
                    ran = jobs.tried({str(p): p for p in paths}, inputs, runtime=runtime, folder=place / "tried")
            session.announce(progress, ran, preset)
            with progress.task("time both files") as advance, user_error():
                compared = jobs.compare(
                    *paths, inputs, jobs.Session(place, preset, device.threads, device, host, advance)
                )
            code = INCONCLUSIVE if compared.verdict == "inconclusive" else PASSED
            told = {side: tuple(noted(getattr(compared, side), wanted, host.facts)) for side in ("a", "b")}
            note = "; ".join(filter(None, (compared.note, given.note)))
            compared = dataclasses.replace(compared, **told, note=note)
            found = Compared(*(p.name for p in paths), compared, host.facts, code)
    finally:
        progress.close()
    write_found(json, "edgekd.comparison/1", found, "exit_code", verdict=compared.verdict)
    return found
