"""What ranks compute together, with gradients: the loss of a training is the sum of the ranks' losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as group
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.errors import Problem, RunFailed


class Sum(torch.autograd.Function):
    """The sum over the ranks. Each rank's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        group.all_reduce(y)
        return y

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        group.all_reduce(gradient)
        return gradient


class Gather(torch.autograd.Function):
    """[rows of all ranks, ...] of each rank's rows, which may differ in number."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        shape = torch.tensor(x.shape, device=x.device)
        shapes = [torch.empty_like(shape) for _ in range(group.get_world_size())]
        group.all_gather(shapes, shape)
        if any((s[1:] != shape[1:]).any() for s in shapes):
            told = " and ".join(str(s.tolist()) for s in shapes)
            hint = "samples of different length need terms that look at one row at a time, or one process"
            raise RunFailed(Problem("", f"a term compares rows of all processes, whose shapes differ: {told}", hint))
        counts = [int(s[0]) for s in shapes]
        part = x.to(torch.uint8) if x.dtype == torch.bool else x
        filled = part.new_zeros((max(counts), *x.shape[1:]))
        filled[: len(x)] = part
        parts = [torch.empty_like(filled) for _ in counts]
        group.all_gather(parts, filled)
        first = sum(counts[: group.get_rank()])
        context.own = slice(first, first + len(x))
        return torch.cat([p[:count] for p, count in zip(parts, counts, strict=True)]).to(x.dtype)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return Sum.backward(context, gradient)[context.own]


def batch_norm(self: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of a batch norm whose statistics are those of all ranks. PyTorch's SyncBatchNorm needs a GPU."""
    if not self.training:
        return type(self).forward(self, x)
    self._check_input_dim(x)
    dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    wide = x.float()
    count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float32, device=x.device)
    sums = Sum.apply(torch.cat([wide.sum(dims), count]))
    mean, n = sums[:-1] / sums[-1], sums[-1].detach()
    centred = wide - mean.view(shape)
    variance = Sum.apply(centred.square().sum(dims)) / n
    if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var.dtype), share)
    y = centred * (variance + self.eps).rsqrt().view(shape)
    if self.affine:
        y = y * self.weight.view(shape) + self.bias.view(shape)
    return y.to(x.dtype)
