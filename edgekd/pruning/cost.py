"""Multiply-accumulates: counted in a forward pass, and as an exact function of the widths of a model's groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.pruning.coupling import Group
from edgekd.pruning.trace import Forward, Trace, first_row, plain_operators, tensors

__all__ = ["Cost", "cost", "first_row", "run"]

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


def run(model: nn.Module, inputs: Any, forward: Forward) -> tuple[list[torch.Tensor], int]:
    """Runs one forward pass: (the tensors of its output, its MACs). MACs are those of convolutions and matrix products
    in all modules and functions (torch's FlopCounterMode, halved)."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with plain_operators(), counter:  # fused, they would be counted as 0
        output = tensors(forward(model, inputs))
    return [t.detach() for t in output], counter.get_total_flops() // 2


@dataclass(frozen=True)
class Cost:
    """MACs as a function of the units removed from each group: rest + sum over products of
    per x (fan_in - lost_in . removed) x (fan_out - lost_out . removed). All integers, exact.

    per, fan_in, fan_out [L]; lost_in, lost_out [L, groups]; two axes of a matrix product or a kernel, of which one may
    be 1 and lose nothing (a depthwise convolution, an attention head)."""

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


def cost(trace: Trace, groups: Sequence[Group], of: np.ndarray, macs: int) -> Cost:
    """The cost of a traced model with `macs` MACs; `of` [labels]: the class of each label."""
    import numpy as np

    owner = {int(of[label]): g for g, group in enumerate(groups) for label in group.labels}
    units = [group.units for group in groups]
    rows: list[tuple[int, list[tuple[int, dict[int, int]]]]] = []
    for factor, axes in trace.notes.products:
        sides = []
        for plane, axis in axes:
            at = of[plane.numpy()]
            line = np.moveaxis(at, axis, 0).reshape(at.shape[axis], -1)[:, 0].tolist()
            lost = Counter(owner[c] for c in line if c in owner)
            if lost and len(set(line)) > 1:
                sides.append((len(line), {g: n // units[g] for g, n in lost.items()}))
        if sides:
            sides = (sides + [(1, {})])[:2]
            rows.append((factor // (sides[0][0] * sides[1][0]), sides))
    per = np.array([p for p, _ in rows], np.int64)
    fans = [np.array([sides[s][0] for _, sides in rows], np.int64) for s in (0, 1)]
    losts = [np.zeros((len(rows), len(groups)), np.int64) for _ in (0, 1)]
    for i, (_, sides) in enumerate(rows):
        for s in (0, 1):
            for g, n in sides[s][1].items():
                losts[s][i, g] = n
    rest = macs - int((per * fans[0] * fans[1]).sum())
    return Cost(rest, per, *fans, *losts)
