"""The latency of a network on a target, by the best that is known: its own rows, its core's, or a bound.

work = work_of(static.read("model.onnx"))
found = predict(work, targets.load("raspberry-pi-4"), rows=rows_of("raspberry-pi-4.json", threads=4))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.errors import Problem, UsageError
from edgekd.predicting import bound, calibration, costs, shipped
from edgekd.predicting.calibration import Prediction
from edgekd.predicting.costs import Precision
from edgekd.predicting.population import Device, Row
from edgekd.predicting.work import Operator
from edgekd.records import Target


def device_of(target: Target) -> Device | None:
    """A target's traits: its core, for x86 by features. None where the core or its clock isn't known; a substitute of
    an emulator says nothing of time.

    `half` is False: onnxruntime computes float32 networks in 32 bits."""
    if target.clock_mhz is None:
        return None
    if target.architecture == "x86-64":
        core = next(
            (core for feature, core in (("avx512f", "avx512"), ("avx2", "avx2")) if feature in target.features), "sse42"
        )
    elif target.core is not None:
        core = target.core
    else:
        return None
    return Device(core, target.clock_mhz / 1000, target.threads)


def rows_of(path: Path, *, runtime: str, threads: int, core: str | None = None) -> tuple[Row, ...]:
    """The rows of a user's calibration file that were timed with so many threads, on such a core (None: any). Raises
    UsageError for a file of another runtime."""
    board = shipped.read(path)
    if board.runtime != runtime:
        raise UsageError(
            Problem(str(path), f"was timed with {board.runtime}, not {runtime}", "run `edgekd targets calibrate` again")
        )
    return tuple(
        row
        for table in board.tables
        if table.device.threads == threads and core in (None, table.device.core)
        for row in table.rows
    )


def predict(
    work: Sequence[Operator],
    target: Target,
    *,
    precision: Precision | None = None,
    rows: Sequence[Row] = (),
) -> Prediction | None:
    """The latency of a network on a target, of each operator as its file has it unless all are to be of one
    `precision`; None where not even a bound can be said, because the target doesn't say its core and clock, or the
    network does nothing that costs time."""
    device = device_of(target)
    if device is None or not costs.costs(work).any():
        return None
    fitted = shipped.calibrate(device, runtime=target.runtime.name, rows=rows, name=target.name)
    if fitted is None:
        return bound.bound(work, device, precision=precision, features=target.features)
    return calibration.predict(work, fitted, precision=precision)
