"""The processes of a training: ranks, as in torch.distributed. `now()` is the group that this process is in; alone, its
calls change nothing. Each rank computes on its rows of the same batch, and all take the same step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

SEED = 4  # a separate stream of one seed, beside those of `data.epochs`


class One:
    """A training in one process."""

    number, count = 0, 1

    def summed(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each number, summed over the ranks."""
        return list(values)

    def added(
        self, gradients: Sequence[torch.Tensor | None], parameters: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor | None]:
        """Each gradient, summed over the ranks; None where no rank has one."""
        return gradients

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sets each gradient to its sum over the ranks."""

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows of all ranks, ...], in the order of the ranks; its gradient is the sum of all ranks'."""
        return rows

    def gathered_objects(self, values: Sequence[Any]) -> list[Any]:
        """The values of all ranks, in the order of the ranks."""
        return list(values)

    def share(self, module: nn.Module, buffers_only: bool = False) -> None:
        """Sets parameters and buffers to those of rank 0."""

    def seed(self, seed: int, step: int) -> None:
        """Seeds the random numbers of a step, other ones on each rank."""

    @contextlib.contextmanager
    def synchronized(self, *modules: nn.Module) -> Iterator[None]:
        """Batch norm of the modules takes its statistics over all ranks meanwhile."""
        yield


class Several(One):
    """This process, in the default group of torch.distributed."""

    def __init__(self) -> None:
        import torch.distributed as group

        self.number, self.count = group.get_rank(), group.get_world_size()

    def summed(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch
        import torch.distributed as group

        stacked = torch.stack([value.detach().double().reshape(()) for value in values])
        group.all_reduce(stacked)
        return list(stacked.unbind())

    def added(
        self, gradients: Sequence[torch.Tensor | None], parameters: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor | None]:
        import torch
        import torch.distributed as group

        if not len(parameters):
            return gradients
        there = torch.tensor([float(g is not None) for g in gradients], device=parameters[0].device)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        flat = torch.cat([there, *(g.float().reshape(-1) for g in filled)])  # one message for all
        group.all_reduce(flat)
        known, *parts = flat.split([len(filled), *(g.numel() for g in filled)])
        sums = [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]
        return [s if k else None for s, k in zip(sums, known.tolist(), strict=True)]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        sums = self.added([p.grad for p in parameters], parameters)
        for p, gradient in zip(parameters, sums, strict=True):
            if gradient is None or p.grad is None:
                p.grad = gradient
            else:
                p.grad.copy_(gradient)  # keeps its memory format

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        from edgekd.training.collectives import Gather

        return Gather.apply(rows)

    def gathered_objects(self, values: Sequence[Any]) -> list[Any]:
        import torch.distributed as group

        found: list[Any] = [None] * self.count
        group.all_gather_object(found, list(values))
        return [value for each in found for value in each]

    def share(self, module: nn.Module, buffers_only: bool = False) -> None:
        import torch
        import torch.distributed as group

        tensors = [*([] if buffers_only else module.parameters()), *module.buffers()]
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            for place in dict.fromkeys(t.device for t in tensors if t.dtype == dtype):
                those = [t.detach() for t in tensors if (t.dtype, t.device) == (dtype, place)]
                flat = torch.cat([t.reshape(-1) for t in those])
                group.broadcast(flat, 0)
                for t, part in zip(those, flat.split([t.numel() for t in those]), strict=True):
                    t.copy_(part.view_as(t))

    def seed(self, seed: int, step: int) -> None:
        import torch

        from edgekd.data.epochs import mix

        torch.manual_seed(int(mix(seed, SEED, self.number, step)) >> 1)

    @contextlib.contextmanager
    def synchronized(self, *modules: nn.Module) -> Iterator[None]:
        from torch.nn.modules.batchnorm import _BatchNorm

        from edgekd.training.collectives import batch_norm

        norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]
        for norm in norms:
            norm.forward = batch_norm.__get__(norm)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in norms:
                norm.__dict__.pop("forward", None)


_now = One()


def now() -> One:
    """The group of this process."""
    return _now


@contextlib.contextmanager
def several() -> Iterator[None]:
    """The default group of torch.distributed trains together meanwhile."""
    global _now
    _now = Several()
    try:
        yield
    finally:
        _now = One()
