"""Sequences run through a streaming model: its steps, each with the states that the model made before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.measure import jobs
from edgekd.measure.machine import runnable, user_error
from edgekd.samples.rows import Samples
from edgekd.samples.sequences import Sequences


def steps(path: Path, sequences: Sequences, folder: Path, rows: np.ndarray | None = None) -> Samples:
    """The steps of these sequences (default: all) as an ONNX file in onnxruntime runs them. Raises UsageError where it
    can't."""
    from edgekd.runtimes.onnxruntime import load

    with user_error():
        jobs.tried({str(path): path}, sequences.steps(None), folder=folder / "first")
    with runnable(str(path)):
        return sequences.steps(load(str(path), 1), rows)
