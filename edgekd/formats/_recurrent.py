"""Recurrent layers as the ONNX operators RNN, GRU and LSTM: one for each layer, with the weights in ONNX's order of
gates. A state that begins at zero is no input of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError
from edgekd.quantization.torch_graph.sites import operator

if TYPE_CHECKING:
    from torch import Tensor, fx

# {operator of torch: (ONNX's, ONNX's gates as numbers of torch's, its attributes)}
KINDS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # torch: reset, update, new
    "lstm": ("LSTM", (0, 3, 1, 2), {}),  # torch: input, forget, cell, output
    "rnn_tanh": ("RNN", (0,), {"activations": "Tanh"}),
    "rnn_relu": ("RNN", (0,), {"activations": "Relu"}),
}


def written(module: fx.GraphModule, opset: int) -> fx.GraphModule:
    """Replaces every recurrent layer of a captured graph, in place. Raises UsageError for a projected LSTM, which ONNX
    has not."""
    for node in list(module.graph.nodes):
        if operator(node) not in KINDS:
            continue
        given, states, params, biased, layers, _, _, both, first, *_ = node.args
        tensors = [getattr(module, p.target).detach() for p in params]
        directions = 2 if both else 1
        each = len(tensors) // (layers * directions)
        if each != (4 if biased else 2):
            text = "is an LSTM with proj_size, which ONNX has no operator for"
            raise UsageError(Problem(f"layer {node.name}", text, "leave proj_size out, or add a linear layer"))
        groups = [tensors[i * directions * each : (i + 1) * directions * each] for i in range(layers)]
        stacked = [[_gates(operator(node), group[i::each]) for i in range(each)] for group in groups]
        module.add_submodule(f"recurrent_{node.name}", _layer(operator(node), stacked, directions, first, opset))
        states = states if isinstance(states, (list, tuple)) else [states]
        states = () if all(operator(s) == "zeros" for s in states) else states
        with module.graph.inserting_before(node):
            called = module.graph.call_module(f"recurrent_{node.name}", (given, *states))
        called.meta = node.meta
        node.replace_all_uses_with(called)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _gates(kind: str, tensors: list[Tensor]) -> Tensor:
    """[directions, gates * hidden, ...] of a weight or bias per direction, in ONNX's order of gates."""
    import torch

    order = KINDS[kind][1]
    return torch.stack([torch.cat([t.chunk(len(order))[gate] for gate in order]) for t in tensors])


def _layer(kind: str, stacked: list[list[Tensor]], directions: int, batch_first: bool, opset: int) -> Any:
    """A module that gives what torch's operator does: (outputs, states...)."""
    import torch
    from torch import nn

    name, _, more = KINDS[kind]
    count, hidden = 2 if kind == "lstm" else 1, stacked[0][1].shape[-1]
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    attributes |= {k: [v] * directions if k == "activations" else v for k, v in more.items()}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, (weight, recurrence, *biases) in enumerate(stacked):
                self.register_buffer(f"w{i}", weight)
                self.register_buffer(f"r{i}", recurrence)
                self.register_buffer(f"b{i}", torch.cat(biases, 1) if biases else None)

        def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
            x = x.transpose(0, 1) if batch_first else x
            ends = []
            for i in range(len(stacked)):
                part = slice(i * directions, (i + 1) * directions)
                steps, rows = x.shape[0], x.shape[1]
                given = [getattr(self, f"{p}{i}") for p in "wrb"] + [None] + [s[part] for s in states]
                shapes = [(steps, directions, rows, hidden)] + [(directions, rows, hidden)] * count
                x, *end = torch.onnx.ops.symbolic_multi_out(
                    name, (x, *given), attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes, version=opset
                )
                ends.append(end)
                x = x.squeeze(1) if directions == 1 else x.transpose(1, 2).reshape(steps, rows, directions * hidden)
            x = x.transpose(0, 1) if batch_first else x
            return x, *(torch.cat(s) if len(stacked) > 1 else s[0] for s in zip(*ends, strict=True))

    return Recurrent()
