"""What `quantize` was asked for, checked: every problem of the command at once."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd import components, targets
from edgekd.errors import Problem, UsageError, gathered
from edgekd.files import unwritable
from edgekd.measure import rolled
from edgekd.probes import static
from edgekd.run import quantize_interface, target_settings
from edgekd.run.quantize_interface import Interface
from edgekd.samples import read as reader
from edgekd.samples.rows import Samples
from edgekd.samples.signature import Signature, of_model
from edgekd.samples.source import Source, refused_random
from edgekd.samples.split import divided, of_sequences, spread

if TYPE_CHECKING:
    import onnx

    from edgekd.records import Scheme, Target
    from edgekd.samples.sequences import Sequences


@dataclass(frozen=True)
class Given:
    """What was asked for, checked: samples for `calibration`, and those that are `compared` (`unused`: calibration sees
    none of the latter), with labels if there are some. `note`: how the data was read. `fixed` {value: its range};
    `pixels` {image that takes pixels less a zero point: that one}."""

    path: Path
    out: Path
    model: onnx.ModelProto
    calibration: Samples
    compared: Samples
    unused: bool
    scheme: Scheme
    target: Target
    note: str = ""
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pixels: Mapping[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return len(self.calibration)


def checked(
    model: Path | str,
    source: Source,
    out: Path | str,
    target: str,
    *,
    ranges: str,
    weight_bits: int | None,
    full_range: bool,
    samples: int,
    float_layers: Sequence[str],
    interface: Interface = Interface(),  # noqa: B008  (frozen)
) -> Given:
    """Raises UsageError with every problem."""
    from edgekd.quantization.onnx_graph import normalize

    problems: list[Problem] = []

    path = Path(model)
    why = "random values have not the ranges of real ones: nothing is calibrated by them"
    gathered(lambda: refused_random(source, why), problems)
    wrong_data = bool(problems)
    parsed = gathered(lambda: static.read(path), problems)
    device = gathered(lambda: targets.load(target), problems)
    gathered(lambda: components.find("ranges", ranges), problems)
    problems += normalize.problems(parsed, str(path)) if parsed is not None else []
    problems += _not_an_output(Path(out), path)
    gathered(lambda: quantize_interface.possible(parsed, interface) if parsed is not None else None, problems)
    if samples < 1:
        problems.append(Problem("--samples", f"{samples} is not a number of samples", "a number from 1"))
    problems += _wrong_bits(device, weight_bits, full_range)
    parts: list[np.ndarray] = []  # numbers of the samples that calibrate, and of those that are compared

    def choose(total: int, size: int | None) -> np.ndarray:
        parts[:] = divided(total, max(samples, 1), size)
        return np.concatenate(parts)

    if not wrong_data:
        signature = None if parsed is None else of_model(parsed)
        found = gathered(lambda: _data(source, signature, choose), problems)
    if problems:
        raise UsageError(*problems)
    bits = weight_bits or device.int8.weight_bits
    wide = {"pairs16": False} if full_range else {}
    scheme = target_settings.scheme([device], weight_bits=bits, float_layers=tuple(float_layers), **wide)
    if isinstance(found, reader.Given):
        calibration = found.samples.take(slice(0, len(parts[0])))
        compared = found.samples.take(slice(len(parts[0]), None)) if len(parts[1]) else calibration
        return Given(path, Path(out), parsed, calibration, compared, len(parts[1]) > 0, scheme, device, found.note)
    *taken, note = _run(path, found, samples)
    return Given(path, Path(out), parsed, *taken, scheme, device, note)


def _data(source: Source, signature: Signature | None, choose: reader.Choose) -> reader.Given | Sequences | None:
    """The samples or the sequences of the data; without a model only what is wrong with the file."""
    if signature is None:
        reader.readable(source)
        return None
    if source.states:
        return reader.read_sequences(source, signature)
    return reader.read(source, signature, choose)


def _run(path: Path, found: Sequences, samples: int) -> tuple[Samples, Samples, bool, str]:
    """The steps of sequences, with the states that the float file makes: those that calibrate are spread over theirs,
    those that are compared are whole sequences. Also what there is to know of that."""
    calibrated, kept = of_sequences(found.lengths, samples)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        every = rolled.steps(path, found, Path(folder), calibrated)
        compared = rolled.steps(path, found, Path(folder), kept) if len(kept) else every
    others = f"{len(kept)} others" if len(kept) else "the same"
    note = f"samples are steps: of {len(calibrated)} sequences for calibration, and of {others} to compare, where each "
    note += "file goes on with its own states"
    return every.take(spread(len(every), samples)), compared, len(kept) > 0, note


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
