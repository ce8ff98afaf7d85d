"""The verb `quantize`: a float ONNX file from anywhere and samples of its inputs become an int8 file that was checked."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import components, measure, targets
from edgekd.errors import PASSED, Problem, RunFailed, UsageError, plain
from edgekd.files import write_atomic
from edgekd.probes import static
from edgekd.report.progress import reporter
from edgekd.samples import read_arrays
from edgekd.standing import runnable, user_error

if TYPE_CHECKING:
    import onnx

    from edgekd.quantization.foreign import Made
    from edgekd.quantization.placing import Layer

FEW = 32  # samples below which the ranges are a guess
WORK = 2 * 10**9  # multiply-accumulates that the checks in numpy may take


@dataclass(frozen=True)
class Row:
    """A layer. `before`, `after` bytes of its weights and bias (0 for a product of two values); `reason` why it stays float, or "";
    `saturates` {can, changed}: whether its products can leave 16 bits on AVX2 without VNNI, and the share of its outputs that came out otherwise."""

    name: str
    kind: str
    before: int
    after: int
    reason: str = ""
    can_saturate: bool = False
    changed: float | None = None


@dataclass(frozen=True)
class Agreement:
    """An output of the int8 file beside the float file's: signal to noise in dB, and the share of samples with the same greatest entry, None where an
    output is no row of scores."""

    output: str
    snr_db: float
    answers: float | None


@dataclass(frozen=True)
class Quantized:
    """What `quantize` made. Prints as a table. `differ`: values of integer operators that onnxruntime computes otherwise than simulated; None if it
    could not be checked; `audited` whether saturation was looked at. `top1`: (float, int8) where the data has labels."""

    model: str
    out: str
    before: int
    after: int
    target: str
    weight_bits: int
    samples: int
    layers: tuple[Row, ...]
    agreements: tuple[Agreement, ...]
    differ: int | None
    audited: bool = True
    top1: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    exit_code: int = PASSED

    def __str__(self) -> str:
        self = plain(self)
        integer = [r for r in self.layers if not r.reason]
        head = f"{self.model} -> {self.out}: {self.before:,} -> {self.after:,} bytes ({_ratio(self.before, self.after)}), "
        head += f"{len(integer)} of {len(self.layers)} layers in int8, weights of {self.weight_bits} bits for {self.target}"
        parts = [head, _table(self.layers), _agreement(self), _saturation(self)]
        return "\n\n".join(p for p in (*parts, "\n".join(self.notes)) if p)


def quantize(
    model: Path | str,
    *,
    data: Path | str,
    out: Path | str,
    target: str = "host",
    ranges: str = "minmax",
    weight_bits: int | None = None,
    full_range: bool = False,
    samples: int = 512,
    float_layers: Sequence[str] = (),
    quiet: bool = True,
) -> Quantized:
    """Quantizes `model` by up to `samples` of `data`, an .npz with `inputs` (or an array per input name) and optionally `labels`, and writes `out`;
    `float_layers` (names as the table shows them) stay float. `full_range`: weights take all of int8, and the file may answer otherwise on x86
    with AVX2 and without VNNI.

    Raises UsageError with every problem of what was given; RunFailed where onnxruntime computes the file otherwise than it says."""
    from edgekd.quantization import foreign

    path, parsed, arrays, labels, scheme = _checked(model, data, out, target, ranges, weight_bits, full_range, samples)
    scheme = dataclasses.replace(scheme, float_layers=tuple(float_layers))
    progress, notes = reporter(quiet), []
    count = len(next(iter(arrays.values())))
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, user_error():
            measure.tried({str(path): path}, arrays, folder=Path(folder))
        with progress.task("calibrate") as advance, runnable(str(path)):
            made = foreign.quantize(
                parsed, arrays, scheme=scheme, ranges=ranges, place_name=str(path), progress=lambda done, of: advance(done, of, "")
            )
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, progress.task("check the file"):
            place = Path(folder) / "int8.onnx"
            content = finished(made.model)
            place.write_bytes(content)
            few = {name: a[: affordable(made.float_model, foreign.fixed_rows(parsed), count)] for name, a in arrays.items()}
            differ = simulated(place, few, notes)
            layers, audited = _rows(made, place, few, notes)
            agreements, top1 = _beside(path, place, arrays, labels, foreign.fixed_rows(parsed))
    finally:
        progress.close()
    try:
        write_atomic(out, content)
    except OSError as error:
        raise UsageError(Problem(str(out), f"can't be written: {error.strerror}")) from None
    if count < FEW:
        few_samples = "1 sample" if count == 1 else f"{count} samples"
        notes.append(f"calibrated on {few_samples} only: values outside the ranges seen will be clipped; give {FEW} or more")
    if any(a.snr_db < 20 for a in agreements):
        notes.append("less than 20 dB: try --ranges percentile or mse, or keep this model in float")
    sizes = path.stat().st_size, len(content)
    return Quantized(path.name, str(out), *sizes, target, scheme.weight_bits, count, layers, agreements, differ, audited, top1, tuple(notes))


# ---------------------------------------------------------------- what was given


def _checked(model: Any, data: Any, out: Any, target: str, ranges: str, weight_bits: int | None, full_range: bool, samples: int) -> tuple:
    """(path, parsed file, {input: samples}, labels, scheme), or every problem at once."""
    from edgekd.quantization import normal

    problems: list[Problem] = []

    def tried(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except UsageError as error:
            problems.extend(error.problems)
            return None

    path = Path(model)
    parsed = tried(lambda: static.read(path))
    given = tried(lambda: read_arrays(Path(data)))
    device = tried(lambda: targets.load(target))
    tried(lambda: components.find("ranges", ranges))
    problems += normal.problems(parsed, str(path)) if parsed is not None else []
    problems += _unwritable(Path(out), path)
    if samples < 1:
        problems.append(Problem("--samples", f"{samples} are none", "a number from 1"))
    if weight_bits not in (None, 7, 8):
        problems.append(Problem("--weight-bits", f"{weight_bits} is not 7 or 8"))
    elif device is not None and (weight_bits or 0) > device.int8.weight_bits:
        text = f"is {weight_bits}, and the kernels of {device.name} take weights of {device.int8.weight_bits} bits"
        problems.append(Problem("--weight-bits", text, "leave it out"))
    bits = weight_bits or (device.int8.weight_bits if device is not None else 8)
    if full_range and device is not None and bits == 8 and targets.saturates(device):
        text = f"{device.name} adds the products of two bytes in 16 bits, where weights of the full range saturate"
        problems.append(Problem("--full-range", text, "leave it out, or give --weight-bits 7"))
    arrays = None
    if parsed is not None and given is not None:
        arrays, wrong = inputs_of(parsed, given[0], str(data), max(samples, 1))
        problems += wrong
    if problems:
        raise UsageError(*problems)
    scheme = dataclasses.replace(device.int8, weight_bits=bits, pairs16=device.int8.pairs16 and not full_range)
    labels = None if given[1] is None else given[1][chosen(len(given[1]), samples, parsed)]
    return path, parsed, arrays, labels, scheme


def _unwritable(out: Path, model: Path) -> list[Problem]:
    if out.is_dir():
        return [Problem(str(out), "is a folder", "name a file")]
    if not out.parent.is_dir():
        return [Problem(str(out), f"there is no folder {out.parent}", "create it first")]
    if not os.access(out.parent, os.W_OK):
        return [Problem(str(out), "can't be written: its folder is read-only")]
    if model.exists() and out.exists() and out.samefile(model):
        return [Problem(str(out), "is the model itself", "give --out another name: the float file is needed again")]
    return []


def inputs_of(model: onnx.ModelProto, given: Mapping[str, np.ndarray], place: str, samples: int) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """({input: samples in its type}, problems): names, shapes, types, numbers that are not finite."""
    stored = {i.name for i in model.graph.initializer}
    wanted = {i.name: i.type.tensor_type for i in model.graph.input if i.name not in stored}
    if "" in given:
        if len(wanted) > 1:
            return {}, [Problem(place, f"has one array `inputs`, and the model takes {', '.join(wanted)}", "give one array per input name")]
        given = {next(iter(wanted)): given[""]} if wanted else {}
    if not wanted:
        return {}, [Problem(place, "is for a model that takes no input", "a file that computes the same every time has no ranges")]
    problems = [Problem(place, f"has no array for the input {name}", f"it has {', '.join(given)}") for name in wanted if name not in given]
    problems += [Problem(place, f"{name} is no input of the model", f"its inputs: {', '.join(wanted)}") for name in given if name not in wanted]
    found = {}
    for name, array in given.items():
        if name not in wanted:
            continue
        kind, dims = static.dtype(wanted[name].elem_type), wanted[name].shape.dim
        shape = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        fits = (
            not wanted[name].HasField("shape")
            or len(shape) == array.ndim
            and all(w in (None, h) for w, h in zip(shape[1:], array.shape[1:], strict=True))
        )
        if not fits:
            shown = ", ".join("n" if i == 0 else "any" if d is None else str(d) for i, d in enumerate(shape))
            problems.append(Problem(place, f"{name} has samples of shape {list(array.shape[1:])}, the model takes [{shown}]"))
        elif shape and shape[0] is not None and len(array) < shape[0]:
            problems.append(Problem(place, f"{name} has {len(array)} samples, the model takes {shape[0]} at once"))
        elif kind is None or array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, kind, "same_kind"):
            problems.append(Problem(place, f"{name} is {array.dtype}, the model takes {kind}"))
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = int((~np.isfinite(array.reshape(len(array), -1))).any(1).sum())
            problems.append(Problem(place, f"{name} holds numbers that are not finite, in {rows} of {len(array)} samples", "leave these samples out"))
        else:
            found[name] = np.ascontiguousarray(array[chosen(len(array), samples, model)].astype(kind))
    return found, problems


def chosen(count: int, samples: int, model: onnx.ModelProto) -> np.ndarray:
    """Rows spread evenly over the data, which may be sorted; whole batches where the file takes only these."""
    from edgekd.quantization.foreign import fixed_rows

    size = fixed_rows(model) or 1
    wanted = max(size, min(count, samples) // size * size)
    return np.linspace(0, count - 1, wanted).round().astype(np.int64)


# ---------------------------------------------------------------- what was made


def finished(model: onnx.ModelProto) -> bytes:
    import onnx

    from edgekd import __version__

    model.producer_name, model.producer_version = "edgekd", __version__
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = ""  # stack traces of whoever exported it
        del part.metadata_props[:]
    kept = {p.key: p.value for p in model.metadata_props} | {"edgekd.schema": "edgekd.onnx/1"}
    onnx.helper.set_model_props(model, kept)
    return model.SerializeToString(deterministic=True)


def affordable(model: onnx.ModelProto, fixed: int | None, count: int) -> int:
    """How many samples the checks in numpy get."""
    try:
        macs = static.macs(model)[0]
    except UsageError:  # shapes that stay open
        macs = WORK // 4
    return fixed or int(min(count, 16, max(1, WORK // max(1, macs))))


def simulated(path: Path, few: Mapping[str, np.ndarray], notes: list[str]) -> int | None:
    """Values of integer operators that differ from the simulation: none, or the file is refused."""
    from edgekd.quantization import simulate

    try:
        rows = simulate.compare(path, few)
    except Exception as error:  # operators that the reference doesn't have
        notes.append(f"not held against the simulation: {str(error).strip().splitlines()[0][:200]}")
        return None
    wrong = [r for r in rows if r.integer and r.differ]
    if wrong:
        shown = "; ".join(
            f"{r.operator} {r.name.removesuffix('.q')}: {r.differ} of {r.values} values by up to {r.steps:.0f} steps" for r in wrong[:5]
        )
        hint = "a CPU with AVX2 and without VNNI saturates products of weights of the full range; else report the file"
        raise RunFailed(Problem("", f"onnxruntime computes integer operators otherwise than the file says: {shown}", hint))
    return 0


def _rows(made: Made, path: Path, few: Mapping[str, np.ndarray], notes: list[str]) -> tuple[tuple[Row, ...], bool]:
    from edgekd.formats.onnx import float_kernels
    from edgekd.quantization import saturation

    sizes = {i.name: i for i in made.float_model.graph.initializer}
    still = {text[text.index("(") + 1 : -1].removesuffix(".raw") for text in float_kernels(path)}
    try:
        found = {known.name.removesuffix(".raw"): known for known in saturation.audit(made.model, few)}
    except Exception as error:
        notes.append(f"saturation was not looked at: {str(error).strip().splitlines()[0][:200]}")
        found = None
    rows = []
    for known in made.placement.layers:
        reason = known.reason or ("onnxruntime keeps it in float" if known.name in still else "")
        before, after = _bytes(known, sizes, made)
        audit = (found or {}).get(known.name)
        more = {} if audit is None or reason else {"can_saturate": audit.can_saturate, "changed": audit.changed}
        rows.append(Row(known.label, known.kind, before, after, reason, **more))
    rows += [Row(t.name, "table", 4 * t.elements, t.elements + 5 * t.columns, "") for t in made.tables]  # a scale and a zero point per column
    return tuple(rows), found is not None


def _bytes(known: Layer, sizes: Mapping[str, Any], made: Made) -> tuple[int, int]:
    """(float, int8) bytes of a layer's own tensors: weights, their scales, bias."""
    if known.weight is None:
        stored = [sizes[n] for node in made.float_model.graph.node if node.output[0] == known.name for n in node.input if n in sizes]
        total = 4 * sum(int(np.prod(t.dims)) for t in stored)
        return total, total
    elements, bias = (int(np.prod(sizes[n].dims)) if n else 0 for n in (known.weight, known.bias))
    if known.weight not in made.grid.sites:
        return 4 * (elements + bias), 4 * (elements + bias)
    return 4 * (elements + bias), elements + 4 * len(made.grid.sites[known.weight].scale) + 8 * bias


