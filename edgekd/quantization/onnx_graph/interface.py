"""The inputs and outputs that an int8 file is delivered with: bytes in, channels last, class numbers out. Each is
exact: such a file answers what the file answers that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.quantization.onnx_graph.draft import copied
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph
from edgekd.quantization.qdq.values import session

if TYPE_CHECKING:
    import onnx

# operators that bytes go through as floats do, on the way to where the input is quantized
PASSED = ("Transpose", "Split", "Pad", "Concat", "Identity", "Reshape", "Flatten", "Slice", "Squeeze", "Unsqueeze")
PROPERTY = "edgekd.input."  # and the input's name: its scale and zero point in the file


@dataclass(frozen=True)
class Bytes:
    """An input of bytes: what it stands for is scale * (byte - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Form:
    """What a file was given: `bytes` {input: Bytes}, `last` the inputs with the channels last, `classes` {output: rank
    of its scores} of those that are class numbers now, `pixels` {image of float pixels: the zero point that they are
    less inside of it}."""

    bytes: Mapping[str, Bytes]
    last: tuple[str, ...]
    classes: Mapping[str, int]
    pixels: Mapping[str, int] = field(default_factory=dict)


def dressed(
    model: onnx.ModelProto,
    *,
    uint8: bool = False,
    nhwc: bool = False,
    argmax: bool = False,
    pixels: Mapping[str, int] = {},
) -> tuple[onnx.ModelProto, Form]:
    """A copy of an int8 file with other inputs and outputs. `uint8`: inputs that are quantized take bytes; `nhwc`:
    inputs of 4 axes have the channels last; `argmax`: scores [n, classes, ...] become class numbers; `pixels` {image
    that takes pixels less a zero point: that one}: it takes pixels, as bytes even where float layers read it.

    Raises UsageError where there is nothing to change, or it can't be."""
    made = copied(model)
    given = _bytes(made, pixels) if uint8 else {}
    for name, zero_point in ({} if uint8 else pixels).items():
        _less(made, name, name, zero_point)
    last = _channels_last(made) if nhwc else ()
    classes = _class_numbers(made) if argmax else {}
    for name, one in given.items():
        made.metadata_props.add(key=f"{PROPERTY}{name}", value=f"scale {one.scale!r} zero_point {one.zero_point}")
    return made, Form(given, tuple(last), classes, {} if uint8 else pixels)


def same(
    before: onnx.ModelProto, after: onnx.ModelProto, form: Form, feed: Mapping[str, np.ndarray], place: str
) -> None:
    """Raises RunFailed where the two answer otherwise to a feed of the first."""
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


def _bytes(model: onnx.ModelProto, pixels: Mapping[str, int]) -> dict[str, Bytes]:
    """Has inputs take bytes, in place."""
    import onnx

    graph = graphs.of(model)
    inputs = [i for i in model.graph.input if i.name not in graph.constants]
    floats = [i for i in inputs if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    if not floats:
        raise UsageError(Problem("--input uint8", "no input takes floats"))
    found = {}
    for value in floats:
        between, ends, other = _ways(graph, value.name)
        known = {(float(p.scale[0]), int(p.zero_point[0])) for p in map(graph.parameters, ends) if p is not None}
        whole = all(p is not None and p.zero_point.dtype == np.uint8 for p in map(graph.parameters, ends))
        if other or len(known) != 1 or not whole:
            if value.name not in pixels:
                what = f"is read by {graphs.title(other[0])} in float" if other else "is quantized in several ways"
                hint = "--fold-preprocess has the file take pixels; or keep no layer in float that reads it"
                raise UsageError(Problem("--input uint8", f"{value.name} {what}", hint))
            _less(model, value.name, _cast(model, value.name), pixels[value.name])
            found[value.name] = Bytes(1.0, pixels[value.name])
        else:
            ((scale, zero_point),) = known
            found[value.name] = Bytes(scale, zero_point)
            _unquantized(model, graph, between, ends, found[value.name])
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return found


def _ways(graph: Graph, name: str) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto], list[onnx.NodeProto]]:
    """(what only passes an input on, the QuantizeLinear nodes that it comes to, other nodes that read it)."""
    between: list[onnx.NodeProto] = []
    ends: list[onnx.NodeProto] = []
    other: list[onnx.NodeProto] = []
    waiting, seen = [name], set()
    while waiting:
        for node in graph.readers.get(waiting.pop(), ()):
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type == "QuantizeLinear":
                ends.append(node)
            elif node.op_type in PASSED:
                between.append(node)
                waiting += node.output
            else:
                other.append(node)
    return between, ends, other


