"""The precision of a model during training, or as a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["float32", "bfloat16", "float16"]


def forward_in(module: nn.Module, precision: Precision) -> Callable[[], Any]:
    """A context for the forward pass on the device where the module is. For bfloat16 and float16, the weights are put
    into the channels-last memory format, which their kernels need."""
    import torch

    from edgekd.models import device

    if precision == "float32":
        return contextlib.nullcontext
    module.to(memory_format=torch.channels_last)
    where, kind = device.of(module).type, getattr(torch, precision)
    return lambda: torch.autocast(where, kind)


@contextlib.contextmanager
def laid_out(module: nn.Module, precision: Precision) -> Iterator[Callable[[], Any]]:
    """Yields `forward_in`; the weights have their usual memory format afterwards."""
    import torch

    try:
        yield forward_in(module, precision)
    finally:
        if precision != "float32":
            module.to(memory_format=torch.contiguous_format)
