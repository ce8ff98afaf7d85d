"""`explain --fix`: tries what could mend an int8 file, takes the cheapest that gives back what was lost, and measures
it.

Remedies are tried and chosen on validation, and the one taken is judged on test; of files with samples of their own,
each on every other sample. A fix is a new file in `fixed/`; what it was made from stays as it is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment, intervals, probes
from edgekd.errors import EdgekdError, Problem, UsageError, plain
from edgekd.explain import requantize
from edgekd.explain.inputs import Samples, Subject
from edgekd.files import sha256, write_atomic
from edgekd.inputs import bare
from edgekd.measure import jobs
from edgekd.probes import figure, quality, static
from edgekd.probes.signal_to_noise import SIGNAL_TO_NOISE
from edgekd.quantization.diagnosis.fixes import Remedy, in_float, remedies
from edgekd.quantization.diagnosis.layers import Finding
from edgekd.quantization.diagnosis.signal_to_noise import decibel, noise
from edgekd.records import Measurement
from edgekd.report.numbers import number
from edgekd.report.tables import aligned

if TYPE_CHECKING:
    from edgekd.progress import Silent
    from edgekd.store.store import Store

SCHEMA = "edgekd.fix/1"
# points, or a thousandth of a metric that is not in percent, that int8 may cost: that much is not looked for
SOUND = 0.1
LEFT = 0.25  # share of what was lost that may stay lost
QUIETER = 3.0  # dB that the output's noise must fall by
HELPS = 1.0  # dB from which a remedy helps at all
MOST_FLOAT = 8  # layers that are put into float, one more at a time
MOST_TRAINED = 4  # remedies that are tried where each is a training


@dataclass(frozen=True)
class State:
    """A file on the samples that remedies are chosen by: `lost` of the metric to the float file, in its unit and above
    0 where it is worse (None: no labels); `noise` of the outputs as a share of the signal; `changed`: layers whose
    outputs come out otherwise on AVX2 without VNNI."""

    lost: float | None
    noise: float
    changed: int = 0


@dataclass(frozen=True)
class Tried:
    """A remedy and what came of it: the file's state, or why there is none."""

    remedy: Remedy
    state: State | None
    verdict: str


@dataclass(frozen=True)
class Fixed:
    """What came of a candidate. `file` of the repaired file; None where nothing helped, or nothing had to. `now` how it
    was; `plain`, `before` and `after`: figures of the float file and the two others on the samples that judge, `change`
    of the metric (above 0 is better) and `ratio` of the latency, after / before, with 95 % intervals (`control`: before
    / before); `saturation`: layers that saturate, before and after. `helped` None: no layer needed a fix."""

    id: str
    helped: bool | None
    recovered: bool = False
    file: str | None = None
    sha256: str | None = None
    remedy: Remedy | None = None
    lasting: str = ""
    proof: str = ""
    note: str = ""
    tried: tuple[Tried, ...] = ()
    now: State | None = None
    plain: tuple[Measurement, ...] = ()
    before: tuple[Measurement, ...] = ()
    after: tuple[Measurement, ...] = ()
    change: tuple[float, float, float] | None = None
    ratio: tuple[float, float, float] | None = None
    control: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return _text(self)


def fix(
    subject: Subject, findings: Sequence[Finding], order: Sequence[str], trained: bool, store: Store, progress: Silent
) -> Fixed:
    """Mends a subject by what was found of it; `order`: its layers, the one first that float mends most. Raises
    UsageError where the folder can't be written."""
    if not findings:
        return Fixed(subject.id, None, note="nothing stands out, so nothing is mended")
    _writable(subject.home)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        place = Path(folder)
        way = requantize.way(subject, store, progress)
        bench = _Bench(subject, place, trained)
        before = bench.state(subject.int8_file)
        with progress.task(f"mend {subject.id}") as advance:
            tried, best = _search(way, findings, order, before, bench, advance)
        if best is None:
            why = "nothing that was tried helps" if tried else "edgekd has no setting that could help"
            return Fixed(subject.id, False, note=f"{why}; no file is left", tried=tuple(tried), now=before)
        with progress.task("measure the repaired file") as advance:
            made = _measured(subject, best, way, tried, before, bench, advance)
        if made.change is not None and made.change[2] < 0:
            text = "it helps on the samples it was chosen by, and makes others worse: it is not kept"
            return dataclasses.replace(made, helped=False, recovered=False, file=None, sha256=None, note=text)
        _keep(subject, bench.files[best.remedy.text], made)
        return made


