"""Finds parts by name: the folder is the list, the import path is the registry. A part's signature defines its settings
(`signatures`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd import environment
from edgekd.errors import THEIRS, EdgekdError, Problem, UsageError, near
from edgekd.signatures import Kind, readers, settings_of

SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


KINDS = {
    "losses": Kind("loss", 3),
    "ensembles": Kind("ensemble", 2),
    "criteria": Kind("criterion", 1),
    "ranges": Kind("range", 1, ("bits",)),
    "stages": Kind("stage"),
    "tasks": Kind("task"),
    "formats": Kind("format", module=True),
    "runtimes": Kind("runtime", module=True),
    "probes": Kind("probe", module=True),
}


def names(folder: str) -> list[str]:
    """The built-in parts of one kind, e.g. `names("losses")`. A folder with other files besides parts defines
    `edgekd.<folder>.names()`."""
    package = importlib.import_module(f"edgekd.{folder}")
    if hasattr(package, "names"):
        return list(package.names())
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, use: str, among: list[str] | None = None) -> Any:
    """The part `use`: a built-in name (of `among`, by default the whole folder), or the user's own
    `package.module:name`. Raises UsageError with a hint."""
    kind = KINDS[folder]
    known = names(folder) if among is None else among
    if ":" in use or (kind.module and use not in known and ("." in use or located(use))):
        return imported(use)
    if use not in known:
        hint = near(use, known, f"one of {', '.join(known)}, or {kind.own}")
        raise UsageError(Problem("", f"no {kind.one} is named `{use}`", hint))
    module = built_in(f"edgekd.{folder}", use)
    if kind.module:
        return module
    for name in (use, "".join(word.capitalize() for word in use.split("_")), kind.one):
        if hasattr(module, name):
            return getattr(module, name)
    text = f"{module.__file__} defines neither `{use}`, nor its class, nor `{kind.one}`"
    raise UsageError(Problem("", text, f"name the {kind.one} as its file"))


def built_in(package: str, name: str) -> Any:
    """The module of a file or folder in a package of edgekd. Raises UsageError that names the file if it can't be
    imported, EnvironmentUnfit where edgekd was installed without a library that it needs."""
    module = f"{package}.{name}"
    try:
        return importlib.import_module(module)
    except THEIRS as error:
        if isinstance(error, ModuleNotFoundError) and (unfit := environment.left_out(error)) is not None:
            raise unfit from error
        spec = importlib.util.find_spec(module)
        hint = f"install `{error.name}`" if isinstance(error, ModuleNotFoundError) else "correct the file, or move it"
        text = f"{spec.origin if spec else module} can't be imported: {type(error).__name__}: {error}"
        raise UsageError(Problem("", text, hint)) from error


def look_beside(folder: Path) -> None:
    """Modules that a recipe or a target names are looked for beside it and in the current folder: what names code runs
    it, on purpose. A path through a folder that goes away later, such as `work/KEY/../..`, is written without it."""
    for path in (str(Path.cwd()), os.path.abspath(folder)):
        if path not in sys.path:
            sys.path.insert(0, path)


def located(name: str) -> bool:
    """Whether Python finds a module of this name, which has no dot; it isn't imported."""
    importlib.invalidate_caches()
    try:
        return name.isidentifier() and importlib.util.find_spec(name) is not None
    except ValueError:  # `__main__`
        return False


