"""What can't work of a recipe, found before any training: brought weights, losses, settings of stages, what targets'
kernels don't compute."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.run import check_losses
from edgekd.run.interpret import Asked
from edgekd.run.recipe.stages import Line


def check(asked: Asked) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Raises UsageError with all that can't work. ({stage: what its losses look at}, {target: what is to be said of the
    recipe's settings there})."""
    losses, notes = {}, {}
    problems = [
        *_brought(asked),
        *check_losses.problems(asked, losses),
        *_refused(asked, notes),
        *_saturating(asked),
        *_stages(asked),
    ]
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return losses, notes


def _stages(asked: Asked) -> list[Problem]:
    """What the stages say that can tell before training whether their settings can work on the student."""
    problems, example = [], None
    for line in asked.recipe.stages:
        if not hasattr(line.part, "check") or any(
            s.use == line.use and s.number < line.number for s in asked.recipe.stages
        ):
            continue
        example = example if example is not None else asked.example()
        where = _place(asked, line)
        stages = [want.into(swept) for want in asked.wants() for swept in asked.swept(line)]
        for stage in {repr(s): s for s in stages}.values():
            found = _told(stage, asked, example)
            problems += [dataclasses.replace(p, place=f"{where}: {p.place}".rstrip(": ")) for p in found]
    return problems


def _told(stage: Any, asked: Asked, example: Any) -> list[Problem]:
    from edgekd.models import saved

    try:
        found = stage.check(saved.create(asked.task, asked.student, 0), example, asked.task.forward) or ()
        return [p if isinstance(p, Problem) else Problem("", str(p)) for p in found]
    except UsageError as error:
        return list(error.problems)
    except THEIRS as error:  # (a stage may be the user's own code)
        return [Problem("check", f"raises {type(error).__name__}: {error}")]


def _brought(asked: Asked) -> list[Problem]:
    """What is wrong with files of weights, by what they say that they hold."""
    from edgekd.models import saved

    found: list[Problem] = []
    for name, model in asked.recipe.models.items():
        if not model.weights or name not in asked.task.models:
            continue
        path = asked.recipe.folder / model.weights
        try:
            wrong = saved.unfit(path, saved.create(asked.task, name, 0), saved.held(path))
        except UsageError as error:
            wrong = list(error.problems)
        where = f"{asked.recipe.place}: model.{name}: weights"
        found += [dataclasses.replace(p, place=f"{where}: {p.place}") for p in wrong]
    return found


def _saturating(asked: Asked) -> list[Problem]:
    """Weights of the full range that were asked for, by a stage or a target, where a listed target's products saturate
    with them."""
    from edgekd import targets

    problems, asking = {}, ", ".join(t.name for t in asked.resolved.targets if not t.int8.pairs16)
    for line, (want, names) in itertools.product(asked.recipe.stages, asked.served().items()):
        hit = ", ".join(t.name for t in asked.resolved.targets if t.name in names and targets.saturates(t))
        for swept in asked.swept(line):
            stage = want.into(swept)
            if hit and not getattr(stage, "pairs16", True) and 8 in _bits(stage):
                recipe = f"{_place(asked, line)}: pairs16"
                place = f"{asked.recipe.place}: target {asking}: int8.pairs16" if swept.stage.pairs16 else recipe
                text = (
                    f"{hit}: products of two bytes are added in 16 bits there, where weights of the full range saturate"
                )
                hint = "leave pairs16 = false out, or set weight_bits = 7"
                problems[Problem(place, text, hint)] = None
    return list(problems)


def _bits(stage: Any) -> tuple[Any, ...]:
    """The bits of a stage's weights; one's own stage may have some of these settings, or none."""
    return (getattr(stage, "weight_bits", 8), *getattr(stage, "layer_bits", {}).values())


def _refused(asked: Asked, notes: dict[str, str]) -> list[Problem]:
    """What the recipe says that a target's kernels don't compute; what they do slowly goes to `notes`."""
    problems = []
    for line, (want, names) in itertools.product(asked.recipe.stages, asked.wants().items()):
        for swept in asked.swept(line):
            found, where = want.refuses(swept, ", ".join(names)), _place(asked, line)
            problems += [dataclasses.replace(p, place=f"{where}: {p.place}") for p in found]
            for name in names if (note := want.slower(swept)) else ():
                notes[name] = "; ".join(dict.fromkeys(filter(None, (notes.get(name), note))))
    return problems


def _place(asked: Asked, line: Line) -> str:
    return f"{asked.recipe.place}: stage {line.number} ({line.name})"
