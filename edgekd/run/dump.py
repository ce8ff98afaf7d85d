"""Writes a resolved recipe as TOML: reading it again gives the same keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekd.components import specs_in
from edgekd.hub.folder import PREFIX
from edgekd.run.recipe.models import Model
from edgekd.run.recipe.stages import FILLED_IN, Line, partners
from edgekd.run.resolve import Resolved
from edgekd.run.target_settings import OPEN
from edgekd.signatures import plain


def dump(resolved: Resolved, place: Path | None = None) -> str:
    """The recipe as TOML with every default, except settings that targets fill in. Paths are relative to `place`, the
    folder that it is written to (None: unchanged)."""
    import tomli_w

    recipe, home = resolved.recipe, resolved.recipe.folder

    def moved(value: Any) -> Any:
        """A path beside the recipe, relative to `place`; any other value unchanged."""
        if place is None or not isinstance(value, str) or Path(value).is_absolute() or not (home / value).exists():
            return value
        return os.path.relpath(home / value, place.resolve())

    task, every = recipe.task, [swept.stage for line in recipe.stages for swept in recipe.sweep.lines(line)]
    every += [model.stage for model in recipe.models.values()]
    new = [name for stage in every for name in partners(stage)]  # a table would give them weights to begin with
    table: dict[str, Any] = {
        "task": task if isinstance(task, str) else {k: v if k == "use" else moved(v) for k, v in task.items()},
        "targets": [moved(name) if name.endswith(".toml") else name for name in recipe.targets],
        "seed": recipe.seed,
        "threads": resolved.threads,
        **({"processes": resolved.processes} if resolved.processes > 1 else {}),
        "device": resolved.device if len(resolved.devices) == 1 else list(resolved.devices),
        "control": recipe.control,
        "stage": [_stage(line) for line in recipe.stages],
        "model": {
            name: _model(model, moved) for name, model in recipe.models.items() if model.given or name not in new
        },
    }
    if place is not None and _names_modules(recipe):
        table["modules"] = os.path.relpath(home / recipe.modules, place.resolve())
    table |= {"sweep": recipe.sweep.said} if recipe.sweep.said else {}
    table |= {"mixed": recipe.mixed} if recipe.mixed else {}
    table["select"] = resolved.select.model_dump()
    table |= {"gate": resolved.gate} if resolved.gate else {}
    return tomli_w.dumps(_toml(table))


def _stage(line: Line) -> dict[str, Any]:
    """A `[[stage]]`, without the settings that each target fills in."""
    told = {k: v for k, v in _settings(line.stage, line.teacher).items() if k in line.said or k not in OPEN}
    begun = {} if line.source is None else {"source": line.source}
    return {
        "use": line.use,
        "name": line.name,
        **begun,
        **({"teacher": list(line.teacher)} if line.teacher else {}),
        **told,
    }


def _model(model: Model, moved: Callable[[Any], Any]) -> dict[str, Any]:
    """A `[model.NAME]`; `shows` only if it is not the default."""
    found: dict[str, Any] = {"seed": model.seed}
    if model.shows != "logits":
        found |= {"shows": model.shows, "top": model.top}
    if model.source is not None:
        found |= {"model": PREFIX + moved(model.source.removeprefix(PREFIX))}
    if model.stage is None:
        return found | {"weights": moved(model.weights)}
    told = {k: v for k, v in _settings(model.stage, model.teacher).items() if k != "model" or v != model.name}
    return found | {model.way: told | ({"teacher": list(model.teacher)} if model.teacher else {})}


def _settings(stage: Any, teachers: tuple[str, ...]) -> Mapping[str, Any]:
    """A stage's settings; no `cache` where no teacher is fixed."""
    cached = teachers or not partners(stage)
    return {k: v for k, v in plain(stage).items() if k != "cache" or cached}


def _names_modules(recipe: Any) -> bool:
    """Whether the recipe names a user's own code, as `package.module:name`."""
    stages = [(line.use, line.stage) for line in recipe.stages]
    return any(specs_in([recipe.task, stages, list(recipe.models.values())]))


def _toml(value: Any) -> Any:
    """A value that TOML can hold: without None and settings that the plan fills in, and with lists for tuples."""
    if isinstance(value, Mapping):
        return {k: _toml(v) for k, v in value.items() if v is not None and k not in FILLED_IN}
    return [_toml(v) for v in value] if isinstance(value, list | tuple) else value
