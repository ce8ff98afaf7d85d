"""Parts of the verb `quantize`: what was given is checked at once, samples are divided, and the int8 file is held to
what it says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import components, targets
from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.inputs import length
from edgekd.measure.samples import read_arrays
from edgekd.probes import static
from edgekd.report.int8 import Row
from edgekd.run import target_settings

if TYPE_CHECKING:
    import onnx

    from edgekd.quantization.onnx_graph.convert import Made
    from edgekd.quantization.onnx_graph.placement import Layer

FEW = 32  # samples below which the ranges are a guess
ENOUGH = 128  # samples of which every fourth is kept for comparing
KEPT = 512  # of these at most
WORK = 2 * 10**9  # multiply-accumulates that the checks in numpy may take


# ---------------------------------------------------------------- what was given


def checked(
    model: Any, data: Any, out: Any, target: str, ranges: str, weight_bits: int | None, full_range: bool, samples: int
) -> tuple:
    """(path, parsed file, {input: samples to calibrate on, then those kept for comparing}, labels of what is compared,
    scheme, (how many to calibrate on, how many are kept)), or every problem at once."""
    from edgekd.quantization.onnx_graph import normalize

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
    problems += normalize.problems(parsed, str(path)) if parsed is not None else []
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
        arrays, wrong = inputs_of(
            parsed, given[0], str(data), lambda count: np.concatenate(divided(count, max(samples, 1), parsed))
        )
        problems += wrong
    if problems:
        raise UsageError(*problems)
    scheme = target_settings.scheme([device], weight_bits=bits, **({"pairs16": False} if full_range else {}))
    calibrated, kept = divided(length(given[0]), samples, parsed)
    labels = None if given[1] is None else given[1][kept if len(kept) else calibrated]
    return path, parsed, arrays, labels, scheme, (len(calibrated), len(kept))


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


def inputs_of(
    model: onnx.ModelProto, given: Mapping[str, np.ndarray], place: str, rows: Callable[[int], np.ndarray] = np.arange
) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """({input: samples in its type, those that `rows` takes of so many}, problems): names, shapes, types, numbers that
    are not finite."""
    stored = {i.name for i in model.graph.initializer}
    wanted = {i.name: i.type.tensor_type for i in model.graph.input if i.name not in stored}
    if "" in given:
        if len(wanted) > 1:
            return {}, [
                Problem(
                    place,
                    f"has one array `inputs`, and the model takes {', '.join(wanted)}",
                    "give one array per input name",
                )
            ]
        given = {next(iter(wanted)): given[""]} if wanted else {}
    if not wanted:
        return {}, [
            Problem(
                place, "is for a model that takes no input", "a file that computes the same every time has no ranges"
            )
        ]
    problems = [
        Problem(place, f"has no array for the input {name}", f"it has {', '.join(given)}")
        for name in wanted
        if name not in given
    ]
    problems += [
        Problem(place, f"{name} is no input of the model", f"its inputs: {', '.join(wanted)}")
        for name in given
        if name not in wanted
    ]
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
            problems.append(
                Problem(place, f"{name} has samples of shape {list(array.shape[1:])}, the model takes [{shown}]")
            )
        elif shape and shape[0] is not None and len(array) < shape[0]:
            problems.append(Problem(place, f"{name} has {len(array)} samples, the model takes {shape[0]} at once"))
        elif kind is None or array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, kind, "same_kind"):
            problems.append(Problem(place, f"{name} is {array.dtype}, the model takes {kind}"))
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = int((~np.isfinite(array.reshape(len(array), -1))).any(1).sum())
            problems.append(
                Problem(
                    place,
                    f"{name} holds numbers that are not finite, in {rows} of {len(array)} samples",
                    "leave these samples out",
                )
            )
        else:
            found[name] = np.ascontiguousarray(array[rows(len(array))].astype(kind))
    return found, problems


def divided(count: int, samples: int, model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """(rows to calibrate on, rows to compare on that are none of these; none of `count` below ENOUGH): up to `samples`
    and KEPT, spread evenly over the data, which may be sorted; whole batches where the file takes only these."""
    from edgekd.quantization.onnx_graph.convert import fixed_rows

    size, every = fixed_rows(model) or 1, np.arange(count)
    kept = every[3::4] if count >= max(ENOUGH, 4 * size) else every[:0]
    return _spread(np.delete(every, kept), samples, size), _spread(kept, KEPT, size) if len(kept) else kept


def _spread(rows: np.ndarray, samples: int, size: int) -> np.ndarray:
    wanted = max(size, min(len(rows), samples) // size * size)
    return rows[np.linspace(0, len(rows) - 1, wanted).round().astype(np.int64)]


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
    from edgekd.quantization.qdq import simulate

    try:
        rows = simulate.compare(path, few)
    except Exception as error:  # operators that the reference doesn't have
        notes.append(f"not held against the simulation: {str(error).strip().splitlines()[0][:200]}")
        return None
    wrong = [r for r in rows if r.integer and r.differ]
    if wrong:
        shown = "; ".join(
            f"{r.operator} {r.name.removesuffix('.q')}: {r.differ} of {r.values} values by up to {r.steps:.0f} steps"
            for r in wrong[:5]
        )
        hint = "a CPU with AVX2 and without VNNI saturates products of weights of the full range; else report the file"
        raise RunFailed(
            Problem("", f"onnxruntime computes integer operators otherwise than the file says: {shown}", hint)
        )
    return 0


def table(made: Made, path: Path, few: Mapping[str, np.ndarray], notes: list[str]) -> tuple[tuple[Row, ...], bool]:
    from edgekd.formats.onnx import float_kernels
    from edgekd.quantization.qdq import saturation

    sizes = {i.name: i for i in made.float_model.graph.initializer}
    still = {text[text.index("(") + 1 : -1].removesuffix(".raw") for text in float_kernels(path)}
    try:
        found = {known.name.removesuffix(".raw"): known for known in saturation.audit(made.model, few)}
    except Exception as error:
        notes.append(f"saturation was not looked at: {str(error).strip().splitlines()[0][:200]}")
        found = None
    rows, reads = [], {node.output[0]: node.input for node in made.float_model.graph.node}
    for known in made.placement.layers:
        reason = known.reason or ("onnxruntime keeps it in float" if known.name in still else "")
        before, after = _bytes(known, sizes, reads.get(known.name, ()), made)
        audit = (found or {}).get(known.name)
        more = {} if audit is None or reason else {"can_saturate": audit.can_saturate, "changed": audit.changed}
        rows.append(Row(known.label, known.kind, before, after, reason, **more))
    # a scale and a zero point per column
    rows += [Row(t.name, "table", 4 * t.elements, t.elements + 5 * t.columns, "") for t in made.tables]
    return tuple(rows), found is not None


def _bytes(known: Layer, sizes: Mapping[str, Any], reads: Sequence[str], made: Made) -> tuple[int, int]:
    """(float, int8) bytes of a layer's own tensors: weights, their scales, bias. `reads`: all that it takes."""
    if known.weight is None:
        total = 4 * sum(int(np.prod(sizes[n].dims)) for n in reads if n in sizes)
        return total, total
    elements, bias = (int(np.prod(sizes[n].dims)) if n else 0 for n in (known.weight, known.bias))
    if known.weight not in made.grid.sites:
        return 4 * (elements + bias), 4 * (elements + bias)
    return 4 * (elements + bias), elements + 4 * len(made.grid.sites[known.weight].scale) + 8 * bias
