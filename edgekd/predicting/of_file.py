"""The latency that a user's calibration of a target, or what is published of its core, predicts for a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import files
from edgekd import targets as devices
from edgekd.predicting import calibration, latency, shipped
from edgekd.predicting.work import work_of
from edgekd.probes import static
from edgekd.probes.times import AT_LEAST
from edgekd.records import Measurement, Target


def folder() -> Path:
    """Where a user's calibrations lie: EDGEKD_CALIBRATIONS, by default in the user's data folder."""
    found = files.home("XDG_DATA_HOME", ".local/share", "EDGEKD_CALIBRATIONS")
    return found if os.environ.get("EDGEKD_CALIBRATIONS") else found / "calibrations"


def known(target: Target) -> tuple[Any, ...]:
    """What the user timed of a target, with its core, runtime and threads; () where nothing was. A damaged file is an
    error, told with its place."""
    path, device = folder() / f"{target.name}.json", latency.device_of(target)
    core = None if device is None else device.core
    return (
        latency.rows_of(path, runtime=target.runtime.name, threads=target.threads, core=core) if path.is_file() else ()
    )


def known_as(target: Target) -> tuple[str, str]:
    """(calibrated, transferred or bound; what it rests on): how latencies are predicted for a target. ("", "") where
    they are not."""
    device = latency.device_of(target) if devices.runs(target) else None
    if device is None:
        return "", ""
    fitted = shipped.calibrate(device, runtime=target.runtime.name, rows=known(target), name=target.name)
    return ("bound", "") if fitted is None else (fitted.kind, fitted.note)


def predicted(
    path: Path, target: Target, sample: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Measurement, ...]:
    """The latency of a file on a target that nothing here times: `latency_p50_ms`, origin predicted, its note beginning
    with calibrated or transferred; of a core that nothing was timed on `latency_at_least_ms`, a bound. () where the
    target tells no core and clock, or takes no ONNX files, or the file does nothing that takes time, or a shape stays
    open, or an operator is unlike all that was timed."""
    return told(path, target, sample)[0]


def told(
    path: Path, target: Target, sample: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[tuple[Measurement, ...], str]:
    """(`predicted`, why the file keeps it from being said, or "")."""
    if not devices.runs(target) or not devices.deployment(target).is_onnx or latency.device_of(target) is None:
        return (), ""
    try:
        work = work_of(static.read(path), sample)
    except static.Open as error:
        first = error.problems[0]
        return (), f"its latency is not predicted: {': '.join(filter(None, (first.place, first.message)))}"
    found = latency.predict(work, target, rows=known(target)) if work else None
    if found is None:
        return (), ""
    made = calibration.measurement(found, target=target.name, threads=target.threads)
    if found.kind == "bound":
        made = dataclasses.replace(made, name=AT_LEAST.name, high=made.value)
    return (made,), ""