def _beside(
    path: Path, int8: Path, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None, fixed: int | None
) -> tuple[tuple[Agreement, ...], tuple[float, float] | None]:
    """How the two files' outputs agree over all samples, and how often each is right."""
    from edgekd.quantization.foreign import batches
    from edgekd.runtimes.onnxruntime import load

    ours, theirs = load(str(int8), 1), load(str(path), 1)
    sums: dict[str, np.ndarray] = {}
    right, rows = np.zeros(2), 0
    for feed in batches(arrays, fixed or 32):
        made, wanted = ours(feed), theirs(feed)
        for name in ours.outputs:
            a, b = wanted[name], made[name]
            if a.dtype.kind != "f" or a.shape != b.shape:
                continue
            scores = a.ndim == 2 and a.shape[1] > 1
            same = (a.argmax(1) == b.argmax(1)).sum() if scores else np.nan
            noise = ((a.astype(np.float64) - b) ** 2).sum()
            sums[name] = sums.get(name, np.zeros(4)) + [(a.astype(np.float64) ** 2).sum(), noise, same, len(a) if a.ndim else 1]
        first = ours.outputs[0]
        if labels is not None and labels.dtype.kind in "iu" and labels.ndim == 1 and made[first].ndim == 2 and len(ours.outputs) == 1:
            part = labels[rows : rows + len(made[first])]
            right += [(o[first].argmax(1) == part).sum() for o in (wanted, made)]
            rows += len(part)
    found = []
    for name, (signal, noise, same, count) in sums.items():
        snr = float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
        found.append(Agreement(name, snr, None if np.isnan(same) else float(same / count)))
    return tuple(found), (float(right[0] / rows), float(right[1] / rows)) if rows else None