def recovers(before: State, after: State, *, sound: float = SOUND, trained: bool = False) -> bool:
    """Whether a remedy gives back what was lost: at most a quarter of it is missing, or no more than nobody looks for;
    and the outputs are quieter.

    Of trained weights the difference to the float file is no noise, so the metric alone decides. What saturates must no
    longer."""
    if before.changed:
        return not after.changed and (after.lost is None or after.lost <= max(sound, before.lost))
    enough = after.lost is None or before.lost is None or after.lost <= max(sound, LEFT * before.lost)
    if trained and before.lost is not None:
        return enough and after.lost < before.lost
    return enough and decibel(before.noise / after.noise) >= QUIETER


def helps(before: State, after: State, *, sound: float = SOUND, trained: bool = False) -> bool:
    """Whether a file is better than before, if not good."""
    no_worse = after.lost is None or before.lost is None or after.lost <= before.lost + sound / 2
    if before.changed:
        return no_worse and after.changed < before.changed
    if trained and before.lost is not None:
        return after.lost < before.lost
    return no_worse and decibel(before.noise / after.noise) >= HELPS


class _Bench:
    """Where the files of one subject are tried; holds what the float file answers, and the files made so far."""

    def __init__(self, subject: Subject, place: Path, trained: bool):
        self.subject, self.place, self.trained, self.files, self.numbers = (
            subject,
            place,
            trained,
            {},
            itertools.count(),
        )
        self.plain = self.answers(subject.float_file, subject.looked)
        self.value = self.metric(self.plain, subject.looked)
        percent = subject.metric is not None and subject.metric.unit == "%"
        self.sound = SOUND if percent or self.value is None else abs(self.value) / 1000

    def answers(self, file: Path, samples: Samples) -> dict[str, np.ndarray]:
        return jobs.score(file, samples.inputs, folder=self.place / f"score-{next(self.numbers)}")

    def metric(self, answers: Mapping[str, np.ndarray], samples: Samples) -> float | None:
        metric = self.subject.metric
        return (
            None
            if metric is None or samples.labels is None
            else float(metric.value(metric.records(_outputs(answers), samples.labels)))
        )

    def state(self, file: Path) -> State:
        found = self.answers(file, self.subject.looked)
        value = self.metric(found, self.subject.looked)
        lost = None if value is None else (self.value - value) * (1 if self.subject.metric.better == "higher" else -1)
        changed = saturating(file, self.subject.looked) if self.subject.saturates else 0
        return State(lost, _noise(self.plain, found), changed)


def saturating(file: Path, samples: Samples) -> int:
    """Layers whose outputs some samples change where products saturate in 16 bits."""
    import onnx

    from edgekd.quantization.qdq.saturation import audit

    return sum(bool(layer.changed) for layer in audit(onnx.load(file), samples.first(64).inputs))


