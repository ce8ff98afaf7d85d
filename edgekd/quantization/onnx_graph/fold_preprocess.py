"""Preprocessing folded into the first layer: a file that takes normalized images becomes one that takes pixels.

x = (scale * p - mean) / deviation is linear in the pixel p, so a convolution takes it into its weights and bias. Zeros
that pad the normalized image are the pixel mean / scale: of every channel another, which is what the image is padded
with. The file takes pixels less a whole number near their mean, which is the zero point of their bytes: what rounding
weights adds to an output is then noise, and no constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.onnx_files import external
from edgekd.quantization.onnx_graph.draft import Draft, copied
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import attribute

if TYPE_CHECKING:
    import onnx

PLACE = "--fold-preprocess"
PIXELS = 255


@dataclass(frozen=True)
class Folded:
    """A float file that takes pixels less `zero_point` for its `image`; `value` is what its first layers read;
    `rounded`: whether the pixels that pad it are others than the float file's zeros."""

    model: onnx.ModelProto
    image: str
    value: str
    zero_point: int
    rounded: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """Of the value, so that its quantization parameters are scale 1 and the zero point."""
        return float(-self.zero_point), float(PIXELS - self.zero_point)


def fold(model: onnx.ModelProto, scale: float, mean: Sequence[float], deviation: Sequence[float]) -> Folded:
    """A file in normal form that takes an image (scale * p - mean) / deviation as one that takes pixels p. `mean` and
    `deviation`: one number, or one per channel. The padding is rounded to whole pixels. Raises UsageError where the
    first layers are no convolutions of images."""
    made = external.copied(model)
    graph, draft = graphs.of(made), Draft(made.graph)
    image = _image(graph)
    readers = _convolutions(graph, image)
    inputs = {i.name: i.type.tensor_type.shape.dim for i in made.graph.input}
    channels = inputs[image][1].dim_value or _channels(readers[0], graph)
    wrong = {len(mean), len(deviation)} - {1, channels}
    if wrong:
        raise UsageError(Problem(PLACE, f"has numbers for {max(wrong)} channels, and {image} has {channels}"))
    factor = np.broadcast_to(scale / np.asarray(deviation, np.float64), channels)
    shift = np.broadcast_to(-np.asarray(mean, np.float64) / np.asarray(deviation, np.float64), channels)
    exact = -shift / factor  # the pixels that a normalized image has zeros for
    zero = np.rint(exact)
    middle = int(np.clip(np.rint(np.mean(exact)), 0, PIXELS))
    shift = shift + factor * middle
    pads = {tuple(attribute(n, "pads", [0, 0, 0, 0])) for n in readers} - {(0, 0, 0, 0)}
    padded = bool(pads) and bool(np.any(zero != middle))
    if padded and ((zero < 0) | (zero > PIXELS)).any():
        text = f"pads with zeros, which are the pixels {', '.join(f'{v:g}' for v in zero)}: none of 0 to 255"
        raise UsageError(Problem(PLACE, f"{readers[0].name or readers[0].output[0]} {text}"))
    if padded and (len(pads) > 1 or len(readers) > 1):
        raise UsageError(Problem(PLACE, f"several layers read {image}, and pad it", "it can't be folded into them"))
    value = draft.fresh(f"{image}.padded") if padded else image
    for node in readers:
        new = _folded(node, graph, draft, factor, shift)
        new.input[0] = value
        before = []
        if padded:
            new.attribute.remove(next(a for a in new.attribute if a.name == "pads"))
            before = _padding(image, value, list(next(iter(pads))), zero - middle, draft)
        draft.replace([node], [*before, new])
    stored = {name for n in readers for name in n.input[1:]}
    draft.write(without={n for n in stored if all(r in readers for r in graph.readers[n])})
    return Folded(made, image, value, middle, bool(pads) and not np.allclose(zero, exact, rtol=0, atol=1e-6))


def _image(graph: graphs.Graph) -> str:
    inputs = [i for i in graph.model.graph.input if i.name not in graph.constants]
    images = [i.name for i in inputs if len(i.type.tensor_type.shape.dim) == 4]
    if len(images) != 1:
        raise UsageError(Problem(PLACE, f"the model has {len(images)} inputs that are images", "it must have one"))
    return images[0]


def _convolutions(graph: graphs.Graph, image: str) -> list[onnx.NodeProto]:
    """The layers that read the image."""
    readers, outputs = graph.readers.get(image, []), {o.name for o in graph.model.graph.output}
    if not readers:
        raise UsageError(Problem(PLACE, f"no layer reads {image}"))
    for node in readers:
        if node is None or node.op_type != "Conv" or node.input[1] not in graph.constants or node.input[0] != image:
            outside = "is an output too" if image in outputs else "is read in a subgraph"
            what = outside if node is None else f"is read by {graphs.title(node)}"
            hint = "mean and deviation are folded into a convolution with stored weights that reads the image"
            raise UsageError(Problem(PLACE, f"{image} {what}", hint))
        if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
            raise UsageError(Problem(PLACE, f"the bias of {graphs.title(node)} is computed, not stored"))
    return [n for n in readers if n is not None]


def _channels(node: onnx.NodeProto, graph: graphs.Graph) -> int:
    return int(graph.constants[node.input[1]].shape[1] * attribute(node, "group", 1))


def _folded(
    node: onnx.NodeProto, graph: graphs.Graph, draft: Draft, factor: np.ndarray, shift: np.ndarray
) -> onnx.NodeProto:
    """A convolution of pixels: weights times the factor, and what the shift adds in the bias."""
    weight = graph.constants[node.input[1]].astype(np.float64)
    outputs, inner = weight.shape[:2]
    first = np.arange(outputs) // (outputs // attribute(node, "group", 1)) * inner  # of each output's group
    taken = first[:, None] + np.arange(inner)
    bias = np.zeros(outputs) if len(node.input) < 3 or not node.input[2] else graph.constants[node.input[2]]
    shaped = (outputs, inner, *[1] * (weight.ndim - 2))
    added = (weight * shift[taken].reshape(shaped)).reshape(outputs, -1).sum(1)
    made = copied(node)
    names = [(f"{node.input[1]}.folded", weight * factor[taken].reshape(shaped)), (f"{node.output[0]}.b", bias + added)]
    made.input[:] = [node.input[0], *(draft.store(name, array.astype(np.float32)) for name, array in names)]
    return made


def _padding(image: str, value: str, pads: list[int], zero: np.ndarray, draft: Draft) -> list[onnx.NodeProto]:
    """The image with `zero` of each channel around it."""
    from onnx import helper

    ends = draft.store(f"{value}.ends", np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
    if (zero == zero[0]).all():
        fill = draft.store(f"{value}.zero", np.array(zero[0], np.float32))
        return [helper.make_node("Pad", [image, ends, fill], [value], mode="constant")]
    parts = [draft.fresh(f"{image}.{i}") for i in range(len(zero))]
    sizes = draft.store(f"{value}.each", np.ones(len(zero), np.int64))
    nodes = [helper.make_node("Split", [image, sizes], parts, axis=1)]
    padded = [draft.fresh(f"{part}.padded") for part in parts]
    for part, out, pixel in zip(parts, padded, zero, strict=True):
        fill = draft.store(f"{out}.zero", np.array(pixel, np.float32))
        nodes.append(helper.make_node("Pad", [part, ends, fill], [out], mode="constant"))
    return [*nodes, helper.make_node("Concat", padded, [value], axis=1)]
