"""Reads the `[[stage]]` tables of a recipe: each stage with its settings and its teachers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd import components, stages
from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.run.recipe.learns_with import uncached
from edgekd.run.recipe.teachers import teachers_of
from edgekd.signatures import parameters, plain, readers, settings_of

STAGE_KEYS = ("use", "name", "source", "teacher")  # keys of a [[stage]] besides the stage's settings
FILLED_IN = ("augment_seed", "sha256", "teachers")  # settings that the plan fills in
SPLITS = {"train", "validation", "test"}


@dataclass(frozen=True)
class Line:
    """One `[[stage]]`. `stage`: its `part` with all settings (None only where these are invalid); `said`: the settings
    that the recipe gives; `named`: the teachers that the recipe gives (None: none), `teacher`: those that it has.
    `source`: the earlier stage that it goes on from, `student` for the model that the first begins with; None: the
    stage before it."""

    number: int
    name: str
    use: str
    part: type
    stage: Any
    said: frozenset[str]
    named: Any
    teacher: tuple[str, ...]
    source: str | None = None

    def at(self, own: Mapping[str, Any]) -> Line:
        """The stage at a point of a sweep: with the settings `own`, and the teachers that it then needs. Raises
        UsageError where these are invalid."""
        if not own:
            return self
        problems: list[Problem] = []
        stage = dataclasses.replace(self.stage, **own)
        settings = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
        teacher = teachers_of(self.part, settings, self.named, self.name, problems)
        if problems:
            raise UsageError(*problems)
        return dataclasses.replace(self, stage=stage, said=self.said | own.keys(), teacher=teacher)


def partners(stage: Any) -> tuple[str, ...]:
    """The models that learn together with a stage's student."""
    return tuple(getattr(stage, "learns_with", None) or ())


def public() -> list[str]:
    """The stages that a recipe may name: those that make a model from a model."""
    return [name for name in components.names("stages") if name not in stages.PLANNED]


def read(tables: Sequence[Mapping[str, Any]], taken: Sequence[str], place: str, problems: list[Problem]) -> list[Line]:
    """The stages whose part is known. `taken`: names that are in use."""
    lines: list[Line] = []
    for number, table in enumerate(tables, 1):
        use = table.get("use")
        name = table.get("name", use)
        where = f"{place}: stage {number} ({name})"
        if not isinstance(use, str):
            hint = f"one of {', '.join(public())}"
            problems.append(Problem(f"{place}: stage {number}", "`use` is missing", hint))
            continue
        part = find(use, where, problems)
        if part is None:
            continue
        name = name if isinstance(name, str) else repr(name)
        problems += _name(name, (*taken, *(line.name for line in lines)), where)
        own, named = {k: v for k, v in table.items() if k not in STAGE_KEYS}, table.get("teacher")
        stage, settings = made(part, own, where, problems)
        teacher = teachers_of(part, settings, named, where, problems)
        problems += uncached(own, stage, teacher, where)
        source = table.get("source")
        if source is not None and not isinstance(source, str):
            problems.append(Problem(f"{where}: source", f"must be the name of an earlier stage, not {source!r}"))
            source = None
        lines.append(Line(number, name, use, part, stage, frozenset(own), named, teacher, source))
    return lines


def before(line: Line, lines: Sequence[Line]) -> list[Line]:
    """The stages that a stage goes on from, the first one first."""
    earlier = [other for other in lines if other.number < line.number]
    if line.source is None:
        found = earlier[-1:]
    else:
        found = [other for other in earlier if other.name == line.source]
    return [*before(found[0], lines), found[0]] if found else []


def sequences(lines: Sequence[Line]) -> list[tuple[Line, ...]]:
    """The stages as sequences, one for each stage that no other goes on from. Of stages without `source`, one."""
    ways = [(*before(line, lines), line) for line in lines]
    return [way for way in ways if not any(way[-1] in other[:-1] for other in ways)]


def _name(name: str, taken: Sequence[str], where: str) -> list[Problem]:
    found = []
    if not name[:1].isalnum() or not name.replace("-", "").replace("_", "").isalnum():
        found.append(Problem(where, f"`name` must be letters, digits, - and _, not {name!r}"))
    if name in (*taken, "teacher", "alone") or name.startswith("alone-"):
        found.append(Problem(where, f"the name `{name}` is taken", 'give this stage a `name = "..."` of its own'))
    return found


def find(use: str, where: str, problems: list[Problem]) -> Any:
    """The class of a stage, or None with its problems. The docstring of edgekd/stages says what a stage is."""
    try:
        part = components.find("stages", use, public())
    except UsageError as error:
        problems += [Problem(where, p.message, p.hint) for p in error.problems]
        return None
    if not isinstance(part, type) or not dataclasses.is_dataclass(part):
        hint = "a stage is a frozen dataclass of its settings with a `__call__`"
        problems.append(Problem(where, f"`{use}` is not a stage", hint))
        return None
    found: list[Problem] = []
    calls: dict[str, tuple[str, tuple[None, ...], dict[str, Any]]] = {
        "__call__": ("stage(source, run, *, teacher=(), data=None)", (None,) * 3, {"teacher": ()})
    }
    if hasattr(part, "check"):
        calls["check"] = ("check(model, example, forward)", (None,) * 4, {})
    for name, (wanted, given, named) in calls.items():
        try:
            inspect.signature(getattr(part, name)).bind(*given, **named)
        except (TypeError, ValueError) as error:
            text = f"`{use}` can't be called as {wanted}: {error}"
            found.append(Problem(where, text, f"the signature is `{wanted}`"))
    # a property depends on the settings: checked with them
    if not isinstance(getattr(part, "reads", None), property):
        found += _reads(part, use, where)
    problems += found
    return None if found else part


def parts_named(use: str) -> dict[str, Any]:
    """{setting of a built-in stage that names a part: its default as in a recipe, None without one}; {} for others:
    before the whole recipe is read it is not known where modules of one's own lie."""
    part = find(use, "", []) if use in public() else None
    if part is None:
        return {}
    known = parameters(part)
    return {
        name: None if known[name].default is inspect.Parameter.empty else plain(known[name].default)
        for name, reader in readers(part).items()
        if isinstance(reader, components.Part)
    }


def made(part: type, table: Mapping[str, Any], where: str, problems: list[Problem]) -> tuple[Any, dict[str, Any]]:
    """(a stage with the settings of a table, or None; its valid settings)."""
    problems += [Problem(f"{where}: {k}", "is filled in by edgekd", "leave it out") for k in FILLED_IN if k in table]
    settings, found = settings_of(part, table, where)
    stage = None
    if not found:
        try:
            stage = part(**settings)
        except THEIRS as error:  # a stage may be the user's code
            found = [Problem(where, f"`{part.__name__}` can't be made: {type(error).__name__}: {error}")]
    if stage is not None and isinstance(getattr(part, "reads", None), property):
        found = _reads(stage, part.__name__, where)
    problems += found
    return stage, settings


def _reads(of: Any, use: str, where: str) -> list[Problem]:
    """Problems of `reads`, the splits that a stage reads (or its class, where these don't depend on settings)."""
    why = ""
    try:
        reads = getattr(of, "reads", None)
    except THEIRS as error:  # (a stage may be the user's own code)
        reads, why = None, f": {type(error).__name__}: {error}"
    if isinstance(reads, list | tuple) and set(map(str, reads)) <= SPLITS:
        return []
    return [Problem(where, f"`{use}` does not say which splits it reads{why}", 'reads: ClassVar = ("train",)')]
