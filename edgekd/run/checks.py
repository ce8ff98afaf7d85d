"""What can't work of a recipe, found before any training: brought weights, losses, settings of stages, what targets'
kernels don't compute."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.records import Task
from edgekd.run.interpret import FORMS, Asked
from edgekd.run.recipe import at

CONTROL = "the control (the student alone, by labels)"  # in problems with its losses


def check(asked: Asked) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Raises UsageError with all that can't work. ({stage: what its losses look at}, {target: what is to be said of the
    recipe's settings there})."""
    losses, notes = {}, {}
    problems = [
        *_brought(asked),
        *_rehearsals(asked, losses),
        *_refused(asked, notes),
        *_saturating(asked),
        *_stages(asked),
    ]
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return losses, notes


def _stages(asked: Asked) -> list[Problem]:
    """What the stages say that can tell before training whether their settings can work on the student."""
    from edgekd.models import saved

    problems, example = [], None
    for line in asked.read.stages:
        if not hasattr(line.part, "check") or any(
            s.use == line.use and s.number < line.number for s in asked.read.stages
        ):
            continue
        example = example if example is not None else _example(asked.task, asked.resolved.data("train"))
        for settings in {
            repr(s): s for s in (w.into(at(line, o)) for w in asked.wants() for o in asked.own_sweep(line))
        }.values():
            where = f"{asked.read.place}: stage {line.number} ({line.name})"
            try:
                found = (
                    line.part(**settings).check(saved.create(asked.task, asked.student, 0), example, asked.task.forward)
                    or ()
                )
                told = [p if isinstance(p, Problem) else Problem("", str(p)) for p in found]
            except THEIRS as error:  # (a stage may be the user's own code)
                told = (
                    error.problems
                    if isinstance(error, UsageError)
                    else [Problem("check", f"raises {type(error).__name__}: {error}")]
                )
            problems += [dataclasses.replace(p, place=f"{where}: {p.place}".rstrip(": ")) for p in told]
    return problems


def _brought(asked: Asked) -> list[Problem]:
    """What is wrong with files of weights, by what they say that they hold."""
    from edgekd.models import saved

    found: list[Problem] = []
    for name, table in asked.read.models.items():
        path = asked.read.folder / table["weights"] if table.get("weights") else None
        if path is None or name not in asked.task.models:
            continue
        try:
            wrong = saved.unfit(path, saved.create(asked.task, name, 0), saved.held(path))
        except UsageError as error:
            wrong = list(error.problems)
        found += [dataclasses.replace(p, place=f"{asked.read.place}: model.{name}: weights: {p.place}") for p in wrong]
    return found


def _saturating(asked: Asked) -> list[Problem]:
    """Weights of the full range that were asked for, by a stage or a target, where a listed target's products saturate
    with them."""
    from edgekd import targets

    problems, asking = {}, ", ".join(t.name for t in asked.resolved.targets if not t.int8.pairs16)
    for line, (want, names) in itertools.product(asked.read.stages, asked.served().items()):
        hit = ", ".join(t.name for t in asked.resolved.targets if t.name in names and targets.saturates(t))
        for tried in (at(line, own) for own in asked.own_sweep(line)):
            settings = want.into(tried)
            if hit and not settings.get("pairs16", True) and 8 in _bits(settings):
                place = (
                    f"target {asking}: int8.pairs16"
                    if tried.settings["pairs16"]
                    else f"stage {line.number} ({line.name}): pairs16"
                )
                text = (
                    f"{hit}: products of two bytes are added in 16 bits there, where weights of the full range saturate"
                )
                problems[
                    Problem(f"{asked.read.place}: {place}", text, "leave pairs16 = false out, or set weight_bits = 7")
                ] = None
    return list(problems)


