"""The main job: a recipe in, a folder of a run out. Plans, runs what is not finished, measures, chooses, gates,
delivers."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekd import environment
from edgekd.errors import Problem, RunFailed, UsageError, exits, plain
from edgekd.hosts import address
from edgekd.measure.machine import host_of, stands_for
from edgekd.progress import Silent, reporter
from edgekd.records import Host
from edgekd.run import mixed_precision, resolve
from edgekd.run import plan as planning
from edgekd.run import recipe as recipes
from edgekd.run.conclude import conclude
from edgekd.run.evaluate import observe
from edgekd.run.folder import claim, locked, logger, threads_of
from edgekd.run.outcome import Outcome
from edgekd.run.plan import Plan
from edgekd.run.resolve import Resolved
from edgekd.run.steps import run_steps
from edgekd.store.store import Store
from edgekd.targets import HOST


@exits(RunFailed)
def compress(
    recipe: Path | str | Mapping[str, Any] | None = None,
    *,
    targets: Iterable[str] = (),
    out: Path | str | None = None,
    sets: Iterable[str] = (),
    on: Mapping[str, str] = {},  # noqa: B006  (read only)
    time_budget: float | None = None,
    threads: int | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    quiet: bool = True,
) -> Outcome | str:
    """Runs a recipe (None: the built-in one) as `edgekd compress` does. `on` {target: address of its board};
    `time_budget` in seconds; `threads` of the trainings: by default the recipe's, the folder's own where it holds a
    run, else 2; `dry_run` returns the plan as text.

    Raises UsageError with every problem of the input before anything is computed; RunFailed if training or an export
    check fails."""
    from edgekd.run import rehearse

    resolved = resolve.resolve(recipes.read(recipe, sets, targets, threads))
    folder = Path(out) if out is not None else Path("runs") / resolved.task.name
    begun = None if fresh else threads_of(folder)
    if resolved.read.recipe.threads is None and begun is not None:
        resolved = dataclasses.replace(resolved, threads=begun)
    store = Store()
    progress = reporter(quiet)
    try:
        if told := _sharing(resolved, begun):
            progress.say(told)
        with progress.task("check the plan"):
            plan = planning.make(resolved)
        _addressed(on, resolved)
        rehearse.rehearse(resolved, plan, store, folder, progress)
        for target, note in plan.notes.items():
            progress.say(f"{target}: {note}")
        if dry_run:
            return _describe(plan, store)
        with locked(folder), contextlib.ExitStack() as open_boards:
            text = resolve.dump(resolved, folder)
            claim(folder, text, fresh)
            log = store.log = logger(folder / "log.jsonl")
            deadline = None if time_budget is None else time.monotonic() + time_budget
            # before any training: a board that can't be reached is told at once
            boards = _boards(on, resolved, progress, open_boards)
            made, steps = run_steps(plan, resolved, store, progress, log, deadline)
            observed = observe(resolved, plan, made, store, folder, progress, boards)
            wider = mixed_precision.extend(resolved, plan, made, observed, store, folder, progress)
            if len(wider.points) > len(plan.points):
                made, more = run_steps(wider, resolved, store, progress, log, deadline, made)
                plan, steps = wider, [*steps, *more]
                observed = observe(resolved, plan, made, store, folder, progress, boards)
            outcome = conclude(resolved, plan, made, steps, observed, folder, text, store, progress, boards)
            store.trim(keep=set(made))
            return outcome
    finally:
        progress.close()
        store.close()


def _addressed(on: Mapping[str, str], resolved: Resolved) -> None:
    """Raises UsageError where `on` names what is no target of the recipe, or an address is wrong."""
    names, problems = [t.name for t in resolved.targets], []
    for target, where in on.items():
        if target not in names:
            problems.append(
                Problem(
                    f"--on {target}={where}",
                    f"`{target}` is no target of the recipe",
                    f"its targets: {', '.join(names)}",
                )
            )
        try:
            address.parse(where)
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(*problems)


def _boards(
    on: Mapping[str, str], resolved: Resolved, progress: Silent, stack: contextlib.ExitStack
) -> dict[str, Host]:
    """{target: its board}, connected until the stack ends: once for all targets that are one board's cores. What stands
    for `host` is of this machine's kind, whose facts the plan is made by."""
    named = {t.name: t for t in resolved.targets} | {
        t.name: dataclasses.replace(t, name="this machine") for t in resolved.targets if t.name == HOST
    }
    hosts = {where: stack.enter_context(host_of(where, progress)) for where in dict.fromkeys(on.values())}
    return {t: stands_for(hosts[where], named[t])[1] for t, where in on.items()}


def _describe(plan: Plan, store: Store) -> str:
    """What a run would do, step by step, and what is finished."""
    known: dict[str, str] = {}
    lines = []
    for step in plan.steps.values():
        needed = [key for keys in step.inputs.values() for key in keys]
        artifact = store.find(step.key, {k: known[k] for k in needed}) if all(k in known for k in needed) else None
        if artifact is not None:
            known[step.key] = store.digest(artifact)
        lines.append(f"{'finished' if artifact else 'to do   '}  {step.label:<28} {step.stage:<9} {step.key[:12]}")
    todo = sum(line.startswith("to do") for line in lines)
    heard = [f"{where}: {line}" for where, told in plan.losses.items() for line in told]
    heard += [f"{target}: {note}" for target, note in plan.notes.items()]
    return "\n".join([*plain([*lines, *heard]), f"{len(lines)} steps, {todo} to do, {len(plan.points)} candidates"])


def _sharing(resolved: Resolved, begun: int | None) -> str:
    """What is worth knowing of the threads on this machine: that more could be had, or that they share cores; empty
    where nothing is."""
    threads, cores = resolved.threads, environment.cores()
    if threads > cores:
        return f"{threads} threads on {cores} core{'s' * (cores > 1)}: slower, and the same files"
    if threads == cores or resolved.read.recipe.threads is not None:
        return ""
    more = cores // 2 if cores // 2 > threads else cores  # a core's second hardware thread adds little to a training
    return f"using {threads} of {cores} cores" + (
        ", as the run was begun" if begun is not None else f": --threads {more}"
    )
