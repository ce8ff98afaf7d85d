"""The verb `list`: what can be named in a recipe."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import click

from edgekd.errors import PASSED, EnvironmentUnfit, Problem, UsageError
from edgekd.report.tables import folded
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.records import Target

KINDS = (
    "targets",
    "tasks",
    "stages",
    "losses",
    "ensembles",
    "criteria",
    "ranges",
    "formats",
    "runtimes",
    "metrics",
    "probes",
)


@click.command()
@click.argument("kind", required=False, type=click.Choice(KINDS))
@click.argument("name", required=False)
def command(kind, name):
    """Show what can be named in a recipe: targets, tasks, losses, ...; `list targets NAME`: a target's facts and their
    sources."""
    if name is not None and kind != "targets":
        raise click.UsageError(f"`list {kind}` takes no name; `list targets NAME` does")
    _options.show(target(name) if name is not None else listing([kind] if kind else list(KINDS)))
    return PASSED


def listing(kinds: list[str]) -> str:
    """Tables of the parts of each kind: name, what it is, its settings with defaults."""
    return "\n\n".join(_listed(kind, of_many=len(kinds) > 1) for kind in kinds)


def _listed(kind: str, of_many: bool) -> str:
    """The table of a kind; among others, a line where the libraries that its parts need are not installed."""
    try:
        return OWN[kind]() if kind in OWN else _parts(kind)
    except EnvironmentUnfit as error:
        if not of_many:
            raise
        return f"{kind}: {error.problems[0].message}"


def target(name: str) -> str:
    """A target's facts, each with its source. Raises UsageError where there is none of that name."""
    from edgekd import environment, targets

    t = targets.load(name)
    rows = []
    for fact in (f.name for f in dataclasses.fields(t) if f.name not in ("name", "title", "sources")):
        value = getattr(t, fact)
        if value not in (None, (), {}):
            rows.append((fact, _fact(value), t.sources.get(fact, "")))
    figures = targets.figures(t, environment.describe())
    told = {
        "measured": "this machine matches the target: outputs are measured here",
        "answers": "outputs are measured here",
        "emulated": "outputs are emulated here",
        "counted": "answers: nothing runs as this target here; bytes, parameters, MACs and planned memory are counted "
        "on the file",
    }
    if not targets.runs(t):
        told["counted"] = (
            "answers: edgekd has no runtime for it; compress scores files by the reference runtime, onnxruntime on "
            "this machine"
        )
    lines = [
        told[figures]
        + (f", once this machine is set up: {lacking[0]}" if figures == "emulated" and (lacking := _lacking(t)) else "")
    ]
    return "\n".join(
        [f"{folded(f'{t.name}: {t.title}', ('fact', 'value', 'source'), rows)}\n", *lines, *_latency(t, figures)]
    )


def _lacking(t: Target) -> list[str]:
    """Hints on what has to be done before this machine can emulate a target."""
    from edgekd.measure import emulation

    return [p.hint for p in emulation.launches([t])[1]]


def _latency(t: Target, figures: str) -> list[str]:
    """How the latency of a target is had, in words."""
    from edgekd import targets
    from edgekd.predicting import of_file

    if not targets.runs(t):
        return []
    if figures == "measured":
        return ["latency: measured here"]
    kind, note = of_file.known_as(t)
    told = {
        "bound": "a bound and no prediction: nothing like its core was timed",
        "": "not predicted: the target doesn't say its core and clock",
    }
    lines = [
        f"latency: {told.get(kind, f'predicted, {kind} {note}')}; measured on the device alone, --on ssh://user@host"
    ]
    if kind in ("transferred", "bound"):
        lines.append(f"edgekd targets calibrate {t.name} --on ssh://user@host makes predictions narrower")
    return lines


