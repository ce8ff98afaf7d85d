"""Values from the inside of an unmodified model: forward hooks by dotted path, and how a loss term names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError, near

if TYPE_CHECKING:
    import torch
    from torch import nn

INPUT = "@input"  # after a path: what goes into the module instead of what comes out of it


def pairs(on: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """((student's path, teacher's path), ...) of a term's `on`: "layer3 -> layer7@input", or "layer3" for the same path
    in both."""
    found = []
    for text in on:
        student, arrow, teacher = (part.strip() for part in text.partition("->"))
        found.append((student, teacher if arrow else student))
    return tuple(found)


def unknown(module: nn.Module, paths: Iterable[str]) -> list[Problem]:
    """A problem for every path that names no submodule."""
    names = [name for name, _ in module.named_modules() if name]
    found = []
    for path in dict.fromkeys(paths):
        name = path.removesuffix(INPUT)
        if name not in names:
            hint = near(name, names, f"its modules are {', '.join(names[:12]) or 'none'}", 3)
            found.append(Problem(f"on: {path or 'an empty path'}", "the model has no such module", hint))
    return found


def watch(module: nn.Module, paths: Iterable[str]) -> Callable[[], Mapping[str, torch.Tensor]]:
    """Hooks `module` at `paths`; the callable gives {path: tensor} of the forward pass since it was called last, and
    forgets them.

    A module that is called several times in a pass shows its first call; of a tuple or list its first tensor is taken.
    The hooks stay for the life of the module, and are no part of its state. Raises UsageError for a path that names no
    submodule."""
    wanted = tuple(dict.fromkeys(paths))
    problems = unknown(module, wanted)
    if problems:
        raise UsageError(*problems)
    seen: dict[str, torch.Tensor] = {}
    modules = dict(module.named_modules())

    def hook(path: str) -> Callable:
        def keep(_: nn.Module, inputs: tuple, output: Any) -> None:
            if path not in seen:
                seen[path] = first(inputs if path.endswith(INPUT) else output, path)

        return keep

    for path in wanted:
        modules[path.removesuffix(INPUT)].register_forward_hook(hook(path))

    def take() -> Mapping[str, torch.Tensor]:
        missing = [path for path in wanted if path not in seen]
        if missing:
            raise UsageError(
                *(
                    Problem(f"on: {path}", "the module was not called in the forward pass", "tap one that is")
                    for path in missing
                )
            )
        taken = {path: seen[path] for path in wanted}
        seen.clear()
        return taken

    return take


def first(value: Any, path: str) -> torch.Tensor:
    """The first tensor of what a module takes or gives."""
    import torch

    while not isinstance(value, torch.Tensor):
        parts = (
            list(value.values())
            if isinstance(value, Mapping)
            else list(value)
            if isinstance(value, list | tuple)
            else []
        )
        if not parts:
            raise UsageError(
                Problem(
                    f"on: {path}",
                    f"the value is a {type(value).__name__}, not a tensor",
                    "tap a module that gives a tensor",
                )
            )
        value = parts[0]
    return value