def _unquantized(
    model: onnx.ModelProto, graph: Graph, between: list[onnx.NodeProto], ends: list[onnx.NodeProto], one: Bytes
) -> None:
    """Drops the QuantizeLinear nodes behind an input of bytes; what it is padded with becomes bytes."""
    from onnx import numpy_helper

    stored = {i.name: i for i in model.graph.initializer}
    for node in (n for n in between if n.op_type == "Pad"):
        fill = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.float32(0)
        byte = np.clip(np.rint(np.float32(fill) / np.float32(one.scale)) + one.zero_point, 0, 255).astype(np.uint8)
        name = f"{node.output[0]}.byte"
        model.graph.initializer.append(numpy_helper.from_array(byte.reshape(()), name))
        node.input[:] = [*node.input[:2], name, *node.input[3:]]
    renamed = {n.output[0]: n.input[0] for n in ends}
    for node in ends:
        model.graph.node.remove(node)
    for node in model.graph.node:
        node.input[:] = [renamed.get(n, n) for n in node.input]
    read = {n for node in model.graph.node for n in node.input}
    for name in [n for n in stored if n not in read and n not in {o.name for o in model.graph.output}]:
        model.graph.initializer.remove(stored[name])


def _cast(model: onnx.ModelProto, name: str) -> str:
    """Has bytes become floats, in place; the name of these."""
    from onnx import TensorProto, helper

    new = f"{name}.float"
    _reading(model, name, new)
    model.graph.node.insert(0, helper.make_node("Cast", [name], [new], to=TensorProto.FLOAT))
    return new


def _less(model: onnx.ModelProto, name: str, pixels: str, zero_point: int) -> None:
    """Has what reads `pixels` read them less a zero point, in place."""
    from onnx import helper, numpy_helper

    new, at = f"{name}.less", f"{name}.middle"
    _reading(model, pixels, new)
    maker = next((i for i, n in enumerate(model.graph.node) if pixels in n.output), -1)
    model.graph.initializer.append(numpy_helper.from_array(np.array(zero_point, np.float32), at))
    model.graph.node.insert(maker + 1, helper.make_node("Sub", [pixels, at], [new]))


def _reading(model: onnx.ModelProto, name: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if n == name else n for n in node.input]


def _channels_last(model: onnx.ModelProto) -> list[str]:
    """Has images take the channels last, in place."""
    from onnx import helper

    stored = {i.name for i in model.graph.initializer}
    found = []
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) != 4 or value.name in stored:
            continue
        new = f"{value.name}.nchw"
        _reading(model, value.name, new)
        model.graph.node.insert(0, helper.make_node("Transpose", [value.name], [new], perm=[0, 3, 1, 2]))
        kept = [copied(dims[i]) for i in (0, 2, 3, 1)]
        del dims[:]
        dims.extend(kept)
        found.append(value.name)
    if not found:
        raise UsageError(Problem("--layout nhwc", "no input is an image [n, channels, height, width]"))
    return found


def _class_numbers(model: onnx.ModelProto) -> dict[str, int]:
    """Has scores answer with the number of the greatest, in place."""
    from onnx import TensorProto, helper

    found = {}
    for value in model.graph.output:
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.FLOAT or len(kind.shape.dim) < 2 or kind.shape.dim[1].dim_value == 1:
            continue
        found[value.name], scores = len(kind.shape.dim), f"{value.name}.scores"
        for node in model.graph.node:
            node.output[:] = [scores if n == value.name else n for n in node.output]
            node.input[:] = [scores if n == value.name else n for n in node.input]
        model.graph.node.append(helper.make_node("ArgMax", [scores], [value.name], axis=1, keepdims=0))
        kind.elem_type = TensorProto.INT64
        del kind.shape.dim[1]
    if not found:
        raise UsageError(Problem("--argmax", "no output is scores [n, classes, ...]"))
    return found
