"""The precision that a model computes in while it trains or teaches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["float32", "bfloat16"]


@contextlib.contextmanager
def laid_out(module: nn.Module, precision: Precision) -> Iterator[Callable[[], Any]]:
    """Gives the context that the forward pass runs in. For bfloat16 the weights are laid out channels last meanwhile,
    as its kernels want."""
    import torch

    if precision == "float32":
        yield contextlib.nullcontext
        return
    module.to(memory_format=torch.channels_last)
    try:
        yield lambda: torch.autocast("cpu", torch.bfloat16)
    finally:
        module.to(memory_format=torch.contiguous_format)
