"""`explain --fix`: tries what could fix an int8 file, takes the cheapest that gives back what was lost, measures it.

Fixes are tried and chosen on validation, and the one taken is judged on test; of files with samples of their own, each
on every other sample. A fixed file is a new one in `fixed/`; what it was made from stays as it is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import environment, intervals, probes
from edgekd.errors import EdgekdError, UsageError
from edgekd.explain import requantize
from edgekd.explain.fixed import Fixed
from edgekd.explain.inputs import FromFiles, Subject
from edgekd.explain.trial import Bench, State, Tried, best, noise_of, saturating
from edgekd.files import sha256, unwritable, write_atomic
from edgekd.inputs import bare
from edgekd.measure import jobs
from edgekd.onnx_files import external
from edgekd.probes import figure, quality, static
from edgekd.probes.signal_to_noise import SIGNAL_TO_NOISE
from edgekd.quantization.diagnosis.fixes import Fix, fixes, in_float
from edgekd.quantization.diagnosis.layers import Finding
from edgekd.quantization.diagnosis.signal_to_noise import decibel
from edgekd.store.scratch import scratch

if TYPE_CHECKING:
    import numpy as np

    from edgekd.progress import Silent
    from edgekd.records import Measurement
    from edgekd.store.store import Store

SCHEMA = "edgekd.fix/1"
MOST_FLOAT = 8  # layers that are put into float, one more at a time
MOST_TRAINED = 4  # fixes that are tried where each is a training


def fix(
    subject: Subject, findings: Sequence[Finding], order: Sequence[str], trained: bool, store: Store, progress: Silent
) -> Fixed:
    """Fixes a subject by what was found of it; `order`: its layers, the one first that gives back most in float. Raises
    UsageError where the folder can't be written."""
    if not findings:
        return Fixed(subject.id, None, note="no layer loses accuracy that can be shown, so there is nothing to fix")
    if wrong := unwritable(subject.home, "copy the run to a folder of your own"):
        raise UsageError(*wrong)
    with scratch() as folder:
        way = requantize.way(subject, store, progress)
        bench = Bench(subject, Path(folder), trained)
        before = bench.state(subject.int8_file)
        with progress.task(f"fix {subject.id}") as advance:
            tried, taken = _search(way, findings, order, before, bench, advance)
        if taken is None:
            why = "nothing that was tried helps" if tried else "edgekd has no setting that could help"
            typed = isinstance(subject.source, FromFiles)
            note = f"{why}; no file is left"
            return Fixed(subject.id, False, note=note, tried=tuple(tried), now=before, typed=typed)
        with progress.task("measure the fixed file") as advance:
            made = dataclasses.replace(_measured(subject, taken, way, bench, advance), tried=tuple(tried), now=before)
        if made.change is not None and made.change[2] < 0:
            text = "it helps on the samples it was chosen by, and makes others worse: it is not kept"
            return dataclasses.replace(made, helped=False, recovered=False, file=None, sha256=None, note=text)
        _keep(subject, bench.files[taken.remedy.text][0], made)
        return made


def _search(
    way: requantize.Way, findings: Sequence[Finding], order: Sequence[str], before: State, bench: Bench, advance: Any
) -> tuple[list[Tried], Tried | None]:
    """(what was tried, what is taken): of what costs the device nothing that with the least noise that recovers, of
    trainings the first; then the fewest float layers, on top of what helps most; else what helps most."""
    tried: list[Tried] = []
    plain = fixes(findings, way.now)
    budget = MOST_TRAINED if way.trains else 100

    def recovers(one: Fix) -> bool:
        advance(len(tried), len(plain) + MOST_FLOAT, one.text)
        folder = bench.place / f"made-{len(tried)}"
        folder.mkdir()
        tried.append(_try(one, way, before, bench, folder / f"{bench.subject.id}.onnx"))
        return tried[-1].verdict == "recovers"

    for one in plain[:budget]:
        if recovers(one) and way.trains:
            return tried, tried[-1]
    good = [t for t in tried if t.verdict == "recovers"]
    if good:  # all of them cost the device the same
        return tried, min(good, key=lambda t: t.state.noise)
    start = helped.remedy.settings if (helped := best(tried)) is not None else {}
    for one in itertools.islice(in_float(order, way.now, start), max(0, min(MOST_FLOAT, budget - len(tried)))):
        if recovers(one):
            return tried, tried[-1]
    return tried, best(tried)


