"""Weights of loss terms, balanced by their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgekd.training.terms import gradient_norms

STEPS, MEMORY = 50, 0.9  # steps between updates of the norms, and the decay of their moving average


class Balance(nn.Module):
    """Scales each term by (mean norm) / (its norm) of the gradients by the student's parameters, so that weights are
    shares of the gradient.

    After GradNorm (Chen et al. 2018) with equal rates; the scale is set directly instead of learned. Norms are an
    exponential moving average, part of the training's checkpoints; a term with a gradient of 0 keeps its weight."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("norms", torch.zeros(count))  # on the CPU, where weights are computed

    def weigh(
        self, found: Sequence[tuple[str, float, torch.Tensor]], parameters: Sequence[torch.Tensor] = (), step: int = -1
    ) -> list:
        """The terms (name, weight, mean) with balanced weights; the norms are updated every STEPS steps if `parameters`
        are given."""
        if len(parameters) and step % STEPS == 0:
            taken = torch.tensor(
                list(gradient_norms([(name, 1.0, mean) for name, _, mean in found], parameters).values())
            )
            self.norms.copy_(taken if not self.norms.any() else MEMORY * self.norms + (1 - MEMORY) * taken)
        known = self.norms[self.norms > 0]
        if not len(known):
            return list(found)
        scales = torch.where(self.norms > 0, known.mean() / self.norms.clamp_min(1e-12), torch.ones(())).tolist()
        return [(name, weight * scale, mean) for (name, weight, mean), scale in zip(found, scales, strict=True)]
