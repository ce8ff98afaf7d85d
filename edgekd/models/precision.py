"""The precision of a model during training, or as a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["float32", "bfloat16", "float16"]


@contextlib.contextmanager
def laid_out(module: nn.Module, precision: Precision) -> Iterator[Callable[[], Any]]:
    """Yields a context for the forward pass on the module's device. For bfloat16 and float16, the weights are in the
    channels-last memory format meanwhile, which their kernels need."""
    import torch

    from edgekd.models import device

    if precision == "float32":
        yield contextlib.nullcontext
        return
    module.to(memory_format=torch.channels_last)
    try:
        yield lambda: torch.autocast(device.of(module).type, getattr(torch, precision))
    finally:
        module.to(memory_format=torch.contiguous_format)
