"""A placed ONNX graph with its quantization parameters in QDQ form: QuantizeLinear and DequantizeLinear behind each
quantized value, weights as int8, biases as int32 at the product of their operands' scales. The form is that of
`formats.onnx`, which onnxruntime fuses to integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import external
from edgekd.quantization.onnx_graph import gates
from edgekd.quantization.onnx_graph.draft import copied
from edgekd.quantization.onnx_graph.placement import ASKED, UNFUSED, Layer, Placement, clip, clipped, summed
from edgekd.quantization.parameters import bias_integers, clips_itself, weight_integers
from edgekd.quantization.qdq.graph import Graph, attribute
from edgekd.records import Site

if TYPE_CHECKING:
    import onnx


def render(graph: Graph, placement: Placement, grid: Mapping[str, Site]) -> onnx.ModelProto:
    """The file with the grid's numbers; it changes none. Names of the file's own values stay: they are those behind
    DequantizeLinear."""
    return _Rendering(graph, placement, grid).model()


class _Rendering:
    """A file that is being written: its `nodes` and new `tensors`."""

    def __init__(self, graph: Graph, placement: Placement, grid: Mapping[str, Site]):
        self.graph, self.placement, self.grid = graph, placement, grid
        self.taken = set(graph.makers) | set(graph.readers)
        self.on = {name: name for name in placement.values} | placement.tied  # {quantized value: its site}
        self.layers = {known.name: known for known in placement.layers if not known.reason}
        self.kept_float = {
            k.name for k in placement.layers if k.reason in (ASKED, UNFUSED) and k.kind in ("Conv", "Gemm")
        }
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.weights: set[str] = set()  # those that are dequantized already
        self.renamed: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:

        for name in (value.name for value in self.graph.model.graph.input if value.name in self.on):
            self.renamed[name] = self.fresh(f"{name}.dq")
            self.quantize(name, name, self.renamed[name])
        for node in self.graph.nodes:
            self.add(node)
        made = external.copied(self.graph.model)
        read = {n for node in self.nodes for n in node.input}
        read |= {n for n, readers in self.graph.readers.items() if None in readers}
        kept = [i for i in self.graph.model.graph.initializer if i.name in read]
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        made.graph.initializer.extend([*kept, *self.tensors.values()])
        return made

    def add(self, node: onnx.NodeProto) -> None:
        """A node with what it reads and makes as quantized."""
        from onnx import helper

        if node.output[0] in self.on and self.superfluous(node):
            self.quantize(node.input[0], node.output[0], node.output[0])
            return
        if summed(node) and {node.input[0], node.output[0]} <= self.on.keys():
            self.hard_sigmoid(node)
            return
        made, layer = copied(node), self.layers.get(node.output[0])
        made.input[:] = [self.renamed.get(n, n) for n in node.input]
        if layer is not None and layer.weight is not None:
            made.input[1] = self.weight(layer)
            if layer.bias is not None:
                made.input[2] = self.bias(layer)
        if gates.widths(node, self.graph) is not None and node.output[0] in self.on:
            made.input[1] = self.widths(node.input[1])
        if self.hides(node):
            made.CopyFrom(helper.make_node("LeakyRelu", made.input, made.output, name=node.name, alpha=0.0))
        made.output[:] = outputs = [self.fresh(f"{n}.raw") if n in self.on else n for n in node.output]
        self.nodes.append(made)
        if self.mistaken(node):
            self.keep_float(made)
        for name, raw in zip(node.output, outputs, strict=True):
            if name in self.on:
                self.quantize(raw, name, name)

    def hard_sigmoid(self, node: onnx.NodeProto) -> None:
        """max(0, min(1, alpha x + beta)) as the sum x + beta / alpha, which has an integer kernel. Its rounding clips
        as it has to, to steps that are 1 / alpha as wide as those that they are read as."""
        from onnx import helper

        name, site = node.output[0], self.grid[self.on[node.output[0]]]
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        x, shift, total = self.renamed.get(node.input[0], node.input[0]), self.fresh(f"{name}.by"), f"{name}.shifted"
        zero, one = self.store("hard.z", np.array(0, np.uint8)), self.store("hard.one", np.array(1, np.uint8))
        by = self.store(f"{name}.by.s", np.array(beta / alpha, np.float32))
        wide = self.store(f"{name}.shifted.s", np.array(site.scale[0] / alpha, np.float32))
        scale, total, q = self.store(f"{name}.s", np.array(site.scale[0], np.float32)), self.fresh(total), f"{name}.q"
        self.nodes.append(helper.make_node("DequantizeLinear", [one, by, zero], [shift]))
        self.nodes.append(helper.make_node("Add", [x, shift], [total], name=node.name))
        self.nodes.append(helper.make_node("QuantizeLinear", [total, wide, zero], [self.fresh(q)]))
        self.nodes.append(helper.make_node("DequantizeLinear", [self.fresh(q), scale, zero], [name]))

    def widths(self, name: str) -> str:
        """Powers of two that channels are multiplied by, as they are, dequantized."""
        from onnx import helper

        q = np.round(self.graph.constants[name] * gates.STEPS).astype(np.uint8)
        operands = [self.store(f"{name}.q", q), self.store("widths.s", np.array(1 / gates.STEPS, np.float32))]
        made = self.fresh(f"{name}.dq")
        operands.append(self.store("widths.z", np.array(0, np.uint8)))
        self.nodes.append(helper.make_node("DequantizeLinear", operands, [made]))
        return made

    def fresh(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "_"
        return wanted

    def store(self, wanted: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self.fresh(wanted)
        self.tensors.setdefault(name, numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def quantize(self, raw: str, name: str, output: str) -> None:
        """The value `name`, computed as `raw`, quantized and dequantized to `output`."""
        from onnx import helper

        site, origin = self.grid[self.on[name]], self.on[name]
        scale = self.store(f"{origin}.s", np.array(site.scale[0], np.float32))
        zero = self.store(f"{origin}.z", np.array(site.zero_point, np.uint8))
        q = self.fresh(f"{name}.q")
        self.nodes.append(helper.make_node("QuantizeLinear", [raw, scale, zero], [q]))
        self.nodes.append(helper.make_node("DequantizeLinear", [q, scale, zero], [output]))

    def weight(self, known: Layer) -> str:
        """The weight of a layer, dequantized once for all its readers."""
        from onnx import helper

        name, site, weight = (
            self.fresh(f"{known.weight}.dq"),
            self.grid[known.weight],
            self.graph.constants[known.weight],
        )
        if name not in self.weights:
            scale = np.array(site.scale, np.float32)
            q = weight_integers(weight, scale, site.axis, site.low, site.high)
            scale = scale[0] if site.axis is None else scale
            # Gemm stays in float without it
            zero = self.store(f"zeros.{'x'.join(map(str, scale.shape))}", np.zeros(scale.shape, np.int8))
            operands = [self.store(f"{known.weight}.q", q), self.store(f"{known.weight}.s", np.array(scale)), zero]
            axis = {} if site.axis is None else {"axis": site.axis}
            self.nodes.append(helper.make_node("DequantizeLinear", operands, [name], **axis))
            self.weights.add(name)
        return name

    def bias(self, known: Layer) -> str:
        """The bias of a layer as int32 at the product of its operands' scales."""
        x, weight = self.grid[known.x], self.grid[known.weight]
        q, scale = bias_integers(self.graph.constants[known.bias], np.array(x.scale[0]), np.array(weight.scale))
        return self.dequantize(f"{known.name}.bias", q, scale)

    def keep_float(self, made: onnx.NodeProto) -> None:
        """Puts a LeakyRelu that changes nothing behind a layer that stays float between integers: else onnxruntime
        rounds its weight to int8 with one scale (core/optimizer/qdq_transformer/weight_bias_quantization.cc). Its float
        kernel computes both at once."""
        from onnx import helper

        name, kept = made.output[0], self.fresh(f"{made.output[0]}.kept")
        made.output[0] = kept
        self.nodes.append(helper.make_node("LeakyRelu", [kept], [name], alpha=1.0))

    def mistaken(self, node: onnx.NodeProto) -> bool:
        """Whether onnxruntime takes a layer that stays float for one in int8: integers stand before and behind it."""
        made = {node.output[0], clipped(node.output[0], self.graph)}
        return node.output[0] in self.kept_float and node.input[0] in self.on and not made.isdisjoint(self.on)

    def hides(self, node: onnx.NodeProto) -> bool:
        """Whether a Relu hides the product before it from onnxruntime, which looks for integers behind a Relu that one
        operator alone reads, finds floats, and keeps the product in float (qdq_transformer/selectors_actions/
        qdq_selectors.cc). As a LeakyRelu of slope 0 it does not."""
        layer = self.layers.get(node.input[0]) if node.op_type == "Relu" else None
        hidden = layer is not None and layer.kind != "Conv" and node.output[0] not in self.on
        return hidden and self.graph.reader(node.output[0]) is not None

    def dequantize(self, wanted: str, q: np.ndarray, scale: np.ndarray) -> str:
        from onnx import helper

        name = self.fresh(wanted)
        operands = [self.store(f"{name}.q", q), self.store(f"{name}.s", scale)]
        self.nodes.append(helper.make_node("DequantizeLinear", operands, [name], axis=0))
        return name

    def superfluous(self, node: onnx.NodeProto) -> bool:
        """Whether the rounding of what a clip makes clips as it does. It is left out then: onnxruntime recognizes few,
        and keeps the layer before the others in float."""
        name, before, values = node.output[0], node.input[0], self.placement.values
        if name not in values or clip(node, self.graph) is None or before not in self.graph.makers:
            return False
        if before in self.on or self.graph.reader(before) is None:
            return False
        site = self.grid[name]
        return clips_itself(values[name], site.scale[0], site.zero_point, site.high)
