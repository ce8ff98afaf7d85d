"""Which layer of a file with block-wise weights isn't the model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.quantization.qdq.values import file_values
from edgekd.quantization.watch import watch
from edgekd.quantization.weight_blocks.blocks import Blocks, packed

if TYPE_CHECKING:
    from torch import fx

TOLERANCE = 1e-4  # relative to the largest value of a layer


def first_difference(
    module: fx.GraphModule, table: Mapping[str, Blocks], path: Path, inputs: Any, feed: Mapping[str, np.ndarray]
) -> str:
    """`; first at ...`: the first layer of `table` whose integers and scales the file doesn't hold, or whose output in
    the file differs from that of `module`, the graph with the dequantized weights. `inputs` tensors and `feed`
    arrays are the same few samples."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    stored = {i.name: i for i in model.graph.initializer}
    held: dict[tuple[bytes, bytes], list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            key = tuple(numpy_helper.to_array(stored[name]).tobytes() for name in node.input[1:3])
            held.setdefault(key, []).append(node.output[0])
    names = {}
    for layer, blocks in table.items():
        found = held.get(tuple(a.tobytes() for a in packed(blocks)[:2]))
        if not found:
            return f"; first at `{layer}`: the file does not hold its integers and scales"
        names[layer] = found.pop(0)
    (ours,), theirs = list(watch(module, [inputs], set(names))), file_values(path, list(names.values()), feed)
    for layer, name in names.items():
        a, b = ours[layer].numpy(), theirs[name]
        apart = np.abs(a - b)
        if not apart.max(initial=0) <= TOLERANCE * max(float(np.abs(a).max(initial=0)), 1e-6):
            at = np.unravel_index(int(apart.argmax()), apart.shape)
            return (
                f"; first at `{layer}`: {a[at]:.6g} in the model, {b[at]:.6g} in the file at "
                f"{tuple(int(i) for i in at)}"
            )
    return "; no single layer differs"