def _search(
    way: requantize.Way, findings: Sequence[Finding], order: Sequence[str], before: State, bench: _Bench, advance: Any
) -> tuple[list[Tried], Tried | None]:
    """(what was tried, what is taken): of what costs the device nothing the quietest that recovers, of trainings the
    first; then the fewest float layers, on top of what helps most; else what helps most."""
    tried: list[Tried] = []
    plain = remedies(findings, way.now)
    budget = MOST_TRAINED if way.trains else 100
    total = len(plain) + MOST_FLOAT

    def attempt(remedy: Remedy) -> Tried:
        path = bench.place / f"made-{len(tried)}.onnx"
        advance(len(tried), total, remedy.text)
        try:
            proof = way.make(remedy.settings, path)
            state = bench.state(path)
        except EdgekdError as error:
            tried.append(Tried(remedy, None, f"can't be made: {error.problems[0].message}"))
            return tried[-1]
        bench.files[remedy.text] = path, proof
        good = recovers(before, state, sound=bench.sound, trained=bench.trained)
        better = helps(before, state, sound=bench.sound, trained=bench.trained)
        tried.append(Tried(remedy, state, "recovers" if good else "helps" if better else "does not help"))
        return tried[-1]

    for remedy in plain[:budget]:
        if attempt(remedy).verdict == "recovers" and way.trains:
            return tried, tried[-1]
    good = [t for t in tried if t.verdict == "recovers"]
    if good:  # all of them cost the device the same
        return tried, min(good, key=lambda t: t.state.noise)
    best = _best(tried)
    start = best.remedy.settings if best is not None else {}
    for remedy in itertools.islice(in_float(order, way.now, start), max(0, min(MOST_FLOAT, budget - len(tried)))):
        if attempt(remedy).verdict == "recovers":
            return tried, tried[-1]
    return tried, _best(tried)


def _best(tried: Sequence[Tried]) -> Tried | None:
    """Of what helps that which loses least, then the quietest."""
    return min(
        (t for t in tried if t.verdict == "helps"),
        key=lambda t: (t.state.changed, t.state.lost or 0, t.state.noise),
        default=None,
    )


def _measured(
    subject: Subject,
    best: Tried,
    way: requantize.Way,
    tried: Sequence[Tried],
    before: State,
    bench: _Bench,
    advance: Any,
) -> Fixed:
    """The repaired file beside the one that it is for, on the samples that judge."""
    path, proof = bench.files[best.remedy.text]
    files, samples = {"plain": subject.float_file, "before": subject.int8_file, "after": path}, subject.judged
    answers = {name: bench.answers(file, samples) for name, file in files.items()}
    machine = environment.environment_id(environment.describe())
    metrics = [subject.metric] if subject.metric is not None else []
    figures = {}
    for name, file in files.items():
        there = probes.Subject(
            outputs=_outputs(answers[name]), labels=samples.labels, metrics=metrics, split=samples.split
        )
        found = [dataclasses.replace(m, threads=1, environment=machine) for m in quality.task_metrics(there)]
        snr = -decibel(_noise(answers["plain"], answers[name]))
        size = file.stat().st_size
        counted = figure(static.FILE_BYTES, size)
        quiet = figure(SIGNAL_TO_NOISE, snr, n=len(samples), split=samples.split, note=f"beside {subject.parent}")
        figures[name] = (*found, *([quiet] if name != "plain" else []), counted)
    change = None
    if metrics and samples.labels is not None:
        a, b = (metrics[0].records(_outputs(answers[name]), samples.labels) for name in ("after", "before"))
        change = intervals.paired_of(metrics[0], a, b)
        change = change if metrics[0].better == "higher" else (-change[0], -change[2], -change[1])
    compared = jobs.compare(
        subject.int8_file,
        path,
        samples.inputs,
        preset="quick",
        threads=subject.threads,
        folder=bench.place / "time",
        progress=advance,
    )
    return Fixed(
        id=subject.id,
        helped=True,
        recovered=best.verdict == "recovers",
        file=f"fixed/{subject.id}.onnx",
        sha256=sha256(path),
        remedy=best.remedy,
        lasting=way.lasting(best.remedy.settings),
        proof=proof,
        note=way.note,
        tried=tuple(tried),
        now=before,
        **figures,
        change=change,
        ratio=compared.ratio,
        control=compared.control,
        saturation=(saturating(subject.int8_file, subject.looked), saturating(path, subject.looked)),
    )


