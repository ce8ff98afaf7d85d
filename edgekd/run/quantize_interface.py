"""What a person wants of the inputs and outputs of an int8 file: pixels in instead of normalized images, bytes,
channels last, class indices out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, RunFailed, UsageError, gathered
from edgekd.measure.machine import runnable
from edgekd.onnx_files import external
from edgekd.samples import preprocess
from edgekd.samples.rows import Samples
from edgekd.store.scratch import scratch

if TYPE_CHECKING:
    import onnx

    from edgekd.quantization.onnx_graph.interface import Form
    from edgekd.run.quantize_file import Checked
    from edgekd.run.quantize_inputs import Given

NEAR = 0.05  # of a whole pixel that samples may be away from it
SEEN = 16  # samples by which the changed file is compared


@dataclass(frozen=True)
class Interface:
    """`fold`: the name or the JSON file of the preprocessing that goes into the first layer."""

    uint8: bool = False
    nhwc: bool = False
    argmax: bool = False
    fold: Path | str | None = None

    @property
    def any(self) -> bool:
        return self.uint8 or self.nhwc or self.argmax or self.fold is not None

    def words(self) -> list[str]:
        """The options of `quantize` that say the same."""
        found = ["--input", "uint8"] * self.uint8 + ["--layout", "nhwc"] * self.nhwc + ["--argmax"] * self.argmax
        return found if self.fold is None else [*found, "--fold-preprocess", str(self.fold)]


def problems(model: onnx.ModelProto, wanted: Interface, kept: Collection[str]) -> list[Problem]:
    """Why a model can't have such inputs and outputs; `kept`: those that stay as they are."""
    from edgekd.quantization.onnx_graph import interface

    found = interface.problems(model, uint8=wanted.uint8, nhwc=wanted.nhwc, argmax=wanted.argmax, kept=kept)
    if wanted.fold is not None:
        gathered(lambda: preprocess.load(str(wanted.fold)), found)
    return found


def folded(given: Given, wanted: Interface, folder: Path) -> Given:
    """The same request for a float file that takes pixels, which is written to `folder`. Raises UsageError where
    preprocessing can't be folded, or the samples are not normalized pixels."""
    from edgekd.quantization.onnx_graph import fold_preprocess, normalize

    if wanted.fold is None:
        return given
    how = preprocess.load(wanted.fold)
    scale = 1 / 255 if how.scale is None else how.scale
    made = fold_preprocess.fold(normalize.normalized(given.model, str(given.path)), scale, how.mean, how.deviation)
    path = folder / given.path.name
    external.write(made.model, path)
    pixels = lambda s: _pixels(s, made.image, scale, how, made.zero_point)
    return replace(
        given,
        path=path,
        model=made.model,
        calibration=pixels(given.calibration),
        compared=pixels(given.compared),
        fixed={made.value: made.range},
        pixels={made.image: made.zero_point},
        note="\n".join(filter(None, (given.note, _beside(given, path, pixels, made.rounded)))),
    )


def delivered(found: Checked, model: onnx.ModelProto, given: Given, wanted: Interface) -> Checked:
    """The checked file, whose `model` is given, with the wanted inputs and outputs. Raises RunFailed where it then
    answers otherwise, or onnxruntime can't run it."""
    from edgekd.quantization.onnx_graph import checks, interface

    if not wanted.any:
        return found
    kept = {*given.compared.states, *given.compared.states.values()}
    how = {"uint8": wanted.uint8, "nhwc": wanted.nhwc, "argmax": wanted.argmax}
    made, form = interface.dressed(model, **how, pixels=given.pixels, kept=kept)
    with runnable(str(given.out), "with these inputs and outputs", RunFailed):
        interface.same(model, made, form, given.compared.some(SEEN).feed(), str(given.out))
    asked = next((json.loads(p.value) for p in model.metadata_props if p.key == checks.KEPT), ())
    content = checks.finished(made, given.out.name, asked)
    order = "" if wanted.fold is None else preprocess.load(wanted.fold).order.upper()
    return replace(found, content=content, notes=(*found.notes, *_told(made, form, given, order)))


def _pixels(samples: Samples, image: str, scale: float, how: preprocess.Preprocess, zero_point: int) -> Samples:
    """Samples of pixels, less the zero point, of those that were normalized."""
    column = lambda v: np.asarray(v, np.float64).reshape(-1, 1, 1)
    array = samples.arrays[image]
    if array.dtype == object:
        raise UsageError(Problem("--fold-preprocess", "the samples are of different sizes", "give images of one size"))
    found = (array.astype(np.float64) * column(how.deviation) + column(how.mean)) / scale
    whole = np.rint(found)
    wrong = (np.abs(found - whole) > NEAR) | (whole < 0) | (whole > 255)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        name = samples.names[at[0]] if len(samples.names) else f"sample {at[0]}"
        text = f"{name} is no image of bytes that was normalized so: it has a pixel of {found[at]:.4g}"
        raise UsageError(Problem("--fold-preprocess", text, "name the preprocessing that the samples were made with"))
    return replace(samples, arrays={**samples.arrays, image: (whole - zero_point).astype(np.float32)})


def _beside(given: Given, path: Path, pixels: Callable[[Samples], Samples], rounded: bool) -> str:
    """How the file that takes pixels compares with the float file."""
    from edgekd.measure import jobs
    from edgekd.quantization.diagnosis.signal_to_noise import EQUAL, decibel, noise

    few = given.compared.take(slice(0, max(SEEN, given.compared.rows or 1)))
    with scratch() as folder:
        plain = jobs.score(given.path, few, folder=Path(folder) / "plain")
        found = jobs.score(path, pixels(few), folder=Path(folder) / "pixels")
    snr = min((-decibel(noise(a, found[n])) for n, a in plain.items() if a.dtype.kind == "f"), default=EQUAL)
    told = f"preprocessing is folded into the first layer: {snr:.1f} dB beside the float file"
    return told + (", as the pixels that pad the image are rounded to whole ones" if rounded else "")


def _told(model: onnx.ModelProto, form: Form, given: Given, order: str) -> list[str]:
    shown = lambda v: (
        "[" + ", ".join(str(d.dim_value or d.dim_param or "?") for d in v.type.tensor_type.shape.dim) + "]"
    )
    told = []
    colours = lambda v: f", {order}" if order and 3 in {d.dim_value for d in v.type.tensor_type.shape.dim[1:]} else ""
    for value in model.graph.input:
        parts = []
        if value.name in form.bytes:
            one = form.bytes[value.name]
            pixels = value.name in given.pixels
            parts.append(
                f"the pixels{colours(value)}"
                if pixels
                else f"which stand for {one.scale:.9g} * (byte - {one.zero_point})"
            )
        elif value.name in form.pixels:
            parts.append(f"the pixels, 0 to 255{colours(value)}")
        if parts or value.name in form.last:
            kind = "bytes" if value.name in form.bytes else "floats"
            told.append(f"input {value.name}: {kind} {shown(value)}{', ' if parts else ''}{', '.join(parts)}")
    told += [f"output {v.name}: class indices {shown(v)}" for v in model.graph.output if v.name in form.classes]
    return [*told, "with these inputs and outputs the file answers as without them: checked"]
