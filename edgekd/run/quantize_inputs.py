"""What `quantize` was asked for, checked: every problem of the command at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd import components, targets
from edgekd.errors import Problem, UsageError, gathered
from edgekd.files import unwritable
from edgekd.inputs import length
from edgekd.measure.samples import read_arrays
from edgekd.probes import static
from edgekd.run import target_settings

if TYPE_CHECKING:
    import onnx

    from edgekd.records import Scheme, Target


@dataclass(frozen=True)
class Given:
    """What was asked for, checked: `calibration` and `compared` samples {input: [n, ...]} (`unused`: calibration sees
    none of the latter), `labels` of the latter."""

    path: Path
    out: Path
    model: onnx.ModelProto
    calibration: Mapping[str, np.ndarray]
    compared: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    unused: bool
    scheme: Scheme
    target: Target

    @property
    def samples(self) -> int:
        return length(self.calibration)


def checked(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    target: str,
    *,
    ranges: str,
    weight_bits: int | None,
    full_range: bool,
    samples: int,
    float_layers: Sequence[str],
) -> Given:
    """Raises UsageError with every problem."""
    from edgekd.quantization.onnx_graph import normalize
    from edgekd.quantization.onnx_graph.samples import divided, inputs_of

    problems: list[Problem] = []

    path = Path(model)
    parsed = gathered(lambda: static.read(path), problems)
    arrays, labels = gathered(lambda: read_arrays(Path(data)), problems) or (None, None)
    device = gathered(lambda: targets.load(target), problems)
    gathered(lambda: components.find("ranges", ranges), problems)
    problems += normalize.problems(parsed, str(path)) if parsed is not None else []
    problems += _not_an_output(Path(out), path)
    if samples < 1:
        problems.append(Problem("--samples", f"{samples} is not a number of samples", "a number from 1"))
    problems += _wrong_bits(device, weight_bits, full_range)
    if parsed is not None and arrays is not None:
        every = lambda count: np.concatenate(divided(count, max(samples, 1), parsed))
        given, wrong = inputs_of(parsed, arrays, str(data), every)
        problems += wrong
    if problems:
        raise UsageError(*problems)
    bits = weight_bits or device.int8.weight_bits
    wide = {"pairs16": False} if full_range else {}
    scheme = target_settings.scheme([device], weight_bits=bits, float_layers=tuple(float_layers), **wide)
    calibrated, kept = divided(length(arrays), samples, parsed)
    calibration = {name: a[: len(calibrated)] for name, a in given.items()}
    compared = {name: a[len(calibrated) :] for name, a in given.items()} if len(kept) else calibration
    labels = None if labels is None else labels[kept if len(kept) else calibrated]
    return Given(path, Path(out), parsed, calibration, compared, labels, len(kept) > 0, scheme, device)


def _wrong_bits(device: Target | None, weight_bits: int | None, full_range: bool) -> list[Problem]:
    """What is wrong with the range of the weights for a target."""
    if weight_bits not in (None, 7, 8):
        return [Problem("--weight-bits", f"{weight_bits} is not 7 or 8")]
    if device is None:
        return []
    problems = []
    if (weight_bits or 0) > device.int8.weight_bits:
        text = f"is {weight_bits}, and the kernels of {device.name} take weights of {device.int8.weight_bits} bits"
        problems.append(Problem("--weight-bits", text, "leave it out"))
    if full_range and (weight_bits or device.int8.weight_bits) == 8 and targets.saturates(device):
        text = f"{device.name} adds the products of two bytes in 16 bits, where weights of the full range saturate"
        problems.append(Problem("--full-range", text, "leave it out, or give --weight-bits 7"))
    return problems


def _not_an_output(out: Path, model: Path) -> list[Problem]:
    """Why the int8 file can't be written as `out`."""
    if out.is_dir():
        return [Problem(str(out), "is a folder", "name a file")]
    if not out.parent.is_dir():
        return [Problem(str(out), f"there is no folder {out.parent}", "create it first")]
    if model.exists() and out.exists() and out.samefile(model):
        return [Problem(str(out), "is the model itself", "give --out another name: the float file is needed again")]
    return unwritable(out.parent, "choose another folder with --out")
