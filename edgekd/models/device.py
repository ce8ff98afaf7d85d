"""The device that models are trained on, named as in PyTorch (`cpu`, `cuda`, `cuda:1`, `mps`): what is moved to it, its
arithmetic and its random state. On the CPU nothing here copies or changes anything."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from edgekd.inputs import each, positional
from edgekd.records import Batch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

CPU = "cpu"


def kind(device: str) -> str:
    """`cuda` of `cuda:1`.

    >>> kind("cuda:1")
    'cuda'
    """
    return device.partition(":")[0]


def of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU where it has none."""
    import torch

    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device(CPU) if first is None else first.device


def placed(module: nn.Module, device: Any) -> nn.Module:
    """Moves a module in place; of a captured graph also the constants that it creates."""
    from torch import device as torch_device
    from torch import fx

    module.to(device)
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if isinstance(node.kwargs.get("device"), torch_device):
                node.kwargs = {**node.kwargs, "device": torch_device(device)}
        module.recompile()
    return module


def moved(values: Any, device: Any) -> Any:
    """A tensor, or {name: tensor}, on the device; to a GPU from pinned memory, without waiting for the copy."""
    name = kind(str(device))
    if name == CPU:
        return each(values, lambda t: t.cpu())
    return each(values, lambda t: (_pinned(t) if name == "cuda" else t).to(device, non_blocking=True))


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if tensor.device.type == CPU else tensor


def on(batch: Batch, device: str) -> Batch:
    """The batch with all its tensors on the device. `rows`, the positions for lookups, stay on the CPU."""
    if kind(device) == CPU:
        return batch
    return dataclasses.replace(
        batch,
        inputs=moved(batch.inputs, device),
        labels=None if batch.labels is None else moved(batch.labels, device),
        index=moved(batch.index, device),
        weight=moved(batch.weight, device),
        lengths=None if batch.lengths is None else moved(batch.lengths, device),
        rows=positions(batch),
    )


def positions(batch: Batch) -> np.ndarray:
    """[B] the batch's positions in its split, in the CPU's memory."""
    return batch.index.cpu().numpy() if batch.rows is None else batch.rows


def ahead(batches: Iterable[Batch], device: str) -> Iterator[Batch]:
    """The batches on the device. To a GPU each is copied while the one before is computed with."""
    if kind(device) != "cuda":
        yield from (on(batch, device) for batch in batches)
        return
    import torch

    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = on(batch, device)
        event = stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting, device)
        waiting = copied, event
    if waiting is not None:
        yield _arrived(*waiting, device)


def _arrived(batch: Batch, event: Any, device: str) -> Batch:
    """A batch that was copied in another stream, for use in the current one."""
    import torch

    current = torch.cuda.current_stream(device)
    current.wait_event(event)
    for tensor in (*positional(batch.inputs), *positional(batch.labels), batch.index, batch.weight):
        if tensor is not None:
            tensor.record_stream(current)
    return batch


@contextlib.contextmanager
def arithmetic(device: str, tf32: bool = False) -> Iterator[None]:
    """What a GPU computes with meanwhile: TensorFloat-32 or float32 in products and convolutions, and deterministic
    algorithms where PyTorch has them. The caller's settings are restored."""
    if kind(device) != "cuda":
        yield
        return
    import torch

    # cuBLAS reads it when its first handle is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, memory.fill_uninitialized_memory
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, memory.fill_uninitialized_memory = tf32, tf32, False, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.cuda.device(device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, memory.fill_uninitialized_memory = before


@contextlib.contextmanager
def forked(device: Any) -> Iterator[None]:
    """Restores the random state of the CPU and of the device afterwards."""
    import torch

    before = None if kind(str(device)) == CPU else random_state(device)
    with torch.random.fork_rng(devices=[]):
        yield
    if before is not None:
        set_random_state(device, before)


def random_state(device: Any) -> torch.Tensor:
    """The state of the device's random generator, a tensor of bytes on the CPU."""
    import torch

    if kind(str(device)) == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if kind(str(device)) == "mps" else torch.get_rng_state()


def set_random_state(device: Any, state: torch.Tensor) -> None:
    """Sets what `random_state` returned."""
    import torch

    if kind(str(device)) == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif kind(str(device)) == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)
