"""Sequences run through a streaming model: its steps, each with the states that the model made before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.measure import jobs
from edgekd.measure.machine import runnable, user_error
from edgekd.samples.rows import Samples
from edgekd.samples.sequences import Sequences, answered


def steps(path: Path, sequences: Sequences, folder: Path, rows: np.ndarray | None = None) -> Samples:
    """The steps of these sequences (default: all) as an ONNX file in onnxruntime runs them. Raises UsageError where it
    can't."""
    from edgekd.runtimes.onnxruntime import load

    with user_error():
        jobs.tried({str(path): path}, sequences.steps(None), folder=folder / "first")
    with runnable(str(path)):
        return sequences.steps(load(str(path), 1), rows)


def score(path: Path, samples: Samples, folder: Path) -> dict[str, np.ndarray]:
    """{output: [n, ...]} of an ONNX file in onnxruntime here; of steps of sequences with the states that the file
    makes. Raises UsageError or RunFailed where it can't be run."""
    from edgekd.runtimes.onnxruntime import load

    if not samples.states:
        return jobs.score(path, samples, folder=folder)
    jobs.tried({str(path): path}, samples, folder=folder)
    with runnable(str(path)):
        made = list(answered(load(str(path), 1), samples, 1))
    first = lambda o, a: np.moveaxis(np.atleast_1d(a), samples.answers.get(o, 0), 0)
    return {o: np.concatenate([first(o, m[o]) for m in made]) for o in made[0]}
