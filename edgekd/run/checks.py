"""Checks of a recipe before any training: weights from files, losses, settings of stages, what targets' kernels can't
compute."""

from __future__ import annotations

import itertools
from typing import Any

from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.run import check_losses
from edgekd.run.recipe.stages import Line, before
from edgekd.run.variants import RecipeView


def check(view: RecipeView) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({stage: what its losses learn from}, {target: note on the recipe's settings}). Raises UsageError with every
    problem."""
    losses, notes = {}, {}
    problems = [
        *_weights_from_files(view),
        *check_losses.problems(view, losses),
        *_refused(view, notes),
        *_saturating(view),
        *_stages(view),
    ]
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return losses, notes


def _stages(view: RecipeView) -> list[Problem]:
    """Problems that the stages' own `check` finds with their settings and the student, before training."""
    problems, example = [], None
    for line in view.recipe.stages:
        if not hasattr(line.part, "check") or any(s.use == line.use for s in before(line, view.recipe.stages)):
            continue
        example = example if example is not None else view.example()
        where = _place(view, line)
        stages = [settings.into(swept) for settings in view.target_groups() for swept in view.swept(line)]
        for stage in {repr(s): s for s in stages}.values():
            found = _told(stage, view, example)
            problems += [p.within(where) for p in found]
    return problems


def _told(stage: Any, view: RecipeView, example: Any) -> list[Problem]:
    from edgekd.models import saved, streams
    from edgekd.quantization.torch_graph.capture import step_of

    try:
        model, forward = saved.create(view.task, view.student, 0), view.task.traced
        if (stream := streams.of(view.task, model)) is not None:
            if type(stage).__name__ in ("Prune", "WeightOnly"):
                hint = "`quantize` does: give whole sequences to a model without `state_shapes`, or leave the stage out"
                return [Problem("", "does not work for a streaming model", hint)]
            example, forward = stream.example(example), step_of(view.task, stream)
        found = stage.check(model, example, forward) or ()
        return [p if isinstance(p, Problem) else Problem("", str(p)) for p in found]
    except UsageError as error:
        return list(error.problems)
    except THEIRS as error:  # (a stage may be the user's own code)
        return [Problem("check", f"raises {type(error).__name__}: {error}")]


def _weights_from_files(view: RecipeView) -> list[Problem]:
    """Problems with files of weights: tensors that don't fit their model."""
    from edgekd.models import saved

    found: list[Problem] = []
    for name, model in view.recipe.models.items():
        if not model.weights or name not in view.task.models:
            continue
        path = view.recipe.folder / model.weights
        try:
            wrong = saved.unfit(path, saved.create(view.task, name, 0), saved.held(path))
        except UsageError as error:
            wrong = list(error.problems)
        where = f"{view.recipe.place}: model.{name}: weights"
        found += [p.within(where) for p in wrong]
    return found


def _saturating(view: RecipeView) -> list[Problem]:
    """Full-range weights that a stage or a target requests, where they saturate the products of a listed target."""
    from edgekd import targets

    problems, asking = {}, ", ".join(t.name for t in view.resolved.targets if not t.int8.pairs16)
    for line, (settings, names) in itertools.product(view.recipe.stages, view.served_groups().items()):
        hit = ", ".join(t.name for t in view.resolved.targets if t.name in names and targets.saturates(t))
        for swept in view.swept(line):
            stage = settings.into(swept)
            if hit and not getattr(stage, "pairs16", True) and 8 in _bits(stage):
                recipe = f"{_place(view, line)}: pairs16"
                place = f"{view.recipe.place}: target {asking}: int8.pairs16" if swept.stage.pairs16 else recipe
                text = f"{hit}: full-range weights saturate where kernels add the products of two bytes in 16 bits"
                hint = "leave pairs16 = false out, or set weight_bits = 7"
                problems[Problem(place, text, hint)] = None
    return list(problems)


def _bits(stage: Any) -> tuple[Any, ...]:
    """The bits of a stage's weights; one's own stage may have some of these settings, or none."""
    return (getattr(stage, "weight_bits", 8), *getattr(stage, "layer_bits", {}).values())


def _refused(view: RecipeView, notes: dict[str, str]) -> list[Problem]:
    """Settings of the recipe that a target's kernels can't compute; those that they run slowly at go to `notes`."""
    problems = []
    for line, (settings, names) in itertools.product(view.recipe.stages, view.target_groups().items()):
        for swept in view.swept(line):
            found, where = settings.refuses(swept, ", ".join(names)), _place(view, line)
            problems += [p.within(where) for p in found]
            for name in names if (note := settings.slower(swept)) else ():
                notes[name] = "; ".join(dict.fromkeys(filter(None, (notes.get(name), note))))
    return problems


def _place(view: RecipeView, line: Line) -> str:
    return f"{view.recipe.place}: stage {line.number} ({line.name})"