def _fact(value: Any) -> str:
    """A fact as text; of a record what isn't empty."""
    if dataclasses.is_dataclass(value):
        value = {k: v for k, v in dataclasses.asdict(value).items() if v not in ("", (), [], {})}
    if isinstance(value, dict) or hasattr(value, "items"):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, tuple):
        return "; ".join(map(_fact, value)) if dataclasses.is_dataclass(value[0]) else ", ".join(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _parts(kind: str) -> str:
    from edgekd import components, runtimes, stages

    rows = []
    for name in (
        ["top1", "mean_error"]
        if kind == "metrics"
        else runtimes.names()
        if kind == "runtimes"
        else components.names(kind)
    ):
        if kind == "stages" and name in stages.PLANNED:
            continue
        if kind == "runtimes":  # whose libraries may not be installed
            try:
                about = runtimes.about(name)
            except ValueError as error:
                raise UsageError(
                    Problem(str(runtimes.source(name)), str(error), "correct the file, or move it")
                ) from None
            rows.append((name, about.replace("\n", " "), ""))
            continue
        module = components.built_in(*(("edgekd", "metrics") if kind == "metrics" else (f"edgekd.{kind}", name)))
        part = getattr(module, name, None) or getattr(module, "".join(w.capitalize() for w in name.split("_")), None)
        text = inspect.getdoc(part if kind == "metrics" else module) or ""
        settings = _settings(part, kind) if callable(part) and kind != "formats" else ""
        rows.append((name, text.split("\n\n")[0].replace("\n", " "), settings))
    return folded(kind, ("name", "what it is", "settings"), rows)


def _settings(part: Any, kind: str) -> str:
    """A part's settings with their defaults; of those that name a part, of which kind."""
    from edgekd import components, signatures

    called = components.KINDS.get(kind, signatures.PLAIN)
    named = {name: f" (one of {r.kind})" for name, r in signatures.readers(part, called).items()}
    defaults = {
        name: "" if p.default is inspect.Parameter.empty else f" = {signatures.plain(p.default)!r}"
        for name, p in signatures.parameters(part, called).items()
    }
    return ", ".join(
        f"{name}{told}{named.get(name, '')}"
        for name, told in defaults.items()
        if name not in ("augment_seed", "teachers") and len(told) < 63
    )


def _targets() -> str:
    from edgekd import environment, targets
    from edgekd.hosts import arm
    from edgekd.predicting import of_file

    facts, rows = environment.describe(), []
    for name in targets.names():
        t = targets.load(name)
        clock, ram = f"{t.clock_mhz:.0f}" if t.clock_mhz else "", _size(t.ram_bytes)
        figures = targets.figures(t, facts)
        answers = {"answers": "measured", "counted": "-"}.get(figures, figures)
        try:
            kind = "measured" if figures == "measured" else of_file.known_as(t)[0]
        except UsageError:  # told by what would use it
            kind = "damaged"
        latency = {"calibrated": "predicted", "transferred": "predicted", "": "-"}.get(kind, kind)
        rows.append(
            (t.name, t.core or t.architecture, clock, ram, _size(t.flash_bytes), targets.kernels(t), answers, latency)
        )
    table = folded("targets", ("name", "core", "MHz", "RAM", "flash", "int8 by", "answers", "latency"), rows, width=100)
    ready = arm.find() is not None and arm.emulator(arm.place()) is not None
    setup = "" if ready else f"\nAs ARM CPUs this machine emulates after `{arm.HINT}`."
    return (
        f"{table}\n\n"
        "Answers and latency: how they are had on this machine. Bytes, MACs, planned memory: counted for all.\n"
        "predicted: with an interval; bound: only what it can't be below; -: not without the device.\n"
        f"On the device both are measured: `edgekd profile MODEL.onnx --target NAME --on ssh://user@host`.{setup}\n"
        "`edgekd list targets NAME` shows the facts of one, with sources, and how its figures come about.\n"
        "A .toml file of the same form is a target of your own."
    )


def _probes() -> str:
    """What is measured, and what a budget, a report and a schema know of it."""
    from edgekd.probes import declared

    rows = [
        (
            q.name,
            q.title,
            q.unit or "-",
            q.better or "-",
            q.origin,
            "split" if q.split else "file",
            "yes" if q.budget else "-",
        )
        for q in declared().values()
    ]
    return folded("probes", ("name", "what it is", "unit", "better", "origin", "of", "budget"), rows)


def _size(count: int | None) -> str:
    """Bytes in the unit that they are a whole number of, or to two digits: `512 MiB`."""
    if count is None:
        return ""
    unit = next((u for u in (2**30, 2**20) if count >= u), 2**10)
    return f"{count / unit:.3g} {({2**30: 'GiB', 2**20: 'MiB', 2**10: 'KiB'})[unit]}"


# kinds of which more is told than name, first sentence and settings
OWN = {"targets": _targets, "probes": _probes}
