"""The steps of a plan: each is read from the store if it is finished, else made."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import environment, signatures
from edgekd.errors import RunFailed, UsageError, exits, plain
from edgekd.files import write_atomic
from edgekd.models.device import CPU
from edgekd.progress import Silent
from edgekd.records import Artifact, Made, Run
from edgekd.run import processes
from edgekd.run.device import mixed, title
from edgekd.run.graph import trains
from edgekd.run.plan import Plan, Step
from edgekd.run.resolve import Resolved
from edgekd.store.store import Store


def run_steps(
    plan: Plan,
    resolved: Resolved,
    store: Store,
    progress: Silent,
    log: Any,
    deadline: float | None = None,
    before: Mapping[str, Artifact] | None = None,
) -> tuple[dict[str, Artifact], list[dict[str, Any]]]:
    """Makes every step of the plan that the time allows, unless the store has it. ({key: artifact}, a record of each
    step); `before`: artifacts made before, which have no record."""
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
                except UsageError as error:
                    # a problem with a file of weights is a usage error; one that only training shows is a failed run
                    kind = UsageError if step.stage in ("load", "given") else RunFailed
                    raise kind(*(p.within(step.label) for p in error.problems)) from error
        made[step.key] = artifact
        if "reached" in artifact.facts and not reused:
            progress.say(
                f"  {step.label}: {artifact.facts['reached']:.4g} of the MACs kept, {artifact.facts['asked']} requested"
            )
        seconds = artifact.facts.get("seconds", 0.0) if reused else time.monotonic() - begun
        cost = {"seconds": round(seconds, 3), "peak_rss_bytes": artifact.facts.get("peak_rss_bytes")}
        elsewhere = [kind for kind in artifact.facts.get("cpus", ()) if kind != here]
        cost |= {"cpus": elsewhere} if elsewhere else {}
        cost |= {} if getattr(step.part, "cpu_only", False) else {"device": artifact.facts.get("device", CPU)}
        cost |= {"origin": artifact.facts["origin"]} if artifact.facts.get("origin") else {}
        steps.append({"key": step.key, "step": step.label, "stage": step.stage, "reused": reused, **cost})
        log(event="step", **steps[-1])
    others = list(dict.fromkeys(kind for s in steps for kind in s.get("cpus", ())))
    if others:
        count = sum("cpus" in s for s in steps)
        progress.say(
            f"{count} of {len(plan.steps)} steps were made on {' and '.join(others)}: made here, their bytes may differ"
        )
    if several := mixed(steps):
        log(event="mixed devices", text=several)
        progress.say(several)
    found = sum(s["reused"] for s in steps)
    if found:
        progress.say(f"{found} of {len(plan.steps)} steps were already finished")
    if len(made) < len(plan.steps):
        progress.say(
            f"the time budget ended with {len(plan.steps) - len(made)} of {len(plan.steps)} steps left; run the same "
            "command to resume"
        )
    return made, steps


def finished(plan: Plan, store: Store) -> dict[str, Artifact]:
    """{key: artifact} of the steps that are finished in the store, with all their inputs."""
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
        device = processes.device_of(resolved.device) if resolved.processes > 1 else resolved.device
        run = Run(
            resolved.task,
            step.seed,
            resolved.threads,
            folder,
            scratch,
            resolved.data,
            advance,
            lambda **event: log(step=step.label, **event),
            device if step.device != CPU else CPU,
        )
        source = made[step.source] if step.source else None
        threads, group = environment.threads(resolved.threads), processes.together(step, made, resolved, scratch)
        with threads, exits(RunFailed), group:
            product = step.part(source, run, teacher=tuple(made[key] for key in step.teacher))
        cost = {"seconds": round(time.monotonic() - begun, 3), "peak_rss_bytes": environment.peak_rss(), "cpus": cpus}
        cost["device"] = step.device
        cost |= {"processes": resolved.processes} if resolved.processes > 1 and trains(step.part) else {}
        cost |= {"device_name": title(run.device)} if step.device != CPU else {}
        return Made(product.form, {**product.facts, **cost})

    try:
        return store.make(
            step.key,
            stage=step.stage,
            settings=signatures.plain(step.part),
            seed=step.seed,
            inputs=step.inputs,
            parents=dict(parents),
            build=build,
            on_wait=lambda: log(event="waiting", step=step.label),
        )
    except RunFailed as error:
        raise RunFailed(*(p.within(step.label) for p in error.problems)) from error


def _cpus(path: Path) -> list[str]:
    """The kinds of CPU that worked on a step, with this machine's; kept beside its checkpoints."""
    try:
        found = [str(kind) for kind in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        found = []
    found = list(dict.fromkeys([*found, environment.kind(environment.describe())]))
    write_atomic(path, json.dumps(found).encode())
    return found


def describe(plan: Plan, store: Store) -> str:
    """The steps of a run as text, each finished or to do."""
    known: dict[str, str] = {}
    lines = []
    for step in plan.steps.values():
        needed = [key for keys in step.inputs.values() for key in keys]
        artifact = store.find(step.key, {k: known[k] for k in needed}) if all(k in known for k in needed) else None
        if artifact is not None:
            known[step.key] = store.digest(artifact)
        lines.append(f"{'finished' if artifact else 'to do   '}  {step.label:<28} {step.stage:<9} {step.key[:12]}")
    todo = sum(line.startswith("to do") for line in lines)
    notes = [f"{where}: {line}" for where, told in plan.losses.items() for line in told]
    notes += [f"{target}: {note}" for target, note in plan.notes.items()]
    return "\n".join([*plain([*lines, *notes]), f"{len(lines)} steps, {todo} to do, {len(plan.points)} candidates"])
