"""A placed ONNX graph with its quantization parameters in QDQ form: QuantizeLinear and DequantizeLinear behind each
quantized value, weights as int8, biases as int32 at the product of their operands' scales. The form is that of
`formats.onnx`, which onnxruntime fuses to integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.onnx_files import external
from edgekd.quantization.onnx_graph.draft import copied
from edgekd.quantization.onnx_graph.placement import ASKED, Layer, Placement, clip
from edgekd.quantization.parameters import bias_integers, clips_itself, weight_integers
from edgekd.quantization.qdq.graph import Graph, exact_bias
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
        self.kept_float = {k.name for k in placement.layers if k.reason == ASKED and k.kind in ("Conv", "Gemm")}
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
        if node.output[0] in self.on and self.superfluous(node):
            self.quantize(node.input[0], node.output[0], node.output[0])
            return
        made, layer = copied(node), self.layers.get(node.output[0])
        made.input[:] = [self.renamed.get(n, n) for n in node.input]
        if layer is not None and layer.weight is not None:
            made.input[1] = self.weight(layer)
            if layer.bias is not None:
                made.input[2] = self.bias(layer)
        if node.output[0] in self.kept_float and (len(node.input) < 3 or node.input[2] in ("", *self.graph.constants)):
            made.input[:] = [*made.input[:2], self.float_bias(node)]
        made.output[:] = [self.fresh(f"{n}.raw") if n in self.on else n for n in node.output]
        self.nodes.append(made)
        for name, raw in zip(node.output, made.output, strict=True):
            if name in self.on:
                self.quantize(raw, name, name)

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

    def float_bias(self, node: onnx.NodeProto) -> str:
        """The bias of a layer that stays float, as integers too."""
        stored, shape = self.graph.constants.get((*node.input, "")[2]), self.graph.constants[node.input[1]].shape
        q, scale = exact_bias(node, shape, stored)
        return self.dequantize(f"{node.output[0]}.bias", q, scale)

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