def _try(one: Fix, way: requantize.Way, before: State, bench: Bench, path: Path) -> Tried:
    try:
        proof = way.make(one.settings, path)
        state = bench.state(path)
    except EdgekdError as error:
        return Tried(one, None, f"can't be made: {error.problems[0].message}")
    bench.files[one.text] = path, proof
    return Tried(one, state, bench.verdict(before, state))


def _measured(subject: Subject, taken: Tried, way: requantize.Way, bench: Bench, advance: Any) -> Fixed:
    """The fixed file beside the one that it is for, on the samples that judge."""
    path, proof = bench.files[taken.remedy.text]
    files, samples = {"plain": subject.float_file, "before": subject.int8_file, "after": path}, subject.judged
    answers = {name: bench.answers(file, samples) for name, file in files.items()}
    compared = jobs.compare(
        subject.int8_file,
        path,
        samples.inputs,
        jobs.Session(preset="quick", threads=subject.threads, folder=bench.place / "time", progress=advance),
    )
    return Fixed(
        id=subject.id,
        helped=True,
        recovered=taken.verdict == "recovers",
        file=f"fixed/{subject.id}.onnx",
        sha256=sha256(path),
        remedy=taken.remedy,
        lasting=way.lasting(taken.remedy.settings),
        typed=isinstance(subject.source, FromFiles),
        proof=proof,
        note=way.note,
        plain=_figures(subject, files["plain"], answers["plain"]),
        before=_figures(subject, files["before"], answers["before"], answers["plain"]),
        after=_figures(subject, path, answers["after"], answers["plain"]),
        change=_change(subject, answers["before"], answers["after"]),
        ratio=compared.ratio,
        control=compared.control,
        saturation=(saturating(subject.int8_file, subject.looked), saturating(path, subject.looked)),
    )


def _figures(
    subject: Subject, file: Path, answers: Mapping[str, np.ndarray], plain: Mapping[str, np.ndarray] | None = None
) -> tuple[Measurement, ...]:
    """The metric of a file, its signal to noise beside what the float file answers (`plain`), its bytes."""
    samples, machine = subject.judged, environment.environment_id(environment.describe())
    metrics = [subject.metric] if subject.metric is not None else []
    there = probes.Subject(outputs=bare(answers), labels=samples.labels, metrics=metrics, split=samples.split)
    found = [dataclasses.replace(m, threads=1, environment=machine) for m in quality.task_metrics(there)]
    if plain is not None:
        snr, note = -decibel(noise_of(plain, answers)), f"beside {subject.parent}"
        found.append(figure(SIGNAL_TO_NOISE, snr, n=len(samples), split=samples.split, note=note))
    return (*found, figure(static.FILE_BYTES, external.size(file)))


def _change(
    subject: Subject, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> tuple[float, float, float] | None:
    """How much better the metric is, with its 95 % interval."""
    metric, labels = subject.metric, subject.judged.labels
    if metric is None or labels is None:
        return None
    value, low, high = intervals.paired_of(metric, *(metric.records(bare(a), labels) for a in (after, before)))
    return (value, low, high) if metric.better == "higher" else (-value, -high, -low)


def _keep(subject: Subject, made: Path, fixed: Fixed) -> None:
    """The record first, the file last: a file that is there is whole and told of."""
    subject.home.mkdir(exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(fixed)}, indent=1, default=list) + "\n"
    write_atomic(subject.home / f"{subject.id}.json", text.encode())
    for file in (*external.files(made), made):  # by the names that they have beside one another
        write_atomic(subject.home / file.name, file.read_bytes())
