"""A traced model run again as if some of its channels were not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgekd.pruning.trace import Trace


class Masked(TorchDispatchMode):
    """Runs a traced model again as if channels were not there: sums leave them out, norms and means are over the
    others. `gone` [labels]: whether each label is gone."""

    def __init__(self, trace: Trace, gone: Tensor):
        super().__init__()
        self.trace, self.gone, self.number = trace, gone, -1

    def kept(self, planes: Sequence[Tensor], like: Tensor) -> Tensor:
        """1 for elements that stay, 0 for the others, of the shape of `like`."""
        mask = torch.ones_like(like)
        for plane in planes:
            mask = mask * (~self.gone[plane]).to(like.dtype)
        return mask

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        leaves, spec = tree_flatten(args)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        for i, planes in self.trace.reads.get(self.number, ()):
            leaves[places[i]] = leaves[places[i]] * self.kept(planes, leaves[places[i]])
        norm = self.trace.norms.get(self.number)
        if norm is not None:
            out = func(*args, **(kwargs or {}))
            # with the strides that it had, or other operators would follow
            (out[0] if isinstance(out, tuple) else out).copy_(self.normed(func, args, kwargs or {}, *norm))
            return out
        return func(*tree_unflatten(leaves, spec), **(kwargs or {}))

    def normed(self, func, args, kwargs, kind: str, planes: Sequence[Tensor], over: Any) -> Any:
        x = args[0]
        mask = self.kept(planes, x)
        if kind == "layer":
            _, _, weight, bias, eps = args
            made = standard(x, mask, tuple(range(-over, 0)), eps)
            made = made if weight is None else made * weight
            return made if bias is None else made + bias
        if kind == "group":
            weight, bias, eps = args[1], args[2], args[7]
            parts = (x.shape[0], over, -1)
            made = standard(x.reshape(parts), mask.reshape(parts), (-1,), eps).reshape(x.shape)
            shape = (1, -1, *[1] * (x.ndim - 2))
            made = made if weight is None else made * weight.reshape(shape)
            return made if bias is None else made + bias.reshape(shape)
        whole = x.numel() / max(1, func(*args, **kwargs).numel())
        share = mask.sum(over, keepdim=True).flatten()[0] / whole
        if kind == "mean":
            return func(x * mask, *args[1:], **kwargs) / share
        mean = (x * mask).sum(over, keepdim=True) / (share * whole)
        correction = kwargs.get("correction", 1)
        found = ((x - mean) ** 2 * mask).sum(over, keepdim=True) / (
            share * whole - (1 if correction is None else correction)
        )
        return found.reshape(func(*args, **kwargs).shape)


def standard(x: Tensor, mask: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Values with mean 0 and variance 1 over what the mask keeps."""
    count = mask.sum(axes, keepdim=True)
    mean = (x * mask).sum(axes, keepdim=True) / count
    return (x - mean) * torch.rsqrt(((x - mean) ** 2 * mask).sum(axes, keepdim=True) / count + eps)
