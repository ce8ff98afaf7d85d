"""A model as a person names it, `package.module:name`: a module with its weights, or a function that returns one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekd import components
from edgekd.errors import THEIRS, Problem, UsageError, first_line

if TYPE_CHECKING:
    from torch import nn

NAMED = "name a torch module, or a function without arguments that returns one"


class Copies:
    """A callable that returns a new copy of a module at every call.

    Code and settings of the module decide the keys of finished work; its weights don't: these come from a file."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.__wrapped__ = [(name, type(m), _settings(m)) for name, m in module.named_modules()]

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)


def maker(spec: str) -> Callable[[], nn.Module]:
    """The function that makes the model of this name. Raises UsageError where it is not a model."""
    from torch import nn

    found = components.imported(spec)
    if isinstance(found, nn.Module):
        made = Copies(found)
        called(made, f"copying `{spec}`")
        return made
    if not callable(found):
        raise UsageError(Problem("", f"`{spec}` is {type(found).__name__}, not a model", NAMED))
    module = called(found, f"`{spec}()`")
    if not isinstance(module, nn.Module):
        raise UsageError(Problem("", f"`{spec}()` returns {type(module).__name__}, not a torch module", NAMED))
    return found


def weights(spec: str) -> dict[str, Any]:
    """The tensors of the model of this name. Raises UsageError where a function returns others at each call: such a
    model was not trained."""
    make = maker(spec)
    first, again = (called(make, f"`{spec}`").state_dict() for _ in range(2))
    if not same(first, again):
        text = f"`{spec}()` returns other weights at each call"
        raise UsageError(Problem("", text, f"load them in it, or give their file: {spec}@weights.safetensors"))
    if not first:
        raise UsageError(Problem("", f"`{spec}` has no weights", "give a model with parameters"))
    return first


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether these are the same tensors by name."""
    return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)


def called(make: Callable[[], Any], what: str) -> Any:
    """What a person's own function returns. Raises UsageError where it fails."""
    try:
        return make()
    except THEIRS as error:
        raise UsageError(Problem("", f"{what} failed: {type(error).__name__}: {first_line(error)}")) from error


def _equal(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all()))


def _settings(module: nn.Module) -> dict[str, Any]:
    """The attributes that a module has of its own, and the shapes of its tensors."""
    own = {name: value for name, value in vars(module).items() if name not in _of_every_module()}
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return own | {"tensors": [(name, tuple(t.shape), str(t.dtype)) for name, t in tensors]}


@cache
def _of_every_module() -> frozenset[str]:
    from torch import nn

    return frozenset(vars(nn.Module()))