def _bits(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """The bits of a stage's weights; one's own stage may have some of these settings, or none."""
    return (settings.get("weight_bits", 8), *settings.get("layer_bits", {}).values())


def _refused(asked: Asked, notes: dict[str, str]) -> list[Problem]:
    """What the recipe says that a target's kernels don't compute; what they do slowly goes to `notes`."""
    problems = []
    for line, (want, names) in itertools.product(asked.read.stages, asked.wants().items()):
        for tried in (at(line, own) for own in asked.own_sweep(line)):
            found = want.refuses(tried, ", ".join(names))
            problems += [
                dataclasses.replace(p, place=f"{asked.read.place}: stage {line.number} ({line.name}): {p.place}")
                for p in found
            ]
            for name in names if (note := want.slower(tried)) else ():
                notes[name] = "; ".join(dict.fromkeys(filter(None, (notes.get(name), note))))
    return problems


def _rehearsals(asked: Asked, heard: dict[str, list[str]]) -> list[Problem]:
    """What is wrong with the losses: each is called once on a few samples, with fresh models for student and teachers;
    what they look at goes to `heard`."""
    from edgekd.models import saved
    from edgekd.training import supervision as guides_module
    from edgekd.training.loss_checks import rehearse
    from edgekd.training.terms import EMA, PEERS

    found, fresh = [], lambda name: saved.create(asked.task, name, 0)
    swept = [at(line, own) for line in asked.read.stages for own in asked.own_sweep(line)]
    lines = [
        (f"stage {s.number} ({s.name})", s.use, s.settings, asked.student, s.teacher)
        for s in swept
        if s.settings.get("mode") != "ptq"
    ]
    for name, table in asked.read.models.items():
        way = next((w for w in ("train", "distill") if w in table), None)
        if way is not None:
            lines.append((f"model.{name}.{way}", way, table[way], table[way]["model"], table.get("teacher", ())))
    first, last = asked.read.stages[0], asked.read.stages[-1]
    if asked.controlled and not asked.on_labels(first):  # else they are the stage's own
        lines.append((CONTROL, "train", {"losses": asked.control(first)}, asked.student, ()))
    if asked.controlled and last.use in FORMS and asked.trains(last):
        lines.append((CONTROL, last.use, {"losses": asked.control(last)}, asked.student, ()))
    tried = set()  # what a sweep over other settings would try again
    for where, use, settings, model, teachers in lines:
        same = repr((where, use, settings.get("losses"), model, teachers, settings.get("combine")))
        if same in tried:
            continue
        tried.add(same)
        guides = {name: fresh(asked.model_of(name)) for name in teachers} | {PEERS: fresh(model), EMA: fresh(model)}
        guides[""] = guides[teachers[0]] if teachers else guides[PEERS]
        shows = {name: asked.read.models.get(name, {}).get("shows", "logits") for name in teachers}
        shows[""] = next((s for s in shows.values() if s != "logits"), "logits")
        losses = settings.get("losses", ())
        tapped = [i for i, term in enumerate(losses) if use == "quantize" and term.get("on")]
        for number in tapped:
            text = "a quantized model is one graph, its modules have no paths"
            found.append(
                Problem(f"{asked.read.place}: {where}: losses[{number}]: on", text, "tap layers in a stage before")
            )
        told, places = [], [i for i in range(len(losses)) if i not in tapped]
        wrong = rehearse(
            [losses[i] for i in places], fresh(model), guides, asked.task, asked.resolved.data("train"), shows, told
        )
        for number, message, hint in wrong:
            if where == CONTROL and any((p.message, p.hint) == (message, hint) for p in found):
                continue  # the stage's own, told already
            hint = (
                hint
                if where != CONTROL
                else "give the first stage a loss on labels, which the control learns by too, or set control = false"
            )
            found.append(Problem(f"{asked.read.place}: {where}: losses[{places[number]}]", message, hint))
        if where != CONTROL:
            heard.setdefault(where, told)
        if settings.get("combine"):
            wrong = guides_module.rehearse(
                settings["combine"], teachers, _outputs(asked, model), asked.resolved.data("train")
            )
            found += [Problem(f"{asked.read.place}: {where}: combine", *told) for told in wrong]
    return found


def _outputs(asked: Asked, model: str) -> list[int]:
    """The shape of what a fresh `model` answers to one sample."""
    import torch

    from edgekd.models import saved

    forward = asked.task.forward or (lambda module, inputs: module(inputs))
    with torch.no_grad():
        return list(
            forward(
                saved.create(asked.task, model, 0).eval(), _example(asked.task, asked.resolved.data("train"))
            ).shape[1:]
        )


def _example(task: Task, columns: Any):
    """Two rows of inputs as tensors: what a model is traced with."""
    import numpy as np

    from edgekd.data.columns import take

    return take(columns, np.arange(2, dtype=np.int64) % len(columns)).inputs