def imported(path: str) -> Any:
    """Imports `package.module:name`, or the whole `package.module`. Raises UsageError that names what is missing."""
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        hint = (
            "write `package.module:name`; modules are looked for beside the recipe, in the current folder, and where "
        )
        raise UsageError(Problem("", f"`{module_name}` is not a module's name", f"{hint}Python finds them"))
    try:
        target = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            hint = "modules are looked for beside the recipe, in the current folder, and where Python finds them"
            raise UsageError(Problem("", f"there is no module `{module_name}`", hint)) from None
        raise UsageError(
            Problem("", f"`{module_name}` can't be imported: {error}", f"install `{error.name}`")
        ) from error
    except EdgekdError as error:  # raised at the top level of the module, such as by its arrays
        where = f"importing `{module_name}`"
        raise UsageError(*(p.within(where) for p in error.problems)) from error
    except THEIRS as error:
        raise UsageError(Problem("", f"importing `{module_name}` failed: {type(error).__name__}: {error}")) from error
    for name in filter(None, attribute.split(".")):
        if not hasattr(target, name):
            hint = near(name, dir(target), "write `package.module:name`")
            raise UsageError(Problem("", f"`{module_name}` has no `{name}`", hint))
        target = getattr(target, name)
    return target


# ---------------------------------------------------------------- settings that name a part


@dataclass(frozen=True)
class Use:
    """A part that a setting names, with its own settings. It is called like the part.

    >>> Use("ranges", "minmax").table()
    'minmax'
    """

    kind: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def part(self) -> Any:
        return find(self.kind, self.name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.part()(*given, **self.settings, **named)

    def table(self) -> str | dict[str, Any]:
        """The part as written in a recipe."""
        return {"use": self.name, **self.settings} if self.settings else self.name


@dataclass(frozen=True)
class Part:
    """Annotates a setting that names a part: `criterion: Annotated[Use, Part("criteria")]`.

    A recipe then has `criterion = "magnitude"`, `criterion = "mymodule:mine"`, or `criterion = { use = "magnitude",
    ...settings of its own }`. The name and these settings are checked, the part's code becomes part of the step's key,
    and `edgekd list` shows the kind."""

    kind: str

    def read(self, value: Any, place: str) -> tuple[Any, list[Problem]]:
        """(the part with its settings, defaults filled in, as a Use, or None; every problem)."""
        table = {"use": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping):
            return None, [Problem(place, f"must be a name, or a table with `use`, not {value!r}", self.known())]
        part, problems = self.find(table.get("use"), place)
        if part is None:
            return None, problems
        own = {k: v for k, v in table.items() if k != "use"}
        settings, problems = settings_of(part, own, place, KINDS[self.kind])
        return None if problems else Use(self.kind, table["use"], settings), problems

    def find(self, name: Any, place: str) -> tuple[Any, list[Problem]]:
        """(the part with this name, or None; every problem)."""
        if not isinstance(name, str):
            return None, [Problem(place, "`use` is missing", self.known())]
        try:
            part = find(self.kind, name)
        except UsageError as error:
            return None, [Problem(place, p.message, p.hint) for p in error.problems]
        called = inspect.isroutine(part) or isinstance(part, type | functools.partial)
        if not called and not KINDS[self.kind].module:
            return None, [Problem(place, f"`{name}` is {type(part).__name__}, not a function")]
        return part, []

    def known(self) -> str:
        """A hint with the known names."""
        return f"one of {', '.join(names(self.kind))}, or {KINDS[self.kind].own}"

    def parts(self, value: Any) -> list[Any]:
        """The parts that a value of this setting names."""
        return [] if value is None else [value.part()]


def parts_of(settings: Any) -> list[Any]:
    """The code that a dataclass of settings names: the parts in fields annotated with `Part`, and every
    `package.module:name` in a text of any field."""
    record: Any = type(settings)
    named = [(getattr(settings, name), r) for name, r in readers(record).items() if isinstance(r, Part)]
    found = [p for value, reader in named for p in reader.parts(value)]
    for text in specs_in(settings):
        with contextlib.suppress(UsageError):  # text that only looks like a name
            found.append(imported(text))
    return [p for i, p in enumerate(found) if not any(p is other for other in found[:i])]


def specs_in(value: Any) -> Iterator[str]:
    """The texts of the form `package.module:name` in a setting, at any depth."""
    return (text for text in _texts(value) if SPEC.fullmatch(text))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _texts(part))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (text for f in dataclasses.fields(value) for text in _texts(getattr(value, f.name)))
