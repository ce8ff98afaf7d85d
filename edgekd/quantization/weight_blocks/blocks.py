"""Block-wise weights as a table: integers, scales and zero points of each linear layer of a captured graph; what it
reads stays in float.

A weight [N outputs, K inputs] is cut along K into blocks of `block` values (the last may be short), each with a scale
and a zero point: w[n, k] = scales[n, k // block] * (integers[n, k] - zero_points[n, k // block]). The table is what a
search found and a format renders."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import RunFailed
from edgekd.quantization.torch_graph.sites import operator

if TYPE_CHECKING:
    from torch import fx

    from edgekd.records import Artifact, Task

SCHEMA = "edgekd.blocks/1"
ARRAYS = ("integers", "scales", "zero_points", "gain")


@dataclass(frozen=True)
class Blocks:
    """One layer's weight. `integers` uint8 [N, K] in [0, 2^bits); `scales` float32 and `zero_points` uint8 [N, ceil(K /
    block)]; `gain` float32 [K] is what its input is multiplied by first, None for nothing."""

    bits: int
    block: int
    integers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    gain: np.ndarray | None = None


def linears(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """{name: node} of the linear layers whose weight [N, K] nothing but linear layers reads, in graph order: a weight
    that is also an embedding would be stored twice."""
    shared = {
        n.target
        for n in graph.graph.nodes
        if n.op == "get_attr" and any(operator(u) != "linear" or u.args[1] is not n for u in n.users)
    }
    nodes = {n.name: n for n in graph.graph.nodes if operator(n) == "linear" and n.args[1].op == "get_attr"}
    return {name: n for name, n in nodes.items() if n.args[1].target not in shared}


def dequantize(blocks: Blocks) -> np.ndarray:
    """float32 [N, K]: the dequantized weights."""
    width = blocks.integers.shape[1]
    wide = lambda a: np.repeat(a, blocks.block, axis=1)[:, :width]
    return (wide(blocks.scales) * (blocks.integers.astype(np.int32) - wide(blocks.zero_points))).astype(np.float32)


def stored_bytes(outputs: int, inputs: int, bits: int, block: int) -> int:
    """Bytes of a weight [outputs, inputs] in a file: integers, a float32 scale and a zero point per block."""
    count = -(-inputs // block)
    return outputs * (count * block * bits // 8 + 4 * count + -(-count * bits // 8))


def bytes_of(blocks: Blocks) -> int:
    return stored_bytes(*blocks.integers.shape, blocks.bits, blocks.block)


def packed(blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(integers, scales, zero points) as onnxruntime's com.microsoft.MatMulNBits reads them (docs/ContribOperators.md):
    uint8 [N, blocks, block * bits / 8], float32 [N, blocks], uint8 [N, ceil(blocks * bits / 8)]; of two 4-bit values
    the first lies in the low bits."""
    outputs, count = blocks.scales.shape
    padded = np.zeros((outputs, count * blocks.block), np.uint8)
    padded[:, : blocks.integers.shape[1]] = blocks.integers
    return _pack(padded, blocks.bits).reshape(outputs, count, -1), blocks.scales, _pack(blocks.zero_points, blocks.bits)


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [N, ceil(n * bits / 8)] of values [N, n] below 2^bits, bits 4 or 8."""
    if bits == 8:
        return np.ascontiguousarray(values, np.uint8)
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.uint8)
    return even[:, 0::2] | even[:, 1::2] << 4


def apply(graph: fx.GraphModule, table: Mapping[str, Blocks]) -> fx.GraphModule:
    """A copy of the graph whose layers have the table's weights in float, and their gains before them. Raises RunFailed
    for a layer that it has not, or not of this shape."""
    import torch

    module = copy.deepcopy(graph)
    nodes = {n.name: n for n in module.graph.nodes}
    for name, blocks in table.items():
        node = nodes.get(name)
        if node is None or tuple(getattr(module, node.args[1].target).shape) != blocks.integers.shape:
            raise RunFailed(
                f"the table of blocks is of another graph: it has no linear layer `{name}` "
                f"{list(blocks.integers.shape)}"
            )
        module.register_buffer(f"{name}__weight", torch.from_numpy(dequantize(blocks)))
        with module.graph.inserting_before(node):
            node.replace_input_with(node.args[1], module.graph.get_attr(f"{name}__weight"))
        gain(module, node, blocks)
    return _settled(module)


def gain(module: fx.GraphModule, node: fx.Node, blocks: Blocks) -> None:
    """Multiplies what a layer reads by its gain, in place."""
    import torch

    if blocks.gain is None:
        return
    module.register_buffer(f"{node.name}__gain", torch.from_numpy(blocks.gain))
    with module.graph.inserting_before(node):
        scaled = module.graph.call_function(
            torch.ops.aten.mul.Tensor, (node.args[0], module.graph.get_attr(f"{node.name}__gain"))
        )
    scaled.meta["val"] = node.args[0].meta.get("val")
    node.args = (scaled, *node.args[1:])


def _settled(module: fx.GraphModule) -> fx.GraphModule:
    module.graph.eliminate_dead_code()
    used = {n.target for n in module.graph.nodes if n.op == "get_attr"}
    for store in (module._parameters, module._buffers):
        for name in [n for n in store if n not in used]:
            del store[name]
    module.recompile()
    return module.eval()


def load(artifact: Artifact, task: Task, example: Any) -> tuple[fx.GraphModule, dict[str, Blocks]]:
    """(captured float graph, table) of a `weight_only` artifact. Raises RunFailed where the table is of another
    graph."""
    from edgekd.models import saved
    from edgekd.quantization.torch_graph.capture import graph_digest, of_task

    graph = of_task(task, saved.build(saved.record_of(artifact), task), example)
    graph.load_state_dict(saved.read_tensors(artifact.folder / "weights.safetensors"))
    table, digest = read(artifact.folder)
    if digest != graph_digest(graph):
        raise RunFailed("the table of blocks is of another graph than the model's")
    return graph, table


def write(table: Mapping[str, Blocks], graph: str, folder: Path) -> None:
    """blocks.json (schema edgekd.blocks/1: digest of the graph, bits and block size of each layer) and
    blocks.safetensors."""
    from safetensors.numpy import save_file

    arrays = {
        f"{name}.{key}": getattr(b, key) for name, b in table.items() for key in ARRAYS if getattr(b, key) is not None
    }
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / "blocks.safetensors")
    record = {
        "schema": SCHEMA,
        "graph": graph,
        "layers": {name: {"bits": b.bits, "block": b.block} for name, b in table.items()},
    }
    (folder / "blocks.json").write_text(json.dumps(record, indent=1) + "\n")


def read(folder: Path) -> tuple[dict[str, Blocks], str]:
    """(table, digest of the graph). Raises RunFailed for files of another schema or form."""
    from safetensors.numpy import load_file

    try:
        record = json.loads((folder / "blocks.json").read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
        arrays = load_file(folder / "blocks.safetensors")
        table = {
            name: Blocks(**facts, **{k: arrays.get(f"{name}.{k}") for k in ARRAYS})
            for name, facts in record["layers"].items()
        }
        if missing := [
            name for name, b in table.items() if b.integers is None or b.scales is None or b.zero_points is None
        ]:
            raise ValueError(f"no arrays of {', '.join(missing)}")
        return table, record["graph"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFailed(f"blocks.json and blocks.safetensors are no table that can be read: {error}") from error