# ---------------------------------------------------------------- the print


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}x smaller" if after < before else "not smaller: it has few weights"


def _table(layers: tuple[Row, ...]) -> str:
    rows = [("layer", "operator", "float", "int8", "")]
    for r in layers:
        rows.append((r.name, r.kind, f"{r.before:,} B" if r.before else "", f"{r.after:,} B" if r.after and not r.reason else "", _state(r)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row[:4], widths, strict=True))]
        lines.append("  ".join([*cells, row[4]]).rstrip())
    return "\n".join(lines)


def _state(row: Row) -> str:
    return f"stays float: {row.reason}" if row.reason else "" if not row.can_saturate else "can saturate"


def _agreement(made: Quantized) -> str:
    samples = "1 sample" if made.samples == 1 else f"{made.samples} samples"
    lines = [f"int8 beside float on the {samples} of calibration"]
    for a in made.agreements:
        answers = "" if a.answers is None else f", {100 * a.answers:.2f} % equal answers"
        lines.append(f"  {a.output}: {a.snr_db:.1f} dB{answers}")
    if made.top1 is not None:
        lines.append(f"  top1: {100 * made.top1[0]:.2f} % float, {100 * made.top1[1]:.2f} % int8")
    if made.differ is not None:
        lines.append("  every integer operator computes what the file says: 0 values differ from the simulation")
    return "\n".join(lines)


def _saturation(made: Quantized) -> str:
    found = [r for r in made.layers if r.can_saturate]
    if not made.audited:
        return ""
    if not found:
        return "on AVX2 without VNNI: no layer saturates"
    width = max(len(r.name) for r in found)
    count = "1 layer" if len(found) == 1 else f"{len(found)} layers"
    lines = [f"on AVX2 without VNNI {count} can saturate; without --full-range the file is exact on every CPU"]
    for r in found:
        lines.append(f"  {r.name:<{width}}  {'not simulated' if r.changed is None else f'{100 * r.changed:.2f} % of its outputs change'}")
    return "\n".join(lines)
