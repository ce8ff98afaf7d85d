"""Small networks to time on a device: each has mostly one kind of work, the last two a mixture. Their weights are
random.

`models()` gives every network twice, in float and as QDQ int8 (unsigned activations, signed weights per channel: what
onnxruntime's integer kernels take on all CPUs). Timing all of them takes a few minutes on a slow board, seconds on a
fast one; `rows` makes a fit's input of the times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.predicting.costs import PRECISIONS, Precision
from edgekd.predicting.population import Row, row
from edgekd.predicting.work import work_of

Layer = tuple[Any, ...]
OPSET, IR = 13, 8
SCALE = 0.05  # of all activations in int8

# name: (input shape, layers); conv: channels, kernel, stride, groups
NETWORKS: Mapping[str, tuple[tuple[int, ...], tuple[Layer, ...]]] = {
    "gemm wide": ((1, 256, 14, 14), (("conv", 512, 1, 1, 1), ("conv", 256, 1, 1, 1)) * 2),
    "gemm narrow": ((1, 16, 56, 56), (("conv", 64, 1, 1, 1), ("conv", 16, 1, 1, 1)) * 2),
    "3x3 wide": ((1, 256, 14, 14), (("conv", 256, 3, 1, 1),)),
    "3x3 narrow": ((1, 16, 56, 56), (("conv", 16, 3, 1, 1),) * 4),
    "3x3 deep": ((1, 512, 7, 7), (("conv", 512, 3, 1, 1),)),
    "dense": ((1, 3, 112, 112), (("conv", 32, 7, 2, 1), ("conv", 64, 3, 2, 1), ("conv", 32, 5, 1, 1))),
    "depthwise": ((1, 128, 56, 56), (("conv", 128, 3, 1, 128), ("conv", 128, 5, 2, 128), ("conv", 128, 3, 1, 128),
                   ("conv", 128, 3, 1, 128))),
    "grouped": ((1, 64, 28, 28), (("conv", 64, 3, 1, 8),) * 4),
    "weights": ((1, 1024), (("fc", 2048), ("fc", 1024))),
    "touched": ((1, 64, 56, 56), (("sum",), ("gate",), ("sum",), ("twice",), ("pool",), ("sum",))),
    "operators": ((1, 16, 7, 7), (("conv", 16, 1, 1, 1),) * 48),
    "uneven": ((1, 30, 28, 28),
               (("conv", 58, 1, 1, 1), ("conv", 58, 3, 1, 58), ("conv", 42, 1, 1, 1), ("conv", 30, 3, 1, 1))),
    "tokens": ((1, 128, 128), (("fc", 512), ("fc", 128), ("fc", 512), ("fc", 128))),
    "mobile": (
        (1, 3, 160, 160),
        (
            *(("conv", 16, 3, 2, 1), ("conv", 16, 3, 1, 16), ("conv", 32, 1, 1, 1), ("conv", 96, 1, 1, 1),
              ("conv", 96, 3, 2, 96)),
            *(("conv", 48, 1, 1, 1), ("conv", 192, 1, 1, 1), ("conv", 192, 3, 1, 192), ("conv", 48, 1, 1, 1), ("sum",)),
            *(("conv", 256, 1, 1, 1), ("mean",), ("fc", 100)),
        ),
    ),
    "residual": (
        (1, 3, 112, 112),
        (
            *(("conv", 32, 3, 2, 1), ("conv", 32, 3, 1, 1), ("sum",), ("conv", 64, 3, 2, 1), ("conv", 64, 3, 1, 1),
              ("sum",)),
            *(("conv", 128, 3, 2, 1), ("conv", 128, 3, 1, 1), ("sum",), ("conv", 512, 3, 2, 1), ("conv", 512, 3, 1, 1),
              ("mean",), ("fc", 1000)),
        ),
    ),
}  # fmt: skip


def models() -> dict[tuple[str, Precision], bytes]:
    """{(network, precision): ONNX file}."""
    return {(name, precision): _model(name, precision == "int8") for name in NETWORKS for precision in PRECISIONS}


def rows(milliseconds: Mapping[tuple[str, Precision], float], source: str) -> tuple[Row, ...]:
    """Timed probes as rows: {(network, precision): milliseconds per inference}. Some may be missing."""
    import onnx

    made = models()
    return tuple(
        row(work_of(onnx.load_model_from_string(made[key])), ms, key[1], source) for key, ms in milliseconds.items()
    )


def _model(name: str, int8: bool) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    shape, layers = NETWORKS[name]
    graph = _Graph(int8, np.random.default_rng(0))
    value, size = graph.quantized("input") if int8 else "input", shape
    for layer in layers:
        value, size = _layer(graph, layer, value, size)
    graph.add("Identity", [value], output="output")
    given, made = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("input", shape), ("output", size))
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, [given], [made], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _layer(graph: _Graph, layer: Layer, value: str, size: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """One layer after `value` of shape `size`: (its value, its shape)."""
    kind, *settings = layer
    if kind == "conv":
        co, k, stride, groups = settings
        weight = graph.weight((co, size[1] // groups, k, k))
        pads = [k // 2] * 4
        made = graph.add("Conv", [value, *weight], kernel_shape=[k, k], strides=[stride] * 2, pads=pads, group=groups)
        places = [(n + 2 * (k // 2) - k) // stride + 1 for n in size[2:]]
        return graph.settle(graph.add("Relu", [made]), 0), (size[0], co, *places)
    if kind == "fc":
        (co,) = settings
        if len(size) == 2:
            return graph.settle(graph.add("Gemm", [value, *graph.weight((co, size[1]))], transB=1)), (size[0], co)
        return graph.settle(graph.add("MatMul", [value, graph.weight((size[-1], co), axis=1)[0]])), (*size[:-1], co)
    if kind == "sum":
        return graph.settle(graph.add("Add", [value, value])), tuple(size)
    if kind == "gate":
        return graph.settle(graph.add("Mul", [value, graph.settle(graph.add("Sigmoid", [value]))])), tuple(size)
    if kind == "twice":
        return graph.settle(graph.add("Concat", [value, value], axis=1)), (size[0], 2 * size[1], *size[2:])
    if kind == "pool":
        made = graph.add("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
        return graph.settle(made), (*size[:2], size[2] // 2, size[3] // 2)
    made = graph.add("Flatten", [graph.settle(graph.add("GlobalAveragePool", [value]))])
    return graph.settle(made), tuple(size[:2])


class _Graph:
    """Nodes and constants in the making."""

    def __init__(self, int8: bool, generator: np.random.Generator) -> None:
        self.int8, self.generator, self.nodes, self.constants = int8, generator, [], []

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def quantized(self, value: str, zero: int = 128) -> str:
        """Adds QuantizeLinear and DequantizeLinear. After a ReLU, `zero` is 0 as in real networks: otherwise runtimes
        can't remove the ReLU and compute in float."""
        scale = [self.constant(np.float32(SCALE)), self.constant(np.uint8(zero))]
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [value, *scale]), *scale])

    def settle(self, value: str, zero: int = 128) -> str:
        return self.quantized(value, zero) if self.int8 else value

    def weight(self, shape: tuple[int, ...], axis: int = 0) -> tuple[str, str]:
        """(weight, bias): in int8 with a scale per slice along `axis`, which is the output's."""
        terms = int(np.prod(shape)) // shape[axis]
        values = self.generator.standard_normal(shape).astype(np.float32) * np.float32((2 / terms) ** 0.5)
        if not self.int8:
            return self.constant(values), self.constant(np.zeros(shape[axis], np.float32))
        scale = np.full(shape[axis], 4 * (2 / terms) ** 0.5 / 127, np.float32)
        along = [1] * len(shape)
        along[axis] = -1
        whole = np.clip(np.rint(values / scale.reshape(along)), -127, 127).astype(np.int8)
        zero = self.constant(np.zeros(shape[axis], np.int8))
        made = self.add("DequantizeLinear", [self.constant(whole), self.constant(scale), zero], axis=axis)
        bias = [
            self.constant(np.zeros(shape[axis], np.int32)),
            self.constant(scale * np.float32(SCALE)),
            self.constant(np.zeros(shape[axis], np.int32)),
        ]
        return made, self.add("DequantizeLinear", bias, axis=0)
