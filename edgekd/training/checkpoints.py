"""A training's checkpoint, one safetensors file: modules, optimizer, gradient scaler, random states, epoch and
position."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    position: int,
    sums: Mapping[str, float],
    scaler: torch.amp.GradScaler | None = None,
    device: str = "cpu",
) -> None:
    """Writes one safetensors file and renames it: if the process is killed, the old or the new checkpoint is whole."""
    import torch
    from safetensors.torch import save_file

    from edgekd.models.device import CPU, kind, random_state

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(CPU, copy=True)

    tensors = {f"module.{name}": copied(t) for name, t in module.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = copied(value)
            else:
                numbers[f"{index}.{name}"] = value
    tensors["random"] = torch.get_rng_state()
    if kind(device) != CPU:
        tensors["random_of_device"] = random_state(device)
    header = {"epoch": epoch, "position": position, "sums": dict(sums), "optimizer": numbers}
    header["scaler"] = {} if scaler is None else scaler.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "checkpoint.part"
    save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata={"edgekd": json.dumps(header)})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, folder / "checkpoint.safetensors")


def restore(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    device: str = "cpu",
) -> tuple[int, int, dict[str, float]]:
    """Loads the checkpoint. (epoch, position, sums); (0, 0, {}) if there is none that can be read."""
    import torch
    from safetensors import SafetensorError, safe_open

    from edgekd.models.device import set_random_state

    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0, 0, {}
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["edgekd"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return 0, 0, {}
    module.load_state_dict({n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            state.setdefault(int(index), {})[slot] = value
    for name, value in header["optimizer"].items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, slots in optimizer.state.items():  # fused kernels take a weight and its moments in one memory format
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                slots[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    torch.set_rng_state(tensors["random"])
    if "random_of_device" in tensors:
        set_random_state(device, tensors["random_of_device"])
    if scaler is not None and header.get("scaler"):
        scaler.load_state_dict(header["scaler"])
    return header["epoch"], header["position"], header["sums"]
