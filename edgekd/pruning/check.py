"""Checks by removal that the channels of a group can be removed: a model without them must compute the same as a model
whose layers leave them out.

Tracing can be wrong (a hard-coded shape, an operation that counts its channels). So the check draws random weights,
removes some channels of a group, and compares the output, in double precision, with that of the whole model in which
sums leave these channels out, and norms and means are over the others. It also counts the MACs. A group that differs is
refused. Trained weights are not used."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import THEIRS, Problem, UsageError, first_line
from edgekd.inputs import each
from edgekd.pruning.cost import Cost, cost, first_row, run
from edgekd.pruning.coupling import Group, Refusal, coupled, removals
from edgekd.pruning.history import apply
from edgekd.pruning.masked import Masked
from edgekd.pruning.trace import Forward, plain_operators, tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

# relative to the effect of ignoring the channels: correct removals differ by rounding, wrong ones by about all of it
WRONG = 1e-3


class Trials:
    """Tries removals on a model with random weights. Holds the model, its output, and the cost of each group."""

    def __init__(self, model: nn.Module, example: Any, groups: Sequence[Group], forward: Forward):
        self.forward, self.groups = forward, list(groups)
        self.model, self.example, self.output, macs = _prepared(model, first_row(example), forward)
        # the model that is run again: in another precision a conversion is an operator more
        _, _, classes, self.trace = coupled(self.model, self.example, forward)
        self.trace.values.clear()
        self.classes = classes.of
        self.cost: Cost = cost(self.trace, self.groups, self.classes, macs)

    def masked(self, gone: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The output of the whole model whose layers leave out the units `gone` of each group."""
        import torch

        lost = {int(self.classes[g.labels[u]]) for g, units in zip(self.groups, gone, strict=True) for u in units}
        labels = torch.from_numpy(np.isin(self.classes, list(lost)))
        with plain_operators(), Masked(self.trace, labels):
            output = tensors(self.forward(self.model, self.example))
        return [t.detach() for t in output]

    def objection(self, gone: Sequence[Sequence[int]]) -> str | None:
        """Why removing the units `gone` of each group is wrong; None if it is correct."""
        history = removals(self.groups, gone)
        try:
            output, macs = run(apply(copy.deepcopy(self.model), history), self.example, self.forward)
        except THEIRS as error:
            return (
                "the model does not run without some of its channels, as if its forward depended on their number "
                f"({first_line(error)})"
            )
        if [t.shape for t in output] != [t.shape for t in self.output]:
            return "its channels reach the model's output"
        expected = self.masked(gone)
        for new, right, whole in zip(output, expected, self.output, strict=True):
            effect = (right - whole).abs().max().item()
            rounding = 1e-9 if new.element_size() == 8 else 1e-5
            if not (new - right).abs().max().item() <= WRONG * effect + rounding * right.abs().max().item():
                return (
                    "removing some of its channels changes the values of others (a normalization or mean over "
                    "channels, or a reshape)"
                )
        predicted = int(self.cost(np.array([len(units) for units in gone], np.int64)))
        return (
            None
            if macs == predicted
            else f"the MACs do not follow from its width ({macs} counted, {predicted} expected)"
        )


def proved(
    model: nn.Module, example: Any, groups: Sequence[Group], forward: Forward
) -> tuple[list[Group], list[Refusal]]:
    """(groups whose channels can be removed, separately and together; the others, each with the reason). Tries all
    groups at once, then halves."""
    if not groups:
        return [], []
    trials = Trials(model, example, groups, forward)
    gone: list[Sequence[int]] = [()] * len(groups)
    refused: dict[int, Refusal] = {}

    def settle(some: range) -> None:
        trial = [_half(group, i) if i in some else gone[i] for i, group in enumerate(groups)]
        reason = trials.objection(trial)
        if reason is None:
            gone[:] = trial
        elif len(some) == 1:
            if not _numbers(trials, some[0], trial):
                refused[some[0]] = Refusal(groups[some[0]].name, reason)
            else:
                gone[:] = trial
        else:
            settle(some[: len(some) // 2])
            settle(some[len(some) // 2 :])

    settle(range(len(groups)))
    return [g for i, g in enumerate(trials.groups) if i not in refused], list(refused.values())


def _numbers(trials: Trials, place: int, gone: Sequence[Sequence[int]]) -> bool:
    """Whether a group can go with some of the numbers that modules keep changed, but not all; the group in `trials`
    then has these only."""
    group = trials.groups[place]
    every = group.attributes[:4]
    for count in range(len(every)):
        for chosen in itertools.combinations(every, count):
            trials.groups[place] = replace(group, attributes=chosen)
            if trials.objection(gone) is None:
                return True
    trials.groups[place] = group
    return False


def _half(group: Group, seed: int) -> list[int]:
    """Half of a group's units, randomly chosen with a fixed seed."""
    import torch

    return sorted(
        torch.randperm(group.units, generator=torch.Generator().manual_seed(seed))[: max(1, group.units // 2)].tolist()
    )


def _prepared(model: nn.Module, example: Any, forward: Forward) -> tuple[nn.Module, Any, list[torch.Tensor], int]:
    """(model with random weights, inputs, its output, its MACs), in double precision, or in single where it does not
    run in double."""
    import torch

    for dtype in (torch.float64, torch.float32):
        trial = randomised(copy.deepcopy(model).eval().to(dtype))
        for draw in (True, False):
            inputs = _inputs(example, dtype, draw)
            try:
                output, macs = run(trial, inputs, forward)
            except THEIRS as error:
                if dtype == torch.float32 and not draw:
                    raise UsageError(Problem("model", f"does not run on one row: {first_line(error)}")) from error
                continue
            if all(bool(t.isfinite().all()) for t in output):
                return trial, inputs, output, macs
    raise UsageError(Problem("model", "returns values that are not finite, for random weights and inputs"))


def randomised(model: nn.Module) -> nn.Module:
    """Sets random weights with a fixed seed, none of them 0, at a scale that keeps values from vanishing in deep
    models."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            if p.ndim > 1:
                p.copy_(
                    torch.randn(p.shape, generator=generator, dtype=torch.float64) * (2 / max(1, p[0].numel())) ** 0.5
                )
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
            else:
                p.copy_(torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator, dtype=torch.float64) * 0.3)
            elif name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator, dtype=torch.float64) + 0.5)
    return model


def _inputs(example: Any, dtype: torch.dtype, draw: bool) -> Any:
    """The example in `dtype`, with random floating-point numbers (a blank image would show nothing) and unchanged
    integers."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def one(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype) if draw else t.to(dtype)

    return each(example, one)
