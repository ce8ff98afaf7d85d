"""Layers with block-wise integer weights in ONNX: com.microsoft.MatMulNBits (onnxruntime docs/ContribOperators.md),
integers in the file.

Its accuracy_level is 1, floats throughout. DequantizeLinear in blocks before a MatMul says the same, but onnxruntime
makes of it a MatMulNBits of accuracy level 4 (session option `session.qdq_matmulnbits_accuracy_level`), which rounds
what the layer reads to 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekd.quantization.weight_blocks.blocks import Blocks, gain, packed

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

ACCURACY_LEVEL = 1


def render(graph: fx.GraphModule, table: Mapping[str, Blocks]) -> fx.GraphModule:
    """A copy of the graph that exports its layers in `table` as MatMulNBits; it computes nothing by itself."""
    module = copy.deepcopy(graph)
    for node in list(module.graph.nodes):
        if node.name not in table:
            continue
        blocks = table[node.name]
        gain(module, node, blocks)
        bias = node.args[2] if len(node.args) > 2 else None
        module.add_submodule(f"{node.name}__blocks", _layer(blocks))
        with module.graph.inserting_before(node):
            made = module.graph.call_module(
                f"{node.name}__blocks", (node.args[0], *([bias] if bias is not None else []))
            )
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _layer(blocks: Blocks) -> nn.Module:
    import torch
    from torch import nn

    outputs, inputs = blocks.integers.shape
    attributes = {
        "K": inputs,
        "N": outputs,
        "bits": blocks.bits,
        "block_size": blocks.block,
        "accuracy_level": ACCURACY_LEVEL,
    }

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            for name, array in zip(("integers", "scales", "zero_points"), packed(blocks), strict=True):
                self.register_buffer(name, torch.from_numpy(array.copy()))

        def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            operands = [x, self.integers, self.scales, self.zero_points, *([None, bias] if bias is not None else [])]
            shape = (*x.shape[:-1], outputs)
            return torch.onnx.ops.symbolic(
                "com.microsoft::MatMulNBits", operands, attributes, dtype=x.dtype, shape=shape, version=1
            )

    return Product()
