"""Parts are found by name: the folder is the list, the import path is the registry, the signature is the schema."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from edgekd.errors import THEIRS, EdgekdError, Problem, UsageError

PARTS = ("losses", "ensembles", "criteria", "ranges")  # folders of what a setting may name
SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def names(folder: str) -> list[str]:
    """The built-in parts of one kind, e.g. `names("losses")`."""
    package = importlib.import_module(f"edgekd.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, use: str, among: list[str] | None = None) -> Any:
    """The part `use`: a built-in name (of `among`, by default the whole folder), or `package.module:name` of one's own.
    Raises UsageError with a hint."""
    if ":" in use:
        return imported(use)
    known = names(folder) if among is None else among
    if use not in known:
        near = difflib.get_close_matches(use, known, 1)
        hint = (
            f"did you mean `{near[0]}`?" if near else f"one of {', '.join(known)}, or `package.module:name` of your own"
        )
        kind = {"criteria": "criterion", "losses": "loss"}.get(folder, folder.removesuffix("s"))
        raise UsageError(Problem("", f"no {kind} is named `{use}`", hint))
    module = importlib.import_module(f"edgekd.{folder}.{use}")
    for name in (use, "".join(word.capitalize() for word in use.split("_"))):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"edgekd.{folder}.{use} defines neither `{use}` nor its class")


def imported(path: str) -> Any:
    """`package.module:name` imported. Raises UsageError that tells which half is missing."""
    module_name, _, attribute = path.partition(":")
    try:
        target = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            hint = "modules are looked for beside the recipe, in the current folder, and where Python finds them"
            raise UsageError(Problem("", f"there is no module `{module_name}`", hint)) from None
        raise UsageError(
            Problem("", f"`{module_name}` can't be imported: {error}", f"install `{error.name}`")
        ) from error
    except EdgekdError as error:  # what the module makes at its top, such as its arrays
        where = f"importing `{module_name}`"
        raise UsageError(
            *(dataclasses.replace(p, place=f"{where}: {p.place}" if p.place else where) for p in error.problems)
        ) from error
    except THEIRS as error:
        raise UsageError(Problem("", f"importing `{module_name}` failed: {type(error).__name__}: {error}")) from error
    for name in attribute.split("."):
        if not hasattr(target, name):
            near = difflib.get_close_matches(name, dir(target), 1)
            hint = f"did you mean `{near[0]}`?" if near else "write `package.module:name`"
            raise UsageError(Problem("", f"`{module_name}` has no `{name}`", hint))
        target = getattr(target, name)
    return target


def specs_in(value: Any) -> Iterator[str]:
    """What may be a `package.module:name`, in a setting or anywhere inside of it."""
    return (text for text in _texts(value) if SPEC.fullmatch(text))


def parts_in(value: Any) -> list[Any]:
    """The parts that settings name, wherever in them: by `package.module:name`, or by a name in one of the folders of
    parts (in each that has it: a setting does not say which kind it means)."""
    found, known = {}, {folder: names(folder) for folder in PARTS}
    for text in _texts(value):
        kinds = [None] if SPEC.fullmatch(text) else [folder for folder in PARTS if text in known[folder]]
        for kind in kinds:
            with contextlib.suppress(UsageError):  # text that only looks like one
                found[kind, text] = imported(text) if kind is None else find(kind, text)
    return list(found.values())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _texts(part))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (text for f in dataclasses.fields(value) for text in _texts(getattr(value, f.name)))


# what is passed by position to the parts of a kind; the other parameters are settings
POSITIONAL = {"losses": 3, "ensembles": 2, "ranges": 1, "criteria": 1}


def parameters(part: Callable, skip: int = 0) -> dict[str, inspect.Parameter]:
    """The settings of a part: all fields of a dataclass, the parameters of a function after the first `skip`."""
    every = list(inspect.signature(part).parameters.items())[skip:]
    made = {f.name: f.default_factory for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}
    every = [
        (n, p if made.get(n, dataclasses.MISSING) is dataclasses.MISSING else p.replace(default=made[n]()))
        for n, p in every
    ]
    return {
        name: p for name, p in every if p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }


@cache
def model_of(part: Callable, skip: int = 0) -> Any:
    """A strict pydantic model of a part's settings, built from its signature."""
    import pydantic

    fields = {}
    for name, p in parameters(part, skip).items():
        fields[name] = (_hint(part, name, p), ... if p.default is inspect.Parameter.empty else p.default)
    config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return pydantic.create_model(getattr(part, "__name__", "part"), __config__=config, **fields)


def _hint(part: Callable, name: str, p: inspect.Parameter) -> Any:
    """One parameter's annotation, evaluated where it was written (others of the same part may be for type checkers
    only)."""
    if dataclasses.is_dataclass(part):
        return typing.get_type_hints(part, include_extras=True).get(name, Any)
    if p.annotation is inspect.Parameter.empty:
        return Any
    try:
        known = vars(sys.modules[part.__module__]) if isinstance(part, type) else inspect.unwrap(part).__globals__
        return eval(p.annotation, dict(known)) if isinstance(p.annotation, str) else p.annotation
    except NameError:  # a name for type checkers only: any value will do
        return Any


def check(model: Any, table: Mapping[str, Any], place: str) -> tuple[Any, list[Problem]]:
    """`table` read by a pydantic model: (instance, []) or (None, every problem with its place)."""
    import pydantic

    try:
        return model.model_validate_json(json.dumps(table, default=str)), []
    except pydantic.ValidationError as error:
        return None, [_problem(e, place, model) for e in error.errors(include_url=False)]


def _problem(error: Mapping[str, Any], place: str, model: Any) -> Problem:
    path = ".".join(str(part) for part in error["loc"])
    where = f"{place}: {path}" if path else place
    if error["type"] == "extra_forbidden":
        known = list(model.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        return Problem(
            where, "unknown key", f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        )
    if error["type"] == "missing":
        return Problem(where, "is missing")
    message = error["msg"][0].lower() + error["msg"][1:]
    given = error.get("input")
    return Problem(
        where,
        f"{message}, not {given!r}"
        if isinstance(given, (str, int, float, bool, list)) and len(repr(given)) < 60
        else message,
    )


def settings_of(
    part: Callable, table: Mapping[str, Any], place: str, skip: int = 0
) -> tuple[dict[str, Any], list[Problem]]:
    """The keyword arguments for `part` with defaults filled in, and every problem of `table`."""
    try:
        model = model_of(part, skip)
    except (TypeError, ValueError) as error:
        return {}, [
            Problem(
                place,
                f"its settings can't be read from its signature: {error}",
                "name a function or class written in Python",
            )
        ]
    made, problems = check(model, table, place)
    return ({name: getattr(made, name) for name in type(made).model_fields} if made is not None else {}), problems
