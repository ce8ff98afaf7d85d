"""A click group that finds its commands by listing a package."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import click

from edgekd import components
from edgekd.errors import Problem, UsageError


class Folder(click.Group):
    """The verbs of a package: a module NAME_OF_VERB with a `command` is the verb `name-of-verb`, a package in it is a
    group of verbs, whose help is its docstring."""

    def __init__(self, package: str, **settings: Any):
        super().__init__(**settings)
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = pkgutil.iter_modules(import_module(self.package).__path__)
        return sorted(m.name.replace("_", "-") for m in found if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        module = components.built_in(self.package, name.replace("-", "_"))
        if hasattr(module, "__path__"):
            return Folder(module.__name__, name=name, help=module.__doc__)
        verb = getattr(module, "command", None)
        if not isinstance(verb, click.Command):
            hint = "a verb's file has `command`, a function decorated with `click.command()`"
            raise UsageError(Problem(str(module.__file__), "defines no command", hint))
        return verb
