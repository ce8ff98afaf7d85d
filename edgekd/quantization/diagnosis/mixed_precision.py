"""Mixed precision by what it buys: which layers stay in float for the noise that they no longer make, against the time
that int8 would save."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from torch import fx

    from edgekd.measure.operators import Operators

# what a layer's kernel may compute with it
FUSED = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "HardSwish"}


def choose(noise: Mapping[str, float], saved: Mapping[str, float], budget: float) -> tuple[str, ...]:
    """The layers to leave in float, in the order of `noise`.

    noise   {layer: output noise that goes if it stays in float}, in any unit that adds up
    saved   {layer: microseconds that int8 saves there}, negative where int8 is slower; a layer without a figure stays
            quantized
    budget  microseconds that may be given up in all

    Layers whose int8 is slower come first, whatever their noise, and what they give back is spent too. The others by
    noise removed per microsecond, each that still fits; or the one alone that removes more than these (so never less
    than half of the best choice: Martello, Toth 1990, "Knapsack Problems", section 2.4). Layers that cost no time and
    make noise are taken; those whose noise is not above 0 are not."""
    first = [n for n in noise if saved.get(n, 0) < 0]
    others = [n for n in noise if n in saved and saved[n] >= 0 and noise[n] > 0]
    room = budget - sum(saved[n] for n in first)
    fitting = sorted(
        (n for n in others if saved[n] <= room),
        key=lambda n: (-noise[n] / saved[n] if saved[n] else -float("inf"), saved[n]),
    )
    taken: list[str] = []
    for name in fitting:
        if sum(saved[n] for n in taken) + saved[name] <= room:
            taken.append(name)
    if fitting:
        best = max(fitting, key=lambda n: noise[n])
        if noise[best] > sum(noise[n] for n in taken):
            taken = [best]
    return tuple(n for n in noise if n in {*first, *taken})


def named(model: onnx.ModelProto, graph: fx.GraphModule) -> onnx.ModelProto:
    """A copy of a file that `formats.onnx` made of the captured `graph`, its layers' nodes called as there. It computes
    the same; onnxruntime makes its kernels' names of nodes' names, and files that are delivered have none.

    Layers are matched by their order, which both share. Raises ValueError where the file has more or fewer."""
    import copy

    from edgekd.quantization.qdq import graph as graphs
    from edgekd.quantization.torch_graph.sites import layers

    made, known = copy.deepcopy(model), list(layers(graph))
    stored, kinds = graphs.of(made).stored, (*graphs.LAYERS, "ConvTranspose")
    found = [n for n in made.graph.node if n.op_type in kinds and n.input[1] in stored]
    if len(found) != len(known):
        raise ValueError(f"the file has {len(found)} layers, the graph {len(known)}")
    for node, name in zip(found, known, strict=True):
        node.name = name
    return made


def saved(float_operators: Operators, int8_operators: Operators, float_file: Path, int8_file: Path) -> dict[str, float]:
    """{layer: microseconds that int8 saves there per inference}, negative where it is slower, of traces of `named`
    files. Layers that one of them doesn't name or the runtime didn't time are left out.

    Only the kernels of the layers themselves are compared: what stands between integer and float layers
    (QuantizeLinear, DequantizeLinear, Transpose) belongs to no layer, and a float layer of an integer value has no
    blocked layout, so that a single one among integer layers costs more than this: 121 us where 46 were told, of a 3x3
    convolution of 32 channels at 32 x 32 on one thread with VNNI. With the mixed file's trace as `float_operators` it
    is what such a layer takes."""
    before, after = times(float_operators, float_file), times(int8_operators, int8_file)
    return {name: 1000 * (ms - after[name]) for name, ms in before.items() if name in after}


def times(found: Operators, path: Path) -> dict[str, float]:
    """{layer: milliseconds of its kernels} of a file whose layers are `named`."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    makers, layers = {o: n for n in nodes for o in n.output}, [n.name for n in nodes if n.name]
    total: dict[str, float] = {}
    for operator in found.operators:
        name = layer_of(operator.name, layers) or by_value(operator.name, makers)
        if name is not None:
            total[name] = total.get(name, 0.0) + operator.ms
    return {name: total[name] for name in layers if name in total}


def layer_of(operator: str, layers: Sequence[str]) -> str | None:
    """The layer whose name an operator of onnxruntime bears: `conv2d_1` in `conv2d_1_token_5` (moved to channels last)
    and `fused conv2d_1`."""
    text = re.sub(r"^fused ", "", operator)
    text = re.sub(r"_token_\d+$", "", text)
    return text if text in layers else None


def by_value(operator: str, makers: Mapping) -> str | None:
    """The layer that makes a value: convolutions in onnxruntime's blocked layout are called by it, as `v6_nchwc`."""
    node = makers.get(re.sub(r"_nchwc(_token_\d+)?$", "", operator)) if "_nchwc" in operator else None
    while node is not None and not node.name and node.op_type in FUSED:
        node = makers.get(node.input[0])
    return (node.name or None) if node is not None else None
