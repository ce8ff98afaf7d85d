"""Multiply-accumulates: counted in a forward pass, and as an exact function of the widths of a model's groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.inputs import each
from edgekd.pruning.coupling import Forward, Group, tensors

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


def run(model: nn.Module, inputs: Any, forward: Forward) -> tuple[list[torch.Tensor], int]:
    """Runs one forward pass: (the tensors of its output, its MACs). MACs are those of convolutions and matrix products
    in all modules and functions (torch's FlopCounterMode, halved)."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # fused transformer layers (used without gradients), attention and recurrent layers would be counted as 0: run their
    # parts separately
    with (
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
        counter,
    ):
        output = tensors(forward(model, inputs))
    return [t.detach() for t in output], counter.get_total_flops() // 2


def first_row(example: Any) -> Any:
    return each(example, lambda tensor: tensor[:1])


@dataclass(frozen=True)
class Cost:
    """MACs as a function of the units removed from each group: rest + sum over layers of
    per x (fan_in - lost_in . removed) x (fan_out - lost_out . removed). All integers, exact.

    per, fan_in, fan_out [L]; lost_in, lost_out [L, groups]; a depthwise convolution has fan_in 1 and lost_in 0."""

    rest: int
    per: np.ndarray
    fan_in: np.ndarray
    fan_out: np.ndarray
    lost_in: np.ndarray
    lost_out: np.ndarray

    def __call__(self, removed: np.ndarray) -> np.ndarray:
        """removed [..., groups] -> MACs [...]; fractions of a unit are allowed."""
        return (
            self.rest
            + ((self.fan_in - removed @ self.lost_in.T) * (self.fan_out - removed @ self.lost_out.T)) @ self.per
        )


def cost(model: nn.Module, row: Any, forward: Forward, groups: Sequence[Group], macs: int) -> Cost:
    """The cost of `model` (in evaluation mode) with `macs` MACs, from the shapes of its layers in a forward pass of one
    row."""
    import numpy as np
    from torch import nn

    places = _places(model, row, forward)
    layers = {name: model.get_submodule(name) for name in places}
    order = {name: i for i, name in enumerate(layers)}
    fan_in, fan_out, per = (np.zeros(len(layers), np.int64) for _ in range(3))
    lost_in, lost_out = (np.zeros((len(layers), len(groups)), np.int64) for _ in range(2))
    for name, i in order.items():
        m = layers[name]
        linear = isinstance(m, nn.Linear)
        fan_in[i] = m.in_features if linear else m.in_channels // m.groups
        fan_out[i] = m.out_features if linear else m.out_channels
        per[i] = places[name] if linear else places[name] * math.prod(m.kernel_size)
    for g, group in enumerate(groups):
        for member in group.members:
            i = order.get(member.layer)
            if i is None:
                continue
            if member.side == "out":
                lost_out[i, g] += len(member.index[0])
            else:
                lost_in[i, g] += len(member.index[0]) // getattr(layers[member.layer], "groups", 1)
    rest = macs - int((per * fan_in * fan_out).sum())
    return Cost(rest, per, fan_in, fan_out, lost_in, lost_out)


def _places(model: nn.Module, row: Any, forward: Forward) -> dict[str, int]:
    """{convolution or linear layer: number of places (positions x calls) that it is applied at for one row}."""
    import torch
    from torch import nn

    found: dict[str, int] = {}

    def hook(name: str):
        def see(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if isinstance(module, nn.Linear):
                places = output.numel() // module.out_features
            elif module.transposed:  # each input position is spread over the kernel
                places = inputs[0].numel() // module.in_channels
            else:
                places = output.numel() // module.out_channels
            found[name] = found.get(name, 0) + places

        return see

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    try:
        with torch.enable_grad():
            forward(model, row)
    finally:
        for handle in handles:
            handle.remove()
    return found
