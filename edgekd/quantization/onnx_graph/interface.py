"""The inputs and outputs that an int8 file is delivered with: bytes in, channels last, class indices out. Each is
exact: such a file answers what the file answers that it was made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.onnx_files import external
from edgekd.quantization.onnx_graph import byte_inputs
from edgekd.quantization.onnx_graph.byte_inputs import Bytes
from edgekd.quantization.onnx_graph.draft import Draft, copied
from edgekd.quantization.qdq.values import session

if TYPE_CHECKING:
    import onnx

PROPERTY = "edgekd.input."  # and the input's name: its scale and zero point in the file


@dataclass(frozen=True)
class Form:
    """What a file was given: `bytes` {input: Bytes}, `last` the inputs with the channels last, `classes` the outputs
    that are class indices now, `pixels` {image of float pixels: the zero point that they are less inside of it}."""

    bytes: Mapping[str, Bytes]
    last: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: Mapping[str, int] = field(default_factory=dict)


def problems(
    model: onnx.ModelProto,
    *,
    uint8: bool = False,
    nhwc: bool = False,
    argmax: bool = False,
    kept: Collection[str] = (),
) -> list[Problem]:
    """Why no such input or output can be had of a file, by its inputs and outputs alone; `kept` as in `dressed`."""
    found = []
    if uint8 and not _floats(model, kept):
        found.append(Problem("--input uint8", "no input takes 32-bit floats"))
    if nhwc and not _images(model, kept):
        found.append(Problem("--layout nhwc", "no input is an image [n, channels, height, width]"))
    if argmax and not _scores(model, kept):
        found.append(
            Problem("--argmax", "no output is scores [n, classes, ...] of 32-bit floats, by the file's own shapes")
        )
    given = {o.name for o in model.graph.output} & {i.name for i in model.graph.input}
    for option, names in {
        "--input uint8": [i.name for i in _floats(model, kept)] if uint8 else [],
        "--layout nhwc": [i.name for i in _images(model, kept)] if nhwc else [],
        "--argmax": [o.name for o in _scores(model, kept)] if argmax else [],
    }.items():
        found += [Problem(option, f"{n} is an input and an output at once") for n in names if n in given]
    return found


def dressed(
    model: onnx.ModelProto,
    *,
    uint8: bool = False,
    nhwc: bool = False,
    argmax: bool = False,
    pixels: Mapping[str, int] = {},
    kept: Collection[str] = (),
) -> tuple[onnx.ModelProto, Form]:
    """A copy of an int8 file with other inputs and outputs. `uint8`: inputs that are quantized take bytes; `nhwc`:
    inputs of 4 axes have the channels last; `argmax`: scores [n, classes, ...] become class indices; `pixels` {image
    that takes pixels less a zero point: that one}: it takes pixels, as bytes even where float layers read it; `kept`:
    inputs and outputs that stay as they are, the states of a streaming model.

    Raises UsageError where there is nothing to change, or it can't be."""
    wrong = problems(model, uint8=uint8, nhwc=nhwc, argmax=argmax, kept=kept)
    if wrong:
        raise UsageError(*wrong)
    made = external.copied(model)
    draft = Draft(made.graph)
    floats = [i.name for i in _floats(made, kept)] if uint8 else []
    given = byte_inputs.changed(made, draft, floats, pixels) if uint8 else {}
    for name, zero_point in ({} if uint8 else pixels).items():
        byte_inputs.less(draft, name, name, zero_point)
    last = _channels_last(made, draft, kept) if nhwc else ()
    classes = _class_indices(made, draft, kept) if argmax else ()
    for name, one in given.items():
        made.metadata_props.add(key=f"{PROPERTY}{name}", value=f"scale {one.scale!r} zero_point {one.zero_point}")
    return made, Form(given, last, classes, {} if uint8 else pixels)


def same(
    before: onnx.ModelProto, after: onnx.ModelProto, form: Form, feed: Mapping[str, np.ndarray], place: str
) -> None:
    """Raises RunFailed where the two answer otherwise to a feed of the first; errors of onnxruntime are its own."""
    wanted, found = session(before)(dict(feed)), session(after)(taken(form, feed))
    for name, values in wanted.items():
        values = values.argmax(1) if name in form.classes else values
        if not np.array_equal(values, found[name], equal_nan=values.dtype.kind == "f"):
            raise RunFailed(Problem(place, f"output {name} is not what it was before its inputs and outputs changed"))


def taken(form: Form, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a feed as the changed file takes them."""
    found = {name: a + np.float32(form.pixels[name]) if name in form.pixels else a for name, a in feed.items()}
    for name, one in form.bytes.items():
        steps = np.rint(found[name].astype(np.float32) / np.float32(one.scale)) + one.zero_point
        found[name] = np.clip(steps, 0, 255).astype(np.uint8)
    for name in form.last:
        found[name] = np.ascontiguousarray(np.moveaxis(found[name], 1, -1))
    return found


def _inputs(model: onnx.ModelProto, kept: Collection[str]) -> list[onnx.ValueInfoProto]:
    stored = {i.name for i in model.graph.initializer} | set(kept)
    return [i for i in model.graph.input if i.name not in stored]


def _floats(model: onnx.ModelProto, kept: Collection[str]) -> list[onnx.ValueInfoProto]:
    from onnx import TensorProto

    return [i for i in _inputs(model, kept) if i.type.tensor_type.elem_type == TensorProto.FLOAT]


def _images(model: onnx.ModelProto, kept: Collection[str]) -> list[onnx.ValueInfoProto]:
    return [i for i in _inputs(model, kept) if len(i.type.tensor_type.shape.dim) == 4]


def _scores(model: onnx.ModelProto, kept: Collection[str]) -> list[onnx.ValueInfoProto]:
    from onnx import TensorProto

    kinds = {o.name: o.type.tensor_type for o in model.graph.output if o.name not in kept}
    floats = {n: k.shape.dim for n, k in kinds.items() if k.elem_type == TensorProto.FLOAT}
    wanted = {n for n, dims in floats.items() if len(dims) > 1 and dims[1].dim_value != 1}
    return [o for o in model.graph.output if o.name in wanted]


def _channels_last(model: onnx.ModelProto, draft: Draft, kept: Collection[str]) -> tuple[str, ...]:
    """Has images take the channels last, in place."""
    from onnx import helper

    images = _images(model, kept)
    for value in images:
        dims = value.type.tensor_type.shape.dim
        new = draft.fresh(f"{value.name}.nchw")
        draft.rename(value.name, new)
        model.graph.node.insert(0, helper.make_node("Transpose", [value.name], [new], perm=[0, 3, 1, 2]))
        moved = [copied(dims[i]) for i in (0, 2, 3, 1)]
        del dims[:]
        dims.extend(moved)
    return tuple(value.name for value in images)


def _class_indices(model: onnx.ModelProto, draft: Draft, kept: Collection[str]) -> tuple[str, ...]:
    """Has scores answer with the index of the greatest, in place."""
    from onnx import TensorProto, helper

    found = _scores(model, kept)
    for value in found:
        scores = draft.fresh(f"{value.name}.scores")
        draft.rename(value.name, scores)
        for node in model.graph.node:
            node.output[:] = [scores if n == value.name else n for n in node.output]
        for tensor in (i for i in model.graph.initializer if i.name == value.name):
            tensor.name = scores
        model.graph.node.append(helper.make_node("ArgMax", [scores], [value.name], axis=1, keepdims=0))
        kind = value.type.tensor_type
        kind.elem_type = TensorProto.INT64
        del kind.shape.dim[1]
    return tuple(value.name for value in found)
