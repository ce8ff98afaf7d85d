"""Reads a recipe from a TOML file, a table, or the built-in one, and applies `--set`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import Problem, UsageError, closest, meant, near
from edgekd.files import content, toml
from edgekd.run.recipe.stages import parts_named

BUILT_IN = Path(__file__).parents[2] / "tasks" / "digits.toml"


def opened(source: Path | str | Mapping[str, Any] | None) -> tuple[dict[str, Any], str, Path]:
    """(the recipe's table, its place in messages, the folder that its paths are relative to). Raises UsageError for a
    file that is missing or not valid TOML."""
    if isinstance(source, Mapping):
        return _copy(source), "recipe", Path.cwd()
    path, place = (BUILT_IN, "built-in recipe") if source is None else (Path(source), str(source))
    if path.is_dir() and (path / "recipe.toml").is_file():
        path = path / "recipe.toml"
    try:
        return toml(content(path).decode("utf-8")), place, Path.cwd() if source is None else path.resolve().parent
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        found = [str(path.parent / name) for name in closest(path.name, beside)]
        hint = meant(found, "`edgekd compress` without a recipe runs the built-in one")
        raise UsageError(Problem(place, "there is no such recipe", hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem(place, f"can't be read: {getattr(error, 'strerror', None) or error}")) from None
    except ValueError as error:
        raise UsageError(Problem(place, f"is not valid TOML: {error}")) from None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list | tuple) else value


def with_sets(raw: dict[str, Any], sets: Iterable[str], keys: Iterable[str]) -> list[Problem]:
    """Changes `raw`: `STAGE.KEY=VALUE` sets a key of that stage, `KEY=VALUE` one of the top-level `keys`,
    `model.teacher.seed=1` one of a nested table. A key that is set is no longer swept. Returns the problems."""
    problems: list[Problem] = []
    for text in sets:
        _set(raw, text, tuple(keys), problems)
    return problems


def _set(raw: dict[str, Any], text: str, top: tuple[str, ...], problems: list[Problem]) -> None:
    place, (path, equals, value_text) = f"--set {text}", text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        problems.append(Problem(place, "is not of the form STAGE.KEY=VALUE", "for example --set distill.epochs=20"))
        return
    value = _value(value_text.strip())
    tables = [s for s in raw["stage"] if isinstance(s, dict)] if isinstance(raw.get("stage"), list) else []
    stages = {str(s.get("name", s.get("use"))): s for s in tables}
    if keys[0] == "sweep" and len(keys) > 1 and isinstance(raw.setdefault("sweep", {}), dict):
        raw["sweep"][".".join(keys[1:])] = value
        return
    if keys[0] not in stages and len(keys) > 1 and keys[0] not in top:
        hint = near(keys[0], stages, f"stages: {', '.join(stages)}")
        problems.append(Problem(place, f"no stage is named `{keys[0]}`", hint))
        return
    where, keys = (stages[keys[0]], keys[1:]) if keys[0] in stages else (raw, keys)
    if not keys:
        problems.append(Problem(place, "names a stage but none of its keys", "STAGE.KEY=VALUE"))
        return
    if len(keys) > 1:
        _as_table(where, keys[0])
    for key in keys[:-1]:
        where = where.setdefault(key, {}) if isinstance(where, dict) else None
    if not isinstance(where, dict):
        above = path.strip().rpartition(".")[0]
        hint = (
            f"if it names a part: --set '{above}={{use = \"{where}\", {keys[-1]} = ...}}'"
            if isinstance(where, str)
            else ""
        )
        problems.append(Problem(place, f"`{above}` is not a table and has no keys", hint))
        return
    where[keys[-1]] = value
    if isinstance(raw.get("sweep"), dict):
        raw["sweep"].pop(path.strip(), None)


def _as_table(table: dict[str, Any], key: str) -> None:
    """A part that a recipe names without settings, or leaves to its default, becomes a table that settings go into."""
    default = parts_named(str(table["use"])) if "use" in table else {"task": None}
    name = table.get(key, default.get(key))
    if key in default and isinstance(name, str):
        table[key] = {"use": name}


def _value(text: str) -> Any:
    """The TOML value of `text`; a bare word is a string."""
    try:
        return toml(f"value = {text}")["value"]
    except ValueError:
        return text
