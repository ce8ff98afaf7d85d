"""Recurrent layers as single nodes of a captured graph. Without this, torch.export takes them apart where it works out
their shapes, and fixes the number of steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekd.quantization.torch_graph.sites import RECURRENT

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = (
    "(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool "
    "bidirectional, bool batch_first) -> "
)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Within it, recurrent layers are traced as one operator each, which `original` makes torch's own again."""
    import torch
    from torch.overrides import TorchFunctionMode

    operators = {getattr(torch._C._VariableFunctions, name): name for name in RECURRENT}

    class Whole(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = operators.get(function)
            if name is None or len(args) != 9 or isinstance(args[3], (list, tuple)):  # packed: not traced
                return function(*args, **(kwargs or {}))
            states = list(args[1]) if name == "lstm" else [args[1]]
            _library()
            return getattr(torch.ops.edgekd, name)(args[0], states, list(args[2]), *args[3:])

    with Whole():
        yield


def original(target: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """(operator, arguments) of a node as torch has it."""
    import torch

    name = str(target).split(".")
    if name[0] != "edgekd":
        return target, args
    states = args[1] if name[1] == "lstm" else args[1][0]
    return getattr(torch.ops.aten, name[1]).input, (args[0], states, *args[2:])


@cache
def _library() -> Any:
    """The operators, which have shapes and compute nothing."""
    import torch

    library = torch.library.Library("edgekd", "DEF")

    def shaped(given: Tensor, hx: list[Tensor], params: Any, *how: Any) -> tuple[Tensor, ...]:
        width = hx[0].shape[-1] * (2 if how[4] else 1)
        rows, steps = given.shape[:2] if how[5] else given.shape[1::-1]
        made = given.new_empty((steps, rows, width))
        return made.transpose(0, 1) if how[5] else made, *(torch.empty_like(state) for state in hx)

    for name in RECURRENT:
        library.define(name + SCHEMA + ("(Tensor, Tensor, Tensor)" if name == "lstm" else "(Tensor, Tensor)"))
        torch.library.register_fake(f"edgekd::{name}", shaped, lib=library)
    return library  # the operators live as long as it
