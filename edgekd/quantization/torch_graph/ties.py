"""Scales at which no value falls beside a tie where all that is rounded is a function of one quantized value,
such as x sigmoid(x).

Such a function takes 256 values at most. Two libraries compute it to the last bits otherwise, and where one of the 256
lies between two steps they round it apart: all values of that number at once, a whole step, in every file and on every
CPU. A scale that is wider by less than half a per cent leaves none of them there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekd.quantization.parameters import clips_itself
from edgekd.quantization.torch_graph.modules import Value
from edgekd.quantization.torch_graph.sites import operator

# steps between a value and a tie: libraries differ by some 1e-7 of a value, so 1e-4 steps at the end of the integer
# range
MARGIN = 2.0**-11
WIDER = tuple(1 + k * 2.0**-14 for k in range(64))  # times the scale, tried in this order
MOST = 2**14  # values that a table may have: 256 for each of 64 channels
# single values in, single values out, though torch doesn't tag them
PLAIN = {"hardswish", "log_sigmoid", "prelu", "rsub", "alias"}


def clear(module: fx.GraphModule, value: Value) -> None:
    """Widens the scale of a settled `value` of the fake-quantized `module` until what is rounded to it keeps MARGIN
    from all ties; to the scale that keeps most where none does. Values that are no function of one quantized value keep
    their scale, and so do shares."""
    found = None if value.limits.share else table(module, value.name)
    if found is None:
        return
    scale, zero, fits = value.scale.item(), int(value.zero_point.item()), clips_itself(value.limits, *_of(value))
    tried = torch.tensor([scale * wider for wider in WIDER], dtype=torch.float32)
    best, most = scale, -1.0
    for candidate in tried.tolist():
        if clips_itself(value.limits, candidate, zero, value.high) != fits:
            break
        apart = margin(found, candidate, zero, value.high)
        if apart > most:
            best, most = candidate, apart
        if apart >= MARGIN:
            break
    value.scale.fill_(best)


def margin(values: torch.Tensor, scale: float, zero: int, high: int) -> float:
    """Steps between the nearest of `values` [n] and a tie between two integers, 0.5 at most; values that are cut off
    have none."""
    steps = values.double().flatten() / scale + zero
    steps = steps[(steps > -1) & (steps < high + 1)]
    return (steps - steps.floor() - 0.5).abs().min().item() if len(steps) else 0.5


def table(module: fx.GraphModule, site: str) -> torch.Tensor | None:
    """What is rounded at `site`, for each integer of the one value that it is a function of [256, ...]; None where it
    is no such function."""
    rounded = next(n for n in module.graph.nodes if n.op == "call_module" and n.target == f"value_{site}").args[0]
    between = _between(rounded, module.meta["placement"].tied)
    if between is None:
        return None
    leaf, order = between
    source = module.get_submodule(
        leaf.target if leaf.op == "call_module" else f"value_{module.meta['placement'].tied[leaf.name]}"
    )
    rank = (leaf.args[0] if leaf.op == "call_module" else leaf).meta["val"].ndim
    scale, zero, high = _of(source)
    known: dict[fx.Node, Any] = {leaf: ((torch.arange(high + 1) - zero) * scale).float().reshape(-1, *[1] * (rank - 1))}
    try:
        with torch.no_grad():
            for node in order:
                known[node] = _made(module, node, known)
    except (RuntimeError, IndexError):  # a parameter that wants as many channels as there are
        return None
    found = known[rounded]
    return found if found.numel() <= MOST and bool(found.isfinite().all()) else None


def _of(value: Value) -> tuple[float, int, int]:
    return value.scale.item(), int(value.zero_point.item()), value.high


def _made(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return getattr(module, node.target)
    return node.target(
        *fx.node.map_arg(node.args, known.__getitem__), **fx.node.map_arg(node.kwargs, known.__getitem__)
    )


def _between(rounded: fx.Node, tied: dict[str, str]) -> tuple[fx.Node, list[fx.Node]] | None:
    """(the only quantized value that `rounded` is computed from, number by number; the nodes between them in
    order)."""
    leaves, order, waiting = set(), {}, [rounded]
    while waiting:
        node = waiting.pop()
        if node in order:
            continue
        if node.op == "call_module" and node.target.startswith("value_") or node.name in tied:
            leaves.add(node)
        elif node.op == "get_attr" or node.op == "call_function" and _single(node):
            order[node] = None
            waiting += node.all_input_nodes
        else:
            return None
    if len(leaves) != 1 or rounded in leaves:
        return None
    return leaves.pop(), [n for n in rounded.graph.nodes if n in order]


def _single(node: fx.Node) -> bool:
    """Whether each number of the result depends on one number of each operand."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or operator(node) in PLAIN
