"""Ranges from data: every site keeps a histogram of fixed size, and a `ranges` part says what of it the integers
cover."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgekd import components
from edgekd.errors import RunFailed
from edgekd.inputs import positional
from edgekd.quantization.torch_graph.fake import parts, set_mode
from edgekd.quantization.torch_graph.modules import Value

if TYPE_CHECKING:
    from torch import fx, nn


def calibrate(module: fx.GraphModule, batches: Iterable[Any], ranges: str = "minmax", **hyper: Any) -> fx.GraphModule:
    """Sets every value's quantization parameters from `batches` (inputs [B, ...], or {name: tensor}); the module is
    exact afterwards.

    Raises RunFailed for values that are not finite, by their site, and for no data at all."""
    import torch

    part = components.find("ranges", ranges)
    set_mode(module.eval(), "observe")
    with torch.no_grad():
        for inputs in batches:
            call(module, inputs)
    for value in parts(module, Value):
        histogram = value.histogram
        if not histogram.total:
            raise RunFailed(f"calibration saw no values at `{value.name}`")
        given = {**({"bits": value.high.bit_length()} if "bits" in inspect.signature(part).parameters else {}), **hyper}
        value.set_range(*part(histogram, **given))
        value.calibrated = (histogram.low, histogram.high)
        value.histogram = type(histogram)()
    return set_mode(module, "exact")


def call(module: nn.Module, inputs: Any) -> Any:
    """A captured graph takes its inputs one by one."""
    return module(*positional(inputs))
