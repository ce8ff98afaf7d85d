"""Taps: outputs of a model's layers, by forward hooks on dotted paths, without changing the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError, near

if TYPE_CHECKING:
    import torch
    from torch import nn

INPUT = "@input"  # after a path: the module's input instead of its output


def pairs(on: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """((student's path, teacher's path), ...) of a term's `on`: "layer3 -> layer7@input", or "layer3" for the same path
    in both."""
    found = []
    for text in on:
        student, arrow, teacher = (part.strip() for part in text.partition("->"))
        found.append((student, teacher if arrow else student))
    return tuple(found)


def unknown(module: nn.Module, paths: Iterable[str]) -> list[Problem]:
    """A problem for every path that is not a submodule."""
    names = [name for name, _ in module.named_modules() if name]
    found = []
    for path in dict.fromkeys(paths):
        name = path.removesuffix(INPUT)
        if name not in names:
            hint = near(name, names, f"its modules are {', '.join(names[:12]) or 'none'}", 3)
            found.append(Problem(f"on: {path or 'an empty path'}", "the model has no such module", hint))
    return found


def watch(module: nn.Module, paths: Iterable[str]) -> Callable[[], Mapping[str, torch.Tensor]]:
    """Hooks `module` at `paths`. The returned callable gives {path: tensor} of the last forward pass and then drops
    them.

    For a module that is called several times in a pass, the first call counts; in a streaming model, which is called
    once for each step, each first call of a step: the steps lie along axis 1. Of a tuple or list, the first tensor.
    The hooks stay for the life of the module and are not part of its state. Raises UsageError for a path that is not a
    submodule."""
    wanted = tuple(dict.fromkeys(paths))
    problems = unknown(module, wanted)
    if problems:
        raise UsageError(*problems)
    steps: list[dict[str, torch.Tensor]] = [{}]
    modules = dict(module.named_modules())

    def hook(path: str) -> Callable:
        def keep(_: nn.Module, inputs: tuple, output: Any) -> None:
            if path not in steps[-1]:
                steps[-1][path] = first(inputs if path.endswith(INPUT) else output, path)

        return keep

    for path in wanted:
        modules[path.removesuffix(INPUT)].register_forward_hook(hook(path))
    streams = getattr(module, "state_shapes", None) is not None
    if streams and wanted:
        module.register_forward_hook(lambda *_: steps.append({}))

    def take() -> Mapping[str, torch.Tensor]:
        if streams and wanted:
            steps.pop()  # begun when the last step ended
        missing = [path for path in wanted if any(path not in seen for seen in steps)]
        if missing:
            raise UsageError(
                *(
                    Problem(
                        f"on: {path}", "the module was not called in the forward pass", "tap a module that is called"
                    )
                    for path in missing
                )
            )
        if streams and wanted:
            import torch

            taken = {path: torch.stack([seen[path] for seen in steps], 1) for path in wanted}
        else:
            taken = {path: steps[-1][path] for path in wanted}
        steps[:] = [{}]
        return taken

    return take


def first(value: Any, path: str) -> torch.Tensor:
    """The first tensor in a module's input or output."""
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
                    "tap a module that returns a tensor",
                )
            )
        value = parts[0]
    return value
