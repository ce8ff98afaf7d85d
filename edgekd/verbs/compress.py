"""The verb `compress`: a recipe in, a folder of a run out. Plans, runs what is not finished, measures, chooses, gates,
delivers."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.errors import PASSED, Problem, RunFailed, UsageError, exits
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.run.outcome import Outcome
    from edgekd.run.resolve import Resolved


@click.command()
@click.argument("recipe", metavar="[RECIPE|MODEL]", required=False, type=click.Path())
@_options.of_model()
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="T",
    help="A target's name or file; replaces the recipe's list. Repeat for several.",
)
@click.option("--out", type=click.Path(), help="Folder of the run [default: runs/<task>].")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="Change a setting of the recipe. Repeat for several.",
)
@click.option(
    "--on",
    multiple=True,
    type=_options.Board(),
    metavar="T=ADDRESS",
    help="Where target T's board is: T=ssh://[user@]host[:port].",
)
@click.option(
    "--time-budget",
    type=_options.Duration(),
    help="Begin no further training after this long (90s, 20m, 2h); conclude with what is there.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Threads of the trainings; part of a run's identity [default: 2].",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Train each model in N processes; part of a run's identity [default: the recipe's, else 1].",
)
@click.option(
    "--device",
    metavar="D",
    help="Where models are trained: auto, cpu, cuda, cuda:1 or mps [default: EDGEKD_DEVICE, else cpu].",
)
@click.option(
    "--fresh", is_flag=True, help="Replace the run of another recipe in the folder; finished work stays in the store."
)
@click.option("--dry-run", is_flag=True, help="Check everything and show the steps; compute nothing.")
@_options.quiet
def command(recipe, on, limits, **settings):
    """Distil, prune, quantize, export, profile, choose and gate by RECIPE (TOML); without one, the built-in example.

    With a MODEL, `package.module:name` (its weights in it, or in a file: `package.module:name@FILE.safetensors`), and
    --data, recipes are made, and run in order of cost until the time is over or nothing can do better.

    A recipe names code (tasks, models, losses) and runs it: use recipes that you trust.
    If it was interrupted or killed, run the same command to resume from the last checkpoint.
    """
    from edgekd.run import processes

    if processes.follows():
        return processes.follow()
    outcome = compress(recipe, on=dict(on), limits=dict(limits), **settings)
    _options.show(str(outcome))
    return PASSED if isinstance(outcome, str) else outcome.exit_code


@exits(RunFailed)
def compress(
    recipe: Path | str | Mapping[str, Any] | None = None,
    *,
    targets: Iterable[str] = (),
    out: Path | str | None = None,
    sets: Iterable[str] = (),
    on: Mapping[str, str] = {},
    time_budget: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    processes: int | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    quiet: bool = True,
    data: str | None = None,
    preprocess: Path | str | None = None,
    max_drop: str | None = None,
    limits: Mapping[str, str] = {},
) -> Outcome | str:
    """Runs a recipe (None: the built-in one) as `edgekd compress` does. `on` {target: address of its board};
    `time_budget` in seconds; `threads` of the trainings: by default the recipe's, the folder's own where it holds a
    run, else 2; `device` they run on: by default the folder's own, else the recipe's, else that of EDGEKD_DEVICE, else
    the CPU; `processes` that train each model together: by default the recipe's; `dry_run` returns the plan as text.

    With `data`, `recipe` is a model, as the command line takes it; `preprocess`: how a folder's images are read;
    `max_drop` and `limits` {measurement: its greatest
    value} are what is asked of its students.

    Raises UsageError with every problem of the input before anything is computed; RunFailed if training or an export
    check fails; EnvironmentUnfit where the device is not on this machine."""
    from edgekd.progress import reporter
    from edgekd.run import boards, resolve, sanity_check, steps
    from edgekd.run import device as placing
    from edgekd.run import folder as folders
    from edgekd.run import plan as planning
    from edgekd.run import processes as group
    from edgekd.run.carry_out import carry_out
    from edgekd.run.dump import dump
    from edgekd.store.store import Store
    from edgekd.without_recipe.asked import Asked, is_model, unfit

    if data is not None or preprocess is not None or max_drop is not None or limits or is_model(recipe):
        from edgekd.without_recipe import climb

        wrong = [*unfit(recipe, data, sets)]
        if (processes or group.launched() or 1) > 1:
            wrong.append(Problem("--processes", "is for runs of a recipe", "leave it out: models are trained in one"))
        if wrong:
            raise UsageError(*wrong)
        how_read = None if preprocess is None else str(preprocess)
        asked = Asked(str(recipe), str(data), tuple(targets), max_drop, limits, how_read)
        how = {"time_budget": time_budget, "threads": threads, "device": device, "on": on}
        return climb.compress(asked, out, fresh=fresh, dry_run=dry_run, progress=reporter(quiet), **how)
    store = Store()
    resolved = resolve.resolved(recipe, sets, targets, threads, store, device, processes or group.launched())
    folder = Path(out) if out is not None else Path("runs") / resolved.task.name
    begun = None if fresh else folders.threads_of(folder)
    if resolved.recipe.threads is None and begun is not None:
        resolved = dataclasses.replace(resolved, threads=begun)
    before = () if fresh else folders.devices_of(folder)
    resolved = placing.going_on(resolved, before, device is not None)
    progress = reporter(quiet)
    try:
        if told := _sharing(resolved, begun):
            progress.say(told)
        if told := placing.told(resolved, before):
            progress.say(told)
        with progress.task("check the plan"):
            plan = planning.make(resolved, store)
        resolved = placing.used(resolved, plan)
        placing.check(resolved, plan, store)
        group.check(resolved)
        boards.check(on, resolved)
        sanity_check.check(resolved, plan, store, folder, progress)
        for target, note in plan.notes.items():
            progress.say(f"{target}: {note}")
        if dry_run:
            return steps.describe(plan, store)
        with folders.locked(folder), contextlib.ExitStack() as open_boards:
            text = dump(resolved, folder)
            folders.claim(folder, text, fresh)
            log = folders.logger(folder / "log.jsonl")
            deadline = None if time_budget is None else time.monotonic() + time_budget
            # before any training: a board that can't be reached is told at once
            there = boards.connect(on, resolved, progress, open_boards)
            return carry_out(resolved, plan, folder, text, store, progress, log, deadline=deadline, boards=there)
    finally:
        group.close()
        progress.close()
        store.close()


def _sharing(resolved: Resolved, begun: int | None) -> str:
    """What is worth knowing of the threads on this machine: that more could be had, or that they share cores; empty
    where nothing is."""
    from edgekd import environment

    threads, cores = resolved.threads, environment.cores()
    if threads > cores:
        return f"{threads} threads on {cores} core{'s' * (cores > 1)}: slower, and the same files"
    if threads == cores or resolved.recipe.threads is not None:
        return ""
    more = cores // 2 if cores // 2 > threads else cores  # a core's second hardware thread adds little to a training
    return f"using {threads} of {cores} cores" + (
        ", as the run was begun" if begun is not None else f": --threads {more}"
    )
