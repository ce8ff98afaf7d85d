"""What `quantize` was asked for, checked: every problem of the command at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd import components, targets
from edgekd.errors import Problem, UsageError, gathered
from edgekd.files import unwritable
from edgekd.measure import rolled
from edgekd.probes import static
from edgekd.run import allowed_drop, quantize_interface, target_settings
from edgekd.run.quantize_interface import Interface
from edgekd.samples import axes
from edgekd.samples import read as reader
from edgekd.samples.rows import Samples
from edgekd.samples.signature import Signature, of_model
from edgekd.samples.source import Source, overwritten, refused_random
from edgekd.samples.split import ENOUGH, divided, of_sequences, spread
from edgekd.store.scratch import scratch

if TYPE_CHECKING:
    import onnx

    from edgekd.records import Scheme, Target
    from edgekd.run.allowed_drop import Allowed
    from edgekd.samples.sequences import Sequences


@dataclass(frozen=True)
class Asked:
    """What a person asks for, as the verb says it. `like`: an int8 file whose float layers are taken too;
    `slower_int8`: int8 may be slower; `on`: a board; `max_drop`: see `allowed_drop`."""

    model: Path | str
    source: Source
    out: Path | str
    target: str
    ranges: str = "minmax"
    weight_bits: int | None = None
    full_range: bool = False
    samples: int = 512
    float_layers: Sequence[str] = ()
    like: Path | str | None = None
    slower_int8: bool = False
    on: str | None = None
    max_drop: str | None = None
    equalize: bool = False
    correct_bias: bool = False
    interface: Interface = field(default_factory=Interface)

    @property
    def settled(self) -> list[str]:
        """The options that say which layers stay float: nothing is timed then."""
        given = {"--float-layer": self.float_layers, "--like": self.like, "--slower-int8": self.slower_int8}
        return [name for name, value in given.items() if value]

    @property
    def words(self) -> tuple[str, ...]:
        """The command, but for ranges, float layers, `equalize` and `correct_bias`."""
        words = ["edgekd", "quantize", str(self.model), *self.source.words(), "--out", str(self.out)]
        words += ["--target", self.target, "--samples", str(self.samples), *["--full-range"] * self.full_range]
        words += [] if self.weight_bits is None else ["--weight-bits", str(self.weight_bits)]
        return (*words, *self.interface.words())


@dataclass(frozen=True)
class Given:
    """What was asked for, checked: samples for `calibration`, and those that are `compared` (`unused`: calibration sees
    none of the latter), with labels if there are some. `note`: how the data was read; `timed`: whether times may send
    layers back to float, `on` a board or here; `allowed`: what may be lost; `words`: the command, but for ranges, float
    layers and `adjust`, what `convert` does besides. `fixed` {value: its range}; `pixels` {image that
    takes pixels less a zero point: that one}."""

    path: Path
    out: Path
    model: onnx.ModelProto
    calibration: Samples
    compared: Samples
    unused: bool
    scheme: Scheme
    target: Target
    note: str = ""
    timed: bool = True
    on: str | None = None
    allowed: Allowed | None = None
    words: tuple[str, ...] = ()
    adjust: Mapping[str, bool] = field(default_factory=dict)
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pixels: Mapping[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return len(self.calibration)


def checked(asked: Asked) -> Given:
    """Raises UsageError with every problem."""
    from edgekd.quantization.onnx_graph import checks, normalize

    problems: list[Problem] = []
    path, source = Path(asked.model), asked.source
    why = "random values have not the ranges of real ones: nothing is calibrated by them"
    gathered(lambda: refused_random(source, why), problems)
    wrong_data = bool(problems)
    parsed = gathered(lambda: static.read(path), problems)
    device = gathered(lambda: targets.load(asked.target), problems)
    gathered(lambda: components.find("ranges", asked.ranges), problems)
    problems += normalize.problems(parsed, str(path)) if parsed is not None else []
    problems += _not_an_output(Path(asked.out), path, source, asked.like)
    if parsed is not None:
        problems += quantize_interface.problems(parsed, asked.interface, {*source.states, *source.states.values()})
    if asked.samples < 1:
        problems.append(Problem("--samples", f"{asked.samples} is not a number of samples", "a number from 1"))
    if asked.on is not None and asked.settled:
        why = " and ".join(asked.settled)
        problems.append(Problem("--on", f"is for times, and nothing is timed with {why}", "leave one of them out"))
    like = () if asked.like is None else gathered(lambda: checks.float_layers(Path(asked.like)), problems) or ()
    problems += _wrong_bits(device, asked.weight_bits, asked.full_range)
    left_out: list[str] = []
    parts: list[np.ndarray] = []  # numbers of the samples that calibrate, and of those that are compared

    def choose(total: int, size: int | None) -> np.ndarray:
        parts[:] = divided(total, max(asked.samples, 1), size)
        left_out.append(_left_out(total, size, *map(len, parts)))
        return np.concatenate(parts)

    signature = None if parsed is None else of_model(parsed)
    if not wrong_data:
        found = gathered(lambda: _data(source, signature, choose), problems)
    if asked.max_drop is not None:
        gathered(lambda: allowed_drop.form(asked.max_drop), problems)
    if problems:
        raise UsageError(*problems)
    wide = {"pairs16": False} if asked.full_range else {}
    layers = tuple(dict.fromkeys((*asked.float_layers, *like)))
    bits = asked.weight_bits or device.int8.weight_bits
    scheme = target_settings.scheme([device], weight_bits=bits, float_layers=layers, **wide)
    if isinstance(found, reader.Given):
        calibration = found.samples.take(slice(0, len(parts[0])))
        compared = found.samples.take(slice(len(parts[0]), None)) if len(parts[1]) else calibration
        unused, note = len(parts[1]) > 0, found.note
    else:
        calibration, compared, unused, note = _run(path, found, asked.samples)
    # of a folder each file is a sample
    guessed = axes.doubtful(signature, calibration.axes, source.axes) if Path(source.place).is_file() else []
    given = Given(
        path,
        Path(asked.out),
        parsed,
        calibration,
        compared,
        unused,
        scheme,
        device,
        "\n".join(filter(None, (note, *left_out, *guessed))),
        timed=not asked.settled,
        on=asked.on,
        words=asked.words,
        adjust={"equalize": asked.equalize, "correct_bias": asked.correct_bias},
    )
    return given if asked.max_drop is None else replace(given, allowed=_allowed(given, asked.max_drop))


def _allowed(given: Given, text: str) -> Allowed:
    """What may be lost. Raises UsageError where no samples are held out to judge it by."""
    if not given.unused:
        hint = f"give {ENOUGH} or more: every fourth is held out then, half of them to judge"
        raise UsageError(Problem("--max-drop", "is judged on held-out samples, and these are too few", hint))
    if given.compared.states or given.compared.alone:
        raise UsageError(Problem("--max-drop", "is for samples of one shape, not for sequences", "leave it out"))
    return allowed_drop.parsed(text, given.compared.labels)


def _data(source: Source, signature: Signature | None, choose: reader.Choose) -> reader.Given | Sequences | None:
    """The samples or the sequences of the data; without a model only what is wrong with the file."""
    if signature is None:
        reader.readable(source)
        return None
    if source.states:
        return reader.read_sequences(source, signature)
    return reader.read(source, signature, choose)


def _left_out(total: int, size: int | None, calibrated: int, compared: int) -> str:
    """Which samples a file that takes `size` at once leaves out; "" where none are."""
    left = total - calibrated - compared
    if not left or (size or 1) == 1:
        return ""
    both = f"{calibrated} calibrate, {compared} are compared" if compared else f"{calibrated} calibrate"
    return f"{left} of {total} samples are left out, spread evenly: the file takes {size} at once, so that {both}"


def _run(path: Path, found: Sequences, samples: int) -> tuple[Samples, Samples, bool, str]:
    """The steps of sequences, with the states that the float file makes: those that calibrate are spread over theirs,
    those that are compared are whole sequences. Also what there is to know of that."""
    calibrated, kept = of_sequences(found.lengths, samples)
    with scratch() as folder:
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


def _not_an_output(out: Path, model: Path, source: Source, like: Path | str | None) -> list[Problem]:
    """Why the int8 file can't be written as `out`."""
    wrong = overwritten(out, [model], source, {"the file of --like": like}, "--out")
    if wrong:
        return wrong
    if not out.parent.is_dir():
        return [Problem(str(out), f"there is no folder {out.parent}", "create it first")]
    return unwritable(out.parent, "choose another folder with --out")
