"""Operators written as ones that integer kernels know: attention as two products of matrices, linear layers over rows,
means as pooling."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edgekd.quantization.torch_graph.sites import clip, operator

if TYPE_CHECKING:
    import torch
    from torch import fx


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(q k' s + mask) v of tensors [..., tokens, width] (Vaswani et al. 2017, equation 1), as torch defines the
    arguments; in evaluation there is no dropout. The scores are scaled after their product, so that the product reads
    what its operands' integers hold."""
    import torch

    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value


def written_out(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with every fused attention as `attention`."""
    import torch

    fused = torch.ops.aten.scaled_dot_product_attention.default
    if not any(node.target is fused for node in program.graph.nodes):
        return program
    return program.run_decompositions({fused: attention})


NEUTRAL = {"mul": 1, "div": 1, "add": 0, "sub": 0}


def without_neutral(graph: fx.Graph) -> None:
    """Drops x * 1, x / 1, x + 0, x - 0 and x[:]: onnxruntime drops them too, and then makes one of the two
    quantizations on either side."""
    for node in list(graph.nodes):
        if operator(node) == "slice" and not node.kwargs and node.args[2:4] in ((0, sys.maxsize), (None, sys.maxsize)):
            if len(node.args) < 5 or node.args[4] == 1:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            continue
        name = operator(node)
        if (
            name not in NEUTRAL
            or node.kwargs
            or not isinstance(node.args[1], int | float)
            or node.args[1] != NEUTRAL[name]
        ):
            continue
        if isinstance(node.args[0], type(node)) and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def pooled(graph: fx.Graph) -> None:
    """A mean over height and width that drops them becomes one that keeps them, and a view: global average pooling has
    an integer kernel."""
    import torch

    for node in list(graph.nodes):
        if (
            operator(node) != "mean"
            or node.kwargs
            or len(node.args) < 2
            or not node.args[1]
            or node.args[0].meta["val"].ndim != 4
        ):
            continue
        if sorted(d % 4 for d in node.args[1]) != [2, 3] or node.args[2:] not in ((), (False,)):
            continue
        result, readers = node.meta["val"], list(node.users)
        node.args = (*node.args[:2], True)
        node.meta["val"] = node.args[0].meta["val"].mean((2, 3), True)
        with graph.inserting_after(node):
            flat = graph.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
        flat.meta = {"val": result}
        for reader in readers:
            reader.replace_input_with(node, flat)


def by_rows(graph: fx.Graph) -> None:
    """Linear layers over [batch, ..., features] become ones over rows [n, features]: ONNX has a bias (and onnxruntime
    an integer kernel that adds it before it rounds) only there. Views cost nothing; a clip that alone follows stays
    with its layer."""
    import torch

    for node in list(graph.nodes):
        if operator(node) != "linear" or node.meta["val"].ndim < 3:
            continue
        value, result = node.args[0].meta["val"], node.meta["val"]
        shape: list[Any] = [d if isinstance(d, int) else -1 for d in result.shape]
        with graph.inserting_before(node):
            for axis in [axis for axis, size in enumerate(shape) if size == -1][:-1]:  # a reshape finds one
                shape[axis] = graph.call_function(torch.ops.aten.sym_size.int, (node.args[0], axis))
                shape[axis].meta = {"val": value.shape[axis]}
        with graph.inserting_before(node):
            rows = graph.call_function(torch.ops.aten.reshape.default, (node.args[0], [-1, value.shape[-1]]))
        rows.meta = {"val": value.reshape(-1, value.shape[-1])}
        node.update_arg(0, rows)
        flat = result.reshape(-1, result.shape[-1])
        last, users = node, list(node.users)
        if len(users) == 1 and clip(users[0]):
            last = users[0]
            last.meta["val"] = flat
        node.meta["val"] = flat
        readers = list(last.users)
        with graph.inserting_after(last):
            back = graph.call_function(torch.ops.aten.reshape.default, (last, shape))
        back.meta = {"val": result}
        for reader in readers:
            reader.replace_input_with(last, back)
