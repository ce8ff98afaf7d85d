"""Writes the files of a run's folder: models, predictions, bundles, reports and result.json."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekd import environment, intervals, results
from edgekd.delivery import bundle
from edgekd.files import write_atomic
from edgekd.inputs import named
from edgekd.models import streams
from edgekd.models.streams import Stream
from edgekd.records import Candidate, Result
from edgekd.report import markdown, page
from edgekd.run.evaluate import Observed
from edgekd.run.metric_records import Answered, Records, at
from edgekd.run.resolve import Resolved

GOLDEN = 8  # samples in a bundle's golden vectors


def write(run: Result, answered: Answered, observed: Sequence[Observed], folder: Path) -> Result:
    """Writes models and predictions of the front, the choice and the references; bundles; reports; result.json. Returns
    the result with the names of the files."""
    resolved, by_id = answered.resolved, {o.point.id: o for o in observed}
    shown = {id for t in run.targets.values() for id in (*t.front, t.chosen)} | set(run.references.values())
    for name in ("models", "predictions", "bundles"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    kept = tuple(_kept(c, by_id[c.id], answered, folder) if c.id in shown else c for c in run.candidates)
    means = _means(resolved, [answered.here["test"][c.id] for c in kept if c.id in shown])
    digests = results.digests(folder / "predictions")
    run = dataclasses.replace(run, candidates=kept, predictions=digests, means=means)
    results.write(run, folder / "result.json")
    for target, found in run.targets.items():
        if found.chosen is not None:
            _bundle(run, target, by_id[found.chosen], resolved, folder)
    markdown.write(folder)
    page.write(folder)
    return run


def _kept(candidate: Candidate, o: Observed, answered: Answered, folder: Path) -> Candidate:
    """Writes a candidate's file, and its outputs for the test split on this machine and elsewhere."""
    test, metrics = answered.resolved.data("test"), answered.resolved.task.metrics
    file = f"models/{candidate.id}{o.file.suffix}"
    write_atomic(folder / file, o.file.read_bytes())
    records = answered.here["test"]
    path = folder / "predictions" / f"{candidate.id}.npz"
    results.save_predictions(path, test.ids, test.digest, o.outputs["test"], records[candidate.id], metrics)
    for target, a in answered.elsewhere(candidate.id, "test").items():
        path = folder / "predictions" / results.executed(candidate.id, target)
        ids, ours = [test.ids[i] for i in a.rows], answered.records(a, "test")
        theirs = at(records.get(answered.teacher, {}), a.rows)
        results.save_predictions(path, ids, test.digest, a.there, ours, metrics, theirs)
    return dataclasses.replace(candidate, file=file)


def _bundle(run: Result, target: str, o: Observed, resolved: Resolved, folder: Path) -> None:
    inputs, outputs = golden(o, resolved)
    bundle.write(
        folder,
        run,
        o.point.id,
        target,
        golden_inputs=inputs,
        golden_outputs=outputs,
        golden="samples" if resolved.task.shareable else "synthetic",
        before=None if resolved.task.before is None else resolved.task.before(),
        states=None if (stream := streams.of_fact(o.artifact.facts)) is None else stream.states,
    )


def _means(resolved: Resolved, records: Sequence[Records]) -> dict[str, float]:
    """{metric: c} of the metrics that are c times the mean of their records: a gate can recompute these without the
    task's code."""
    found = {}
    for metric in resolved.task.metrics:
        times = {intervals.multiple_of_mean(metric, r[metric.name]) for r in records}
        if len(times) == 1 and None not in times:
            found[metric.name] = times.pop()
    return found


def golden(o: Observed, resolved: Resolved) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, the file's outputs for them): real samples if the task is shareable, else noise of their shape."""
    columns = resolved.data("test")
    if (stream := streams.of_fact(o.artifact.facts)) is not None:
        return _of_steps(o, resolved, stream)
    arrays = named(columns.inputs, resolved.task.inputs[0])
    rows = {name: a[:GOLDEN] for name, a in arrays.items()}
    if not resolved.task.shareable:
        whole = set(resolved.task.lengths.values())  # lengths are no noise
        rows = {name: a if name in whole else _noise(a, i) for i, (name, a) in enumerate(rows.items())}
    return rows, dict(environment.opened(o.point.deployment.runtime, o.file)(rows))


def _of_steps(o: Observed, resolved: Resolved, stream: Stream) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The first steps of a sequence, one after another: the states that go in are those that came out."""
    from edgekd.run import feeds

    steps = feeds.of(resolved.task, resolved.data("test"), stream=stream).take(slice(GOLDEN))
    rows = dict(steps.arrays)
    if not resolved.task.shareable:
        rows = {name: _noise(a, i) for i, (name, a) in enumerate(rows.items())}
    infer = environment.opened(o.point.deployment.runtime, o.file)
    taken, given = [], []
    state = {name: np.zeros((1, *shape), np.float32) for name, shape in stream.shapes.items()}
    for i in range(len(next(iter(rows.values())))):
        taken.append({**{name: a[i : i + 1] for name, a in rows.items()}, **state})
        given.append(infer(taken[-1]))
        state = {name: np.asarray(given[-1][output]) for name, output in stream.states.items()}
    stacked = lambda feeds: {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    return stacked(taken), stacked(given)


def _noise(like: np.ndarray, seed: int) -> np.ndarray:
    """Seeded random values with the shape and type of `like`."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=like.shape).astype(like.dtype)
        if like.dtype.kind == "f"
        else rng.integers(0, 2, like.shape).astype(like.dtype)
    )
