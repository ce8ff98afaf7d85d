"""Probes: what is measured. A probe is a file of this folder, and the folder is the list. It declares its quantities:

    MEASURES = (Quantity("zero_share", "%", "weights that are 0", better="higher", origin="counted"),)

    def measure(subject: Subject) -> Iterable[Measurement]:
        if subject.file is not None:
            yield figure(MEASURES[0], share_of(subject.model))

`profile` and `compress` then measure it, budgets and `[select]` may name it, reports and JSON schemas show it, and
`edgekd list probes` lists it (see `records.Quantity`). `measure` is called with all that is known of a file, and yields
nothing if a field that it needs is None; static probes need only the file. A probe whose figures come from elsewhere
(an emulator, a prediction, two candidates) has no `measure` and says where they are computed.

`gate` and `list` read the declarations: a probe imports torch, onnx and runtimes inside its functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import components
from edgekd.errors import Problem, UsageError, gathered
from edgekd.records import Deployment, Measurement, Metric, Quantity, Split, is_onnx

if TYPE_CHECKING:
    import onnx

    from edgekd.onnx_files.known import Known
    from edgekd.outputs import Output
    from edgekd.probes._macs import Counts


KNOWN = {"better": (None, "lower", "higher"), "origin": ("counted", "measured", "emulated")}  # {setting: its values}


@dataclass(frozen=True)
class Times:
    """The records of a timing job's processes for one file. `processes`: a line of each (runtimes/worker.py); `peaks`,
    `bare`: peak bytes of processes that loaded and ran the file, and of processes that loaded only the runtime; `off`:
    the factor by which the session's A/A control is off, 1 if its interval contains 1; `session`: its digest; `noise`:
    why the times are not reliable, or empty."""

    processes: Sequence[Mapping[str, Any]]
    peaks: Sequence[int]
    bare: Sequence[int]
    off: float = 1.0
    session: str = ""
    noise: str = ""


@dataclass(frozen=True)
class Subject:
    """All that is known of one file, for probes; None: not known.

    file      the exported file; `format`: of it; `model`: the same, parsed, where it is an ONNX file
    facts     the facts of its export (`Artifact.facts`)
    sample    {input: shape of one sample, with an axis of 1 in front}, for dimensions that the file leaves open
    outputs   its outputs for the samples of `split`: array [n, ...] or {name: array [n, ...]}
    labels    [n, ...] or {output: [n, ...]}; metrics: the task's
    teacher   the teacher's outputs for the same samples, in the same form
    output    what the only output is, where the task says it; {name: what it is} of several, each of which probes get
              once more, alone, as `head`
    times     the records of processes that ran it
    """

    file: Path | None = None
    format: str = Deployment().format
    facts: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: Any = None
    labels: Any = None
    metrics: Sequence[Metric] = ()
    teacher: Any = None
    output: Output | Mapping[str, Output] | None = None
    head: str = ""
    split: Split | None = None
    times: Times | None = None

    def at(self, sample: Mapping[str, tuple[int, ...]]) -> Subject:
        """The same file at the shapes of a sample; it is not parsed again."""
        found = replace(self, sample=sample)
        if "model" in self.__dict__:
            found.__dict__["model"] = self.model
        return found

    def heads(self) -> dict[str, Subject]:
        """{name: the subject's answers with that output only} of several outputs that the task declares."""
        if not isinstance(self.output, Mapping) or self.outputs is None:
            return {}
        alone: dict[str, Any] = {"split": self.split}
        of = lambda values, name: values.get(name) if isinstance(values, Mapping) else None
        each = {name: [of(v, name) for v in (self.outputs, self.labels, self.teacher)] for name in self.output}
        return {
            name: Subject(outputs=ours, labels=labels, teacher=theirs, output=self.output[name], head=name, **alone)
            for name, (ours, labels, theirs) in each.items()
        }

    @cached_property
    def model(self) -> onnx.ModelProto | None:
        from edgekd.probes import static

        return static.read(self.file) if is_onnx(self.format) else None

    @cached_property
    def known(self) -> Known:
        """What is known of the values of `model`, at the shapes of `sample`; there is no other than an ONNX file."""
        from edgekd.probes import static

        if self.model is None:
            raise ValueError(f"{self.file} is no ONNX file")
        return static.known(self.model, self.sample)

    @cached_property
    def counts(self) -> Counts:
        """The multiply-accumulates of `known`. Raises static.Open where a shape that they need is not known."""
        from edgekd.probes import _macs

        if self.model is None:
            raise ValueError(f"{self.file} is no ONNX file")
        return _macs.counted(self.model, self.known)


def declared() -> Mapping[str, Quantity]:
    """{name: quantity} of all probes, in the order of their columns. Raises UsageError with every file whose
    declaration is wrong."""
    return _declared(tuple(components.names("probes")))


def of_output(name: str, output: str) -> str:
    """The name of a quantity of one of several outputs: `agreement-sex`."""
    return f"{name}-{output}" if output else name


def quantity(name: str) -> Quantity | None:
    """The declared quantity of this name, which may be of one of several outputs; None of a task's metric."""
    base, _, output = name.partition("-")
    found = declared().get(base)
    if found is None or not output:
        return declared().get(name)
    return replace(found, name=name, title=f"{found.title}, of {output}") if found.split else None


def measure(subject: Subject) -> tuple[Measurement, ...]:
    """The measurements of all probes of a subject, the task's metrics first; of several outputs those of each too, as
    `agreement-NAME`. Figures that are not finite are left out.
    Raises UsageError for a file that can't be read, ValueError where outputs, labels and teacher don't fit together."""
    declared()  # a probe whose declaration is wrong is told
    probes = [components.built_in(__name__, name) for name in components.names("probes")]
    probes.sort(key=lambda probe: min(map(_place, probe.MEASURES)))
    given = {"": subject, **subject.heads()}
    found = [
        replace(m, name=of_output(m.name, name))
        for name, one in given.items()
        for probe in probes
        if hasattr(probe, "measure")
        for m in probe.measure(one)
    ]
    return tuple(m for m in found if all(map(math.isfinite, (m.value, m.low, m.high))))


def timed() -> str:
    """Identifies the probes whose figures are taken where a file runs, by their files: kept figures are theirs."""
    from edgekd.store import fingerprint

    each = [components.built_in(__name__, name) for name in components.names("probes")]
    taken = lambda q: q.origin == "measured" and not q.split
    return fingerprint.files(p.__file__ for p in each if hasattr(p, "measure") and any(map(taken, p.MEASURES)))[:12]


def figure(
    quantity: Quantity, value: float, low: float | None = None, high: float | None = None, n: int = 1, **more: Any
) -> Measurement:
    """A measurement of a quantity; exact if no limits are given. `more`: other fields of the record, or a metric's own
    unit."""
    limits = {"low": value if low is None else low, "high": value if high is None else high}
    own = {"unit": quantity.unit, "split": None, "target": None, "origin": quantity.origin}
    return Measurement(quantity.name, value=value, n=n, **(limits | own | more))


@cache
def _declared(names: tuple[str, ...]) -> Mapping[str, Quantity]:
    found: dict[str, Quantity] = {}
    files: dict[str, str] = {}
    problems: list[Problem] = []
    for name in names:
        probe = gathered(partial(components.built_in, __name__, name), problems)
        wrong = _wrong(probe) if probe is not None else []
        problems += wrong
        for quantity in probe.MEASURES if probe is not None and not wrong else ():
            if quantity.name in found:
                text = f"measures `{quantity.name}`, as {files[quantity.name]} does"
                problems.append(Problem(probe.__file__, text, "give it another name"))
            found[quantity.name], files[quantity.name] = quantity, probe.__file__
    if problems:
        raise UsageError(*problems)
    return dict(sorted(found.items(), key=lambda item: _place(item[1])))


def _wrong(probe: Any) -> list[Problem]:
    """What is wrong with the declaration of a probe."""
    place, measures = probe.__file__, getattr(probe, "MEASURES", None)
    if not isinstance(measures, tuple) or not measures or not all(isinstance(q, Quantity) for q in measures):
        text = "MEASURES must be a tuple of `edgekd.records.Quantity`, at least one"
        return [Problem(place, text, 'MEASURES = (Quantity("zero_share", "%", "weights that are 0"),)')]
    found = [
        Problem(place, f"{q.name}: {setting} is {getattr(q, setting)!r}", f"one of {', '.join(map(str, known))}")
        for q in measures
        for setting, known in KNOWN.items()
        if getattr(q, setting) not in known
    ]
    if not callable(getattr(probe, "measure", len)):
        found.append(Problem(place, "`measure` is not a function", "def measure(subject): yield figure(...)"))
    return found


def _place(quantity: Quantity) -> float:
    return math.inf if quantity.column is None else quantity.column
