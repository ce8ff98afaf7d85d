"""A part's signature is the schema of its settings: annotations carry types and bounds, and may define how a setting is
read."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

from edgekd.errors import Problem, UsageError, near


@dataclass(frozen=True)
class Kind:
    """How the parts of one folder are named and called. `one`: the word for a single part; `by_position`, `by_name`:
    the arguments that its caller passes, which are not settings; `module`: the part is the whole module."""

    one: str
    by_position: int = 0
    by_name: tuple[str, ...] = ()
    module: bool = False

    @property
    def own(self) -> str:
        """How a recipe names a part that is not built in."""
        return f"`package.module{'' if self.module else ':name'}` of your own"


@runtime_checkable
class Reader(Protocol):
    """An annotation that reads a setting, where a type is not enough: `Annotated[Use, Part("criteria")]`."""

    def read(self, value: Any, place: str) -> tuple[Any, list[Problem]]:
        """(the setting's value, or None; every problem) for the `value` in a recipe."""


PLAIN = Kind("part")
LISTS = ("tuple_type", "list_type")  # of pydantic's errors
SHOULD = "Input should be "


def parameters(part: Callable[..., Any], kind: Kind = PLAIN) -> dict[str, inspect.Parameter]:
    """The settings of a part: all fields of a dataclass; the parameters of a function, without those that callers of
    this kind of part pass."""
    every = list(inspect.signature(part).parameters.items())[kind.by_position :]
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    made = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
    every = [(n, p.replace(default=made[n]()) if n in made else p) for n, p in every if n not in kind.by_name]
    return {
        name: p for name, p in every if p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }


def settings_of(
    part: Callable[..., Any], table: Mapping[str, Any], place: str, kind: Kind = PLAIN
) -> tuple[dict[str, Any], list[Problem]]:
    """(keyword arguments for `part` with defaults filled in, every problem of `table`). With problems, only settings
    with a reader are given."""
    try:
        model = model_of(part, kind)
    except (TypeError, ValueError) as error:
        text = f"its settings can't be read from its signature: {error}"
        return {}, [Problem(place, text, "name a function or class written in Python")]
    made, problems = check(model, table, place)
    settings = {} if made is None else {name: getattr(made, name) for name in type(made).model_fields}
    for name, reader in readers(part, kind).items():
        if name not in table and (made is None or settings[name] is None):
            continue
        value = table[name] if name in table else plain(settings[name])
        settings[name], found = reader.read(value, f"{place}: {name}")
        problems += found
    return settings, problems


@cache
def model_of(part: Callable[..., Any], kind: Kind = PLAIN) -> Any:
    """A strict pydantic model of a part's settings, built from its signature. Settings with a reader may have any
    type."""
    import pydantic

    fields: dict[str, Any] = {}
    read = readers(part, kind)
    for name, p in parameters(part, kind).items():
        hint = Any if name in read else _hint(part, name, p)
        fields[name] = (hint, ... if p.default is inspect.Parameter.empty else p.default)
    config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return pydantic.create_model(getattr(part, "__name__", "part"), __config__=config, **fields)


@cache
def readers(part: Callable[..., Any], kind: Kind = PLAIN) -> dict[str, Any]:
    """{setting: its reader} of settings whose annotation has one."""
    found: dict[str, Any] = {}
    for name, p in parameters(part, kind).items():
        told = [m for m in getattr(_hint(part, name, p), "__metadata__", ()) if isinstance(m, Reader)]
        found |= {name: told[0]} if told else {}
    return found


def _hint(part: Callable[..., Any], name: str, p: inspect.Parameter) -> Any:
    """One parameter's annotation, evaluated in its module. Names that exist for type checkers only give Any."""
    if dataclasses.is_dataclass(part):
        return typing.get_type_hints(part, include_extras=True).get(name, Any)
    if p.annotation is inspect.Parameter.empty:
        return Any
    try:
        known = vars(sys.modules[part.__module__]) if isinstance(part, type) else inspect.unwrap(part).__globals__
        return eval(p.annotation, dict(known)) if isinstance(p.annotation, str) else p.annotation
    except NameError:  # a name that exists for type checkers only
        return Any


def check(model: Any, table: Mapping[str, Any], place: str) -> tuple[Any, list[Problem]]:
    """Validates `table` with a pydantic model: (instance, []) or (None, every problem with its place)."""
    import pydantic

    try:
        return model.model_validate_json(json.dumps(table, default=str)), []
    except pydantic.ValidationError as error:
        return None, [_problem(e, place, model) for e in _fitting(error.errors(include_url=False), table)]


def _fitting(errors: Sequence[Any], table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pydantic's errors with places in the table alone. Of a setting that may be of several types those of the type
    that the value is of, or one that names them all. A list's length is not wrong where its entries are."""
    found: list[dict[str, Any]] = []
    several: dict[tuple[int | str, ...], dict[str, list[dict[str, Any]]]] = {}
    for error in errors:
        loc, at, kind = _located(error, table)
        if kind is None:
            found.append({**error, "loc": loc})
        else:
            several.setdefault(loc[:at], {}).setdefault(kind, []).append({**error, "loc": loc})
    for loc, kinds in several.items():
        wrong = lambda e, loc=loc: e["loc"] == loc and e["type"].endswith(("_type", "literal_error"))
        fit = [those for those in kinds.values() if not any(map(wrong, those))]
        each = [those[0] for those in kinds.values()]
        told = " or ".join("a list" if e["type"] in LISTS else e["msg"].removeprefix(SHOULD) for e in each)
        found += fit[0] if fit else [{**each[0], "type": "several_types", "msg": SHOULD + told}]
    below = {e["loc"][:i] for e in found for i in range(len(e["loc"]))}
    return [e for e in found if e["type"] != "too_short" or e["loc"] not in below]


def _located(error: Any, value: Any) -> tuple[tuple[int | str, ...], int, str | None]:
    """(the error's place, where in it a type of several was tried, the first such type). Pydantic writes the names of
    types into places."""
    kept: list[int | str] = []
    at, kind = 0, None
    for i, part in enumerate(error["loc"]):
        known = value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list | tuple) else ()
        inside = part in known
        if inside or part == "[key]" or (error["type"] == "missing" and i == len(error["loc"]) - 1):
            kept.append(part)
            value = value[part] if inside else None
        elif kind is None:
            at, kind = len(kept), str(part)
    return tuple(kept), at, kind


def _problem(error: Mapping[str, Any], place: str, model: Any) -> Problem:
    path = ".".join(str(part) for part in error["loc"])
    where = f"{place}: {path}" if path else place
    if error["type"] == "extra_forbidden":
        known = list(model.model_fields)
        told = f"known keys: {', '.join(known)}" if known else f"`{model.__name__}` takes no settings"
        return Problem(where, "unknown key", near(str(error["loc"][-1]), known, told))
    if error["type"] == "missing":
        return Problem(where, "is missing")
    message = error["msg"][0].lower() + error["msg"][1:]
    given, hint = error.get("input"), str(error.get("ctx", {}).get("hint", ""))
    if error["type"] == "too_short":
        least = error["ctx"]["min_length"]
        message = f"must have at least {least} item{'s' if least > 1 else ''}"
    if error["type"] == "too_long":
        message = f"must have at most {error['ctx']['max_length']} items"
    if error["type"] in LISTS:  # TOML's word for an array is a list in Python and in the hints
        message, hint = "must be a list", f"{error['loc'][-1]} = [...]" if path else ""
    short = isinstance(given, str | int | float | bool | list) and len(repr(given)) < 60
    return Problem(where, f"{message}, not {given!r}" if short else message, hint)


def plain(value: Any) -> Any:
    """A setting as written in a recipe, in the types of TOML and JSON (and None): parts as their tables."""
    if hasattr(value, "table"):
        return value.table()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def changed(settings: Any, table: Mapping[str, Any]) -> Any:
    """A dataclass of settings with those of `table`, written as in a recipe. Raises UsageError for unknown parts."""
    record: Any = type(settings)
    known, read, problems = readers(record), dict(table), []
    for name in table.keys() & known.keys():
        read[name], found = known[name].read(table[name], name)
        problems += found
    if problems:
        raise UsageError(*problems)
    return dataclasses.replace(settings, **read)
