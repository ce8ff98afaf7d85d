"""The main job: a recipe in, a folder of a run out. Plans, runs what is not finished, measures, chooses, gates,
delivers."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd import environment
from edgekd.errors import Problem, RunFailed, UsageError, exits, plain
from edgekd.files import toml, write_atomic
from edgekd.hosts import address
from edgekd.measure.machine import host_of, stands_for
from edgekd.progress import Silent, reporter
from edgekd.records import Artifact, Host, Made, Run
from edgekd.run import mixed_precision, resolve
from edgekd.run import plan as planning
from edgekd.run import recipe as recipes
from edgekd.run.conclude import Outcome, conclude
from edgekd.run.evaluate import observe
from edgekd.run.plan import Plan, Step
from edgekd.run.resolve import Resolved
from edgekd.store.store import Store
from edgekd.targets import HOST

OURS = (
    "recipe.toml",
    "result.json",
    "report.html",
    "report.md",
    "log.jsonl",
    "models",
    "predictions",
    "bundles",
    "profile",
    "fixed",
)


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
    begun = None if fresh else _threads(folder)
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
        with _locked(folder), contextlib.ExitStack() as open_boards:
            text = resolve.dump(resolved, folder)
            _claim(folder, text, fresh)
            log = store.log = _logger(folder / "log.jsonl")
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


def run_steps(
    plan: Plan,
    resolved: Resolved,
    store: Store,
    progress: Silent,
    log: Any,
    deadline: float | None = None,
    before: Mapping[str, Artifact] | None = None,
) -> tuple[dict[str, Artifact], list[dict[str, Any]]]:
    """Every step of the plan that the time allows: found finished in the store, or made. ({key: artifact}, what was
    done); what was made `before` is in the former only."""
    made: dict[str, Artifact] = dict(before or {})
    steps: list[dict[str, Any]] = []
    here = environment.kind(environment.describe())
    for number, step in enumerate(plan.steps.values(), 1):
        if step.key in made:
            continue
        needed = [key for keys in step.inputs.values() for key in keys]
        if any(key not in made for key in needed):
            continue
        parents = {key: store.digest(made[key]) for key in needed}
        artifact = store.find(step.key, parents)
        reused, begun = artifact is not None, time.monotonic()
        if artifact is None:
            if deadline is not None and time.monotonic() > deadline and step.stage != "export":
                log(event="out of time", step=step.label)
                continue
            with progress.task(f"[{number}/{len(plan.steps)}] {step.label}") as advance:
                try:
                    artifact = make(step, made, parents, resolved, store, advance, log)
                except UsageError as error:  # of a brought file it stays one; what only a training shows is told as all that breaks there
                    kind = UsageError if step.stage == "load" else RunFailed
                    raise kind(
                        *(dataclasses.replace(p, place=f"{step.label}: {p.place}".rstrip(": ")) for p in error.problems)
                    ) from error
        made[step.key] = artifact
        if "reached" in artifact.facts and not reused:
            progress.say(
                f"  {step.label}: {artifact.facts['reached']:.4g} of the MACs kept, {artifact.facts['asked']} asked"
            )
        seconds = artifact.facts.get("seconds", 0.0) if reused else time.monotonic() - begun
        cost = {"seconds": round(seconds, 3), "peak_rss_bytes": artifact.facts.get("peak_rss_bytes")}
        elsewhere = [kind for kind in artifact.facts.get("cpus", ()) if kind != here]
        cost |= {"cpus": elsewhere} if elsewhere else {}
        steps.append({"key": step.key, "step": step.label, "stage": step.stage, "reused": reused, **cost})
        log(event="step", **steps[-1])
    others = list(dict.fromkeys(kind for s in steps for kind in s.get("cpus", ())))
    if others:
        count = sum("cpus" in s for s in steps)
        progress.say(
            f"{count} of {len(plan.steps)} steps were made on {' and '.join(others)}: made here, their bytes may differ"
        )
    found = sum(s["reused"] for s in steps)
    if found:
        progress.say(f"{found} of {len(plan.steps)} steps were finished already")
    if len(made) < len(plan.steps):
        progress.say(
            f"the time budget left {len(plan.steps) - len(made)} of {len(plan.steps)} steps undone; the same command goes on"
        )
    return made, steps


def finished(plan: Plan, store: Store) -> dict[str, Artifact]:
    """{key: artifact} of the steps that are finished in the store, with all that they were made from."""
    made: dict[str, Artifact] = {}
    for step in plan.steps.values():
        needed = [key for keys in step.inputs.values() for key in keys]
        if all(key in made for key in needed):
            artifact = store.find(step.key, {key: store.digest(made[key]) for key in needed})
            made |= {step.key: artifact} if artifact is not None else {}
    return made


def make(
    step: Step,
    made: Mapping[str, Artifact],
    parents: Mapping[str, str],
    resolved: Resolved,
    store: Store,
    advance: Any,
    log: Any,
) -> Artifact:
    """Runs one step into the store."""

    def build(folder: Path, scratch: Path) -> Made:
        begun, cpus = time.monotonic(), _cpus(scratch.parent / "cpus.json")
        environment.forget_peak()
        run = Run(
            resolved.task,
            step.seed,
            resolved.threads,
            folder,
            scratch,
            resolved.data,
            advance,
            lambda **event: log(step=step.label, **event),
        )
        source = made[step.source] if step.source else None
        with environment.threads(resolved.threads), exits(RunFailed):
            product = step.part(source, run, teacher=tuple(made[key] for key in step.teacher))
        cost = {"seconds": round(time.monotonic() - begun, 3), "peak_rss_bytes": environment.peak_rss(), "cpus": cpus}
        return Made(product.form, {**product.facts, **cost})

    try:
        return store.make(
            step.key,
            stage=step.stage,
            settings=step.settings,
            seed=step.seed,
            inputs=step.inputs,
            parents=dict(parents),
            build=build,
            on_wait=lambda: log(event="waiting", step=step.label),
        )
    except RunFailed as error:
        raise RunFailed(
            *(Problem(f"{step.label}: {p.place}".rstrip(": "), p.message, p.hint) for p in error.problems)
        ) from error


def _cpus(path: Path) -> list[str]:
    """The kinds of CPU that have worked on a step, this one with them; kept beside its checkpoints."""
    try:
        found = [str(kind) for kind in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        found = []
    found = list(dict.fromkeys([*found, environment.kind(environment.describe())]))
    write_atomic(path, json.dumps(found).encode())
    return found


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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time in a folder; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(
            Problem(str(folder), f"can't be written: {error.strerror}", "choose another folder with --out")
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                Problem(
                    str(folder), "another run is at work in this folder", "wait for it, or choose another with --out"
                )
            ) from None
        yield
    finally:
        os.close(descriptor)


def _claim(folder: Path, text: str, fresh: bool) -> None:
    """Makes the folder this recipe's. Another recipe's run is only replaced with `fresh`, and only what a run
    writes."""
    path = folder / "recipe.toml"
    if fresh:
        for name in OURS:
            target = folder / name
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
    elif path.is_file() and path.read_text(encoding="utf-8") != text:
        hint, begun = "--fresh replaces it (finished work stays in the store), --out NAME keeps both", _threads(folder)
        if begun is not None and toml(text)["threads"] != begun:
            hint = f"it was begun with {begun} thread{'s' * (begun > 1)}: --threads {begun} goes on with it; {hint}"
        raise UsageError(Problem(str(folder), "holds the run of another recipe", hint))
    elif not path.is_file():
        foreign = [p.name for p in folder.iterdir() if p.name in OURS]
        if foreign:
            raise UsageError(
                Problem(
                    str(folder),
                    f"holds {', '.join(foreign)} but no recipe.toml: not a run",
                    "choose another folder with --out",
                )
            )
    write_atomic(path, text.encode())


def _threads(folder: Path) -> int | None:
    """The number of threads that the run in a folder was begun with; None where there is no run."""
    try:
        found = toml((folder / "recipe.toml").read_text(encoding="utf-8")).get("threads")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, int) and 1 <= found <= recipes.MOST_THREADS else None


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


def _logger(path: Path):
    """`log(**event)`: a line of JSON, in one write."""

    def log(**event: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, default=str) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    return log
