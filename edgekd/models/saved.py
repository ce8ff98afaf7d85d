"""Torch models in files without pickle: weights.safetensors, and model.json, which says how to build the module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError
from edgekd.records import Artifact, Task

if TYPE_CHECKING:
    import torch
    from torch import nn


def create(task: Task, name: str, seed: int) -> nn.Module:
    """A new `task.models[name]`. Its initial weights depend only on (seed, name), so that comparisons start equally."""
    import torch

    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return task.models[name]()


def save(folder: Path, module: nn.Module, *, model: str, pruning: list | None = None, seed: int = 0) -> None:
    """Writes the module's parameters and buffers, and how to build it: `task.models[model]` created with `seed` (since
    a module may have random values outside its state), then the pruning history."""
    write_tensors(folder / "weights.safetensors", module.state_dict())
    record = {"schema": "edgekd.model/1", "model": model, "pruning": pruning, "seed": seed}
    (folder / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def load(artifact: Artifact, task: Task) -> nn.Module:
    """The module of a `torch` artifact in evaluation mode, bit for bit as saved."""
    record = record_of(artifact)
    module = build(record, task)
    module.load_state_dict(read_tensors(artifact.folder / "weights.safetensors"))
    return module.eval()


def record_of(artifact: Artifact) -> Mapping[str, Any]:
    return json.loads((artifact.folder / "model.json").read_text())


def build(record: Mapping[str, Any], task: Task) -> nn.Module:
    """The module that `model.json` describes, without its weights."""
    module = create(task, record["model"], record.get("seed", 0))
    if record["pruning"]:
        from edgekd.pruning import apply

        apply(module, record["pruning"])
    return module


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file; tensors that share memory are stored separately."""
    from safetensors.torch import save_file

    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a .safetensors file, or of a .pt/.pth state dict with torch's `weights_only` loader, which
    unpickles no objects."""
    place = str(path)
    if not path.is_file():
        raise UsageError(Problem(place, "there is no such file"))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise unreadable(path, error) from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    import torch

    if not isinstance(tensors, Mapping) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise UsageError(Problem(place, "has no state dict", "save `model.state_dict()`"))
    return dict(tensors)


def bring(path: Path, module: nn.Module) -> nn.Module:
    """Loads a user's weights into `module`. Raises UsageError with all tensors that are missing, unexpected, or of
    another shape or type."""
    tensors = {without_prefix(name): t for name, t in read_tensors(path).items()}
    problems = unfit(path, module, {name: (tuple(t.shape), kind_of(t)) for name, t in tensors.items()})
    fit = tensors.keys() - {p.place.removeprefix(f"{path}: ") for p in problems}
    problems += [
        Problem(f"{path}: {n}", "has values that are not finite")
        for n in tensors
        if n in fit and not tensors[n].isfinite().all()
    ]
    if problems:
        raise UsageError(*problems)
    module.load_state_dict(tensors, strict=False)
    return module


def held(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """{tensor: (shape, kind of its numbers)} of a file of weights; of a .safetensors file only the header is read."""
    if path.suffix != ".safetensors":
        return {without_prefix(name): (tuple(t.shape), kind_of(t)) for name, t in read_tensors(path).items()}
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is not a mapping)
            return {
                without_prefix(name): (tuple(s.get_shape()), _kind(str(s.get_dtype()))) for name, s in slices.items()
            }
    except Exception as error:  # safetensors' own class, and the file's
        raise unreadable(path, error) from None


def unfit(path: Path, module: nn.Module, tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> list[Problem]:
    """The problems of tensors, as returned by `held`, for `module`."""
    wanted = module.state_dict()
    problems = [
        Problem(f"{path}: {n}", "is missing")
        for n in wanted
        if n not in tensors and not n.endswith("num_batches_tracked")
    ]
    problems += [Problem(f"{path}: {n}", "the model has no such tensor") for n in tensors if n not in wanted]
    for name in (n for n in wanted if n in tensors):
        shape, kind = tensors[name]
        needed = kind_of(wanted[name])
        if tuple(wanted[name].shape) != shape:
            problems.append(
                Problem(f"{path}: {name}", f"has shape {list(shape)}, but the model needs {list(wanted[name].shape)}")
            )
        elif kind != needed and not name.endswith("num_batches_tracked"):
            hint = "save the float weights that the model was trained with" if needed == FLOAT else ""
            problems.append(Problem(f"{path}: {name}", f"has {kind}, but the model needs {needed}", hint))
    return problems


def without_prefix(name: str) -> str:
    """A tensor's name without DataParallel's prefix."""
    return name.removeprefix("module.")


FLOAT = "floating-point numbers of 16 bits or more"


def kind_of(tensor: torch.Tensor) -> str:
    """The kind of a tensor's values as text: of plain numbers their kind, else sparse or quantized values."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        return "sparse values" if tensor.layout != torch.strided else "quantized values"
    return _kind(str(tensor.dtype).removeprefix("torch."))


def _kind(dtype: str) -> str:
    """The kind of a data type's numbers, from its name in torch (float32) or safetensors (F32)."""
    name = dtype.lower()
    if name.startswith(("float", "bfloat", "f", "bf")):
        return FLOAT if name.lstrip("bfloat_") in ("16", "32", "64") else f"numbers of type {dtype}"
    return "booleans" if name == "bool" else "complex numbers" if name.startswith("c") else "integers"


def unreadable(path: Path, error: Exception) -> UsageError:
    """The error for a file without readable weights."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = "save `model.state_dict()` with safetensors.torch.save_file or torch.save"
    return UsageError(Problem(str(path), f"can't be read safely as weights: {reason}", hint))
