"""The work of the verb `quantize` for a checked request: makes the int8 file, compares it with the float file and with
its simulation, and lists its layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import first_line
from edgekd.measure import jobs
from edgekd.measure.machine import runnable, user_error
from edgekd.onnx_files import external
from edgekd.progress import Silent
from edgekd.quantization.onnx_graph.placement import ASKED
from edgekd.report.int8 import Row
from edgekd.run.quantize_inputs import Given
from edgekd.store.scratch import scratch

if TYPE_CHECKING:
    import numpy as np

    from edgekd.quantization.diagnosis.signal_to_noise import Compared
    from edgekd.quantization.onnx_graph.convert import Made
    from edgekd.report.drop import Held
    from edgekd.report.speed import Speed

SHORT = "16-bit floats: calibrated in float32, and what stays in float is float32; inputs and outputs keep their types"
TIMED, LOSES = "int8 takes longer there", "int8 loses too much there"  # why it is in float
FLOAT32 = 1  # TensorProto.FLOAT
FEW = 32  # with fewer samples the ranges are a guess


@dataclass(frozen=True)
class Checked:
    """A checked int8 file: its `content`, (file name, bytes) of each part; `differ`: the number of values that differ
    from the simulation (None: not compared)."""

    content: list[tuple[str, bytes]]
    differ: int | None
    layers: tuple[Row, ...]
    audited: bool
    beside: Compared
    notes: tuple[str, ...]


def make(given: Given, ranges: str, progress: Silent) -> Made:
    from edgekd.quantization.onnx_graph import convert

    with scratch() as folder, user_error():
        jobs.tried({str(given.path): given.path}, given.calibration, folder=Path(folder))
    with progress.task("calibrate") as advance, runnable(str(given.path)):
        return convert.quantize(
            given.model,
            given.calibration,
            scheme=given.scheme,
            ranges=ranges,
            **given.adjust,
            place_name=str(given.path),
            fixed=given.fixed,
            progress=lambda done, of: advance(done, of, ""),
        )


def fast(given: Given, made: Made, ranges: str, progress: Silent) -> tuple[Made, Speed | None]:
    """(the file with those layers back in float whose int8 costs time, what was timed: None if nothing may be)."""
    from edgekd.run import quantize_speed

    if not given.timed:
        return made, None
    with user_error():
        speed = quantize_speed.measured(given, made, progress)
    if not speed.float_layers:
        return made, speed
    scheme = dataclasses.replace(given.scheme, float_layers=speed.float_layers)
    return make(dataclasses.replace(given, scheme=scheme), ranges, progress), speed


def held(
    given: Given, made: Made, speed: Speed | None, ranges: str, progress: Silent
) -> tuple[Given, Made, Speed | None, Held | None]:
    """(the request, the file and what was timed of it, such that it loses no more than it may; what was tried)."""
    from edgekd.run import quantize_drop, quantize_speed

    if given.allowed is None:
        return given, made, speed, None
    kept = tuple(known.label for known in made.placement.layers if known.reason == ASKED)
    given = dataclasses.replace(given, scheme=dataclasses.replace(given.scheme, float_layers=kept))
    with user_error():
        given, made, told = quantize_drop.held(given, made, ranges, given.allowed, progress)
        if told.held and speed is not None and len(given.scheme.float_layers) > len(kept):
            speed = quantize_speed.again(given, made, speed, progress)
    return given, made, speed, told


def explained(rows: Sequence[Row], asked: Collection[str], timed: Collection[str]) -> tuple[Row, ...]:
    """The rows with why layers are in float that nobody asked for: for the time (`timed`), or for what may be lost."""
    why = lambda row: TIMED if row.name in timed else LOSES
    mine = lambda row: row.reason == ASKED and row.name not in asked
    return tuple(dataclasses.replace(row, reason=why(row)) if mine(row) else row for row in rows)


def larger(made: Made, before: int) -> str:
    """Why the int8 file of a float file of `before` bytes is not smaller, where that is not for its layers."""
    if made.width == 2:
        return "the float file has 16-bit floats, and what stays in float has 32"
    stored = sum(math.prod(i.dims) * 4 for i in made.float_model.graph.initializer if i.data_type == FLOAT32)
    return "the float file computes weights that are stored here" if stored > before else ""


def look(given: Given, made: Made) -> Checked:
    from edgekd.quantization.diagnosis import signal_to_noise
    from edgekd.quantization.onnx_graph import checks

    few = checks.affordable(made.float_model, given.calibration)
    asked = [known.label for known in made.placement.layers if known.reason == ASKED]
    with scratch() as folder:
        content = checks.finished(made.model, given.out.name, asked)
        external.put(content, Path(folder))
        place = Path(folder) / given.out.name
        differ, reason = checks.simulated(place, few)
        layers, unaudited = _rows(made, few)
        found = signal_to_noise.files(given.path, place, given.compared)
    notes = (*filter(None, (reason, unaudited)), *_notes(given, found), *([SHORT] if made.width == 2 else []))
    return Checked(content, differ, layers, not unaudited, found, notes)


def _notes(given: Given, found: Compared) -> list[str]:
    notes = given.note.splitlines()
    if given.samples < FEW:
        few = "1 sample" if given.samples == 1 else f"{given.samples} samples"
        notes.append(f"calibrated on {few} only: values outside the ranges seen will be clipped; give {FEW} or more")
    notes += [f"output {text}: it is not compared" for text in found.left]
    labels = given.compared.labels
    if labels is not None and found.right is None:
        notes.append("`labels` were not used: they are not the class numbers that the only output gives, one each")
    if any(a.snr_db is not None and a.snr_db < 20 for a in found.agreements):
        advice = "`edgekd explain` says which layers lose it"
        more = ", and --max-drop looks for settings that lose less" if given.allowed is None else ""
        notes.append(f"less than 20 dB: {advice}{more}")
    return notes


def _rows(made: Made, few: Mapping[str, np.ndarray]) -> tuple[tuple[Row, ...], str]:
    """(a row for each layer and table; why saturation was not checked, or "")."""
    from edgekd.quantization.onnx_graph.convert import stored_bytes
    from edgekd.quantization.qdq import saturation

    try:
        audited, reason = {a.name.removesuffix(".raw"): a for a in saturation.audit(made.model, few)}, ""
    except Exception as error:
        audited, reason = {}, f"saturation was not checked: {first_line(error, 200)}"
    rows, sizes = [], stored_bytes(made)
    for layer in made.placement.layers:
        audit = audited.get(layer.name)
        more = {} if audit is None or layer.reason else {"can_saturate": audit.can_saturate, "changed": audit.changed}
        rows.append(Row(layer.label, layer.kind, *sizes[layer.name], layer.reason, **more))
    # a scale and a zero point per column
    rows += [Row(t.name, "table", made.width * t.elements, t.elements + 5 * t.columns, "") for t in made.tables]
    return tuple(rows), reason