def _keep(subject: Subject, made: tuple[Path, str], fixed: Fixed) -> None:
    """The record first, the file last: a file that is there is whole and told of."""
    subject.home.mkdir(exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(fixed)}, indent=1, default=list) + "\n"
    write_atomic(subject.home / f"{subject.id}.json", text.encode())
    write_atomic(subject.home / f"{subject.id}.onnx", made[0].read_bytes())


def _writable(home: Path) -> None:
    import os

    place = home if home.exists() else home.parent
    if not os.access(place, os.W_OK) or (home.exists() and not home.is_dir()):
        raise UsageError(Problem(str(home), "can't be written", "copy the run to a folder of your own"))


def _outputs(answers: Mapping[str, np.ndarray]) -> Any:
    return bare(answers)


def _noise(plain: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Of all outputs but integers, on average."""
    return float(np.mean([noise(plain[n], found[n]) for n in plain if plain[n].dtype.kind == "f"] or [1e-12]))


# ---------------------------------------------------------------- the print


def _text(f: Fixed) -> str:
    lasting, f = "\n".join(map(plain, f.lasting.split("\n"))), plain(f)  # lines of our own
    head = f"fix of {f.id}"
    if f.helped is None:
        return f"{head}: {f.note}"
    rows = [
        ("remedy", "for", "lost to float", "signal to noise", ""),
        ("(as it is)", "", *_state(f.now), ""),
        *map(_row, f.tried),
    ]
    lines = [f"{head}: tried on validation", aligned(rows)]
    if f.file is None and not f.after:
        return "\n".join([*lines, f.note])
    says = "gives back what was lost" if f.recovered else "gives back a part of what was lost"
    lines += [
        "",
        f"{f.file or 'not kept'}: {f.remedy.text}; {says if f.helped else f.note}",
        _beside(f),
        f.proof,
        _pairs(f.saturation),
    ]
    if f.helped:
        lines += [f.note] * bool(f.note) + ["", f"to make it lasting: {lasting}"]
    return "\n".join(lines)


def _row(t: Tried) -> tuple[str, ...]:
    if t.state is None:
        return t.remedy.text, ", ".join(t.remedy.causes), "", "", t.verdict
    return t.remedy.text, ", ".join(t.remedy.causes), *_state(t.state), t.verdict


def _state(state: State) -> tuple[str, str]:
    return "" if state.lost is None else f"{state.lost:.2f}", f"{-decibel(state.noise):.1f} dB"


def _beside(f: Fixed) -> str:
    rows = [("", "float", "before", "after", "")]
    plain = {m.name: m for m in f.plain}
    for a, b in zip(f.before, f.after, strict=True):
        both = [_figure(m) for m in (plain.get(a.name), a, b)]
        change = ""
        if f.change is not None and a is f.before[0]:
            unit = "pt" if a.unit == "%" else a.unit
            change = (
                f"{f.change[0]:+.2f} {unit} [{f.change[1]:+.2f}, {f.change[2]:+.2f}] better, {a.n} samples of {a.split}"
            )
        rows.append((a.name, *both, change))
    if f.ratio is not None:
        told = (
            "interleaved, on this machine"
            if jobs.agrees(f.control)
            else "not to be trusted: the A/A control excludes 1"
        )
        rows.append(("latency", "", "1", f"{f.ratio[0]:.3f} [{f.ratio[1]:.3f}, {f.ratio[2]:.3f}]", told))
    return aligned(rows)


def _figure(m: Measurement | None) -> str:
    if m is None:
        return ""
    interval = f" [{number(m.low, 2)}, {number(m.high, 2)}]" if m.low < m.high else ""
    return (f"{m.value:,.0f}" if m.origin == "counted" else number(m.value, 2)) + f" {m.unit}{interval}"


def _pairs(found: tuple[int, int]) -> str:
    return f"layers that these samples saturate on AVX2 without VNNI: {found[0]} before, {found[1]} after"
