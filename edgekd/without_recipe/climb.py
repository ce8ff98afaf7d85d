"""Runs recipes that grow by a rung each, into one folder, until the time is over or nothing can move the front. After
each the folder holds a complete result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import components
from edgekd.decisions.quantities import of_outputs
from edgekd.errors import FAILED, Problem, RunFailed, UsageError, gathered
from edgekd.files import unwritable, write_atomic
from edgekd.models import given, saved
from edgekd.report import terminal
from edgekd.run import boards, plan, resolve, target_settings
from edgekd.run import device as placing
from edgekd.run import folder as folders
from edgekd.run.carry_out import carry_out
from edgekd.run.default_losses import FITTING
from edgekd.run.dump import dump
from edgekd.run.plan import Plan
from edgekd.run.steps import describe, run_steps
from edgekd.without_recipe import cost, publish
from edgekd.without_recipe.asked import WEIGHTS, Asked
from edgekd.without_recipe.rungs import Rung, rungs
from edgekd.without_recipe.seen import Seen, bought, missing

if TYPE_CHECKING:
    from edgekd.progress import Silent
    from edgekd.records import Host, Result, Task
    from edgekd.run.outcome import Outcome
    from edgekd.run.resolve import Resolved
    from edgekd.store.store import Store

EACH_KIND = {"int8", "half", "half-labels"}  # stages whose checks stand for those of all


@dataclasses.dataclass(frozen=True)
class Climb:
    """One command. `folder`: of the run; `weights`: the file of the given model's; `deadline`: of `time.monotonic()`,
    None: no end; `threads`, `device`, `on`: as of `edgekd compress`; `before`: the devices of the folder's run."""

    asked: Asked
    task: Task
    folder: Path
    weights: Path
    ladder: tuple[Rung, ...]
    checked: Plan | None
    store: Store
    progress: Silent
    deadline: float | None = None
    threads: int | None = None
    device: str | None = None
    on: Mapping[str, str] = dataclasses.field(default_factory=dict)
    before: tuple[str, ...] = ()

    def table(self, rungs: list[Rung]) -> dict[str, Any]:
        """The recipe with the stages of these rungs."""
        stages = [stage for rung in rungs for stage in rung.stages]
        return {**self.asked.head(self.weights), "stage": stages, "gate": self.asked.gate(self.task.metrics[0].name)}

    def resolved(self, rungs: list[Rung]) -> Resolved:
        found = resolve.resolved(self.table(rungs), threads=self.threads, store=self.store, device=self.device)
        return placing.going_on(found, self.before, self.device is not None)

    def text(self, resolved: Resolved) -> str:
        return dump(resolved, self.folder)

    # ------------------------------------------------------------ the climb

    def begun(self) -> list[Rung]:
        """The rungs that the folder's recipe has, in its order."""
        try:
            stages = folders.toml((self.folder / "recipe.toml").read_text(encoding="utf-8"))["stage"]
            names = [stage["name"] for stage in stages]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        begun = [rung for rung in self.ladder if rung.names <= set(names)]
        return sorted(begun, key=lambda rung: names.index(rung.stages[0]["name"]))

    def run(self, fresh: bool) -> Outcome:
        """The newest outcome, whose text ends with what each rung bought."""
        with folders.locked(self.folder), contextlib.ExitStack() as opened:
            publish.finish(self.folder)
            done = [] if fresh else self.begun()
            first = self.resolved(done or [self.ladder[0]])
            folders.claim(self.folder, self.text(first), fresh)
            boards.check(self.on, first)
            there = boards.connect(self.on, first, self.progress, opened)
            log = folders.logger(self.folder / "log.jsonl")
            costs = cost.Cost(cost.epoch_of(first), len(target_settings.grouped(first.targets)))
            opened.callback(publish.drop, self.folder)
            return _Way(self, costs, there, log).go(done)


class _Way:
    """The climb while it goes on: what was made, bought and left out."""

    def __init__(self, climb: Climb, costs: cost.Cost, there: Mapping[str, Host], log: Any):
        self.climb, self.costs, self.there, self.log = climb, costs, there, log
        self.seen = Seen.of(climb.asked, climb.task.metrics[0])
        self.done: list[Rung] = []
        self.told: list[str] = []  # what each rung bought
        self.late: list[Rung] = []

    def go(self, begun: list[Rung]) -> Outcome:
        ladder = self.climb.ladder
        self.first(ladder[0])
        self.told += before(self.climb.folder) if begun else []
        outcome = self.rung(begun or [ladder[0]])
        if note := self.seen.hardly_better_than_chance(self.climb.task.classes):
            self.climb.progress.say(note)
            self.log(event="note", text=note)
        for rung in (r for r in ladder if r not in self.done):
            if not self.seen.made.issuperset(rung.needs) or not rung.worth(self.seen):
                continue
            if self.left() < self.costs.of(rung):
                self.late.append(rung)
                continue
            try:
                outcome = self.rung([rung])
            except RunFailed as error:
                self.tell(f"{rung.title}: left out: {error}")
        return self.ended(outcome)

    def left(self) -> float:
        deadline = self.climb.deadline
        return float("inf") if deadline is None else deadline - time.monotonic()

    def first(self, rung: Rung) -> None:
        """Makes what needs no training, whatever the time is."""
        climb = self.climb
        resolved = climb.resolved([rung])
        planned = plan.make(resolved, climb.store, climb.checked)
        run_steps(planned, placing.used(resolved, planned), climb.store, climb.progress, self.log)

    def rung(self, new: list[Rung]) -> Outcome:
        """Runs the recipe with these rungs too, and replaces the folder's result."""
        climb, began = self.climb, time.monotonic()
        resolved = climb.resolved([*self.done, *new])
        planned = plan.make(resolved, climb.store, climb.checked)
        resolved = placing.used(resolved, planned)
        text, work = climb.text(resolved), publish.begin(climb.folder)
        write_atomic(work / "recipe.toml", text.encode())
        climb.progress.say(f"{', '.join(rung.title for rung in new)} ...")
        with_deadline = {"deadline": climb.deadline, "boards": self.there}
        outcome = carry_out(resolved, planned, work, text, climb.store, climb.progress, self.log, **with_deadline)
        publish.publish(climb.folder)
        self.done += new
        self.seen.made |= {name for rung in new for name in rung.names}
        seconds, before = time.monotonic() - began, self.seen.result
        for rung in new[-1:]:
            self.costs.seen(rung, outcome.result.steps, seconds)
        self.seen.result = outcome.result
        self.bought(new, before, outcome.result, seconds)
        return dataclasses.replace(outcome, folder=climb.folder, text=terminal.table(outcome.result, climb.folder))

    def bought(self, new: list[Rung], before: Result | None, after: Result, seconds: float) -> None:
        metric = self.climb.task.metrics[0]
        names = {"latency_p50_ms": "ms", metric.name: metric.unit, "file_bytes": "B"}
        if before is None and self.told:  # an earlier command said it
            return
        for target, change in bought(before, after, names):
            event = {"rung": new[-1].title, "target": target, "change": change, "seconds": round(seconds, 1)}
            self.log(event="rung", **event)
            self.tell(_line(event))

    def tell(self, line: str) -> None:
        self.told.append(line)
        self.climb.progress.say(line)

    def ended(self, outcome: Outcome) -> Outcome:
        note = self.seen.hardly_better_than_chance(self.climb.task.classes)
        lines = [*([note] if note else []), "what each step bought:", *(f"  {line}" for line in self.told)]
        following = f"{self.late[0].title}, about {self.costs.of(self.late[0]):.0f} s more" if self.late else ""
        if outcome.exit_code == FAILED:
            lines += missing(outcome.result, self.seen, self.climb.asked.limits)
            lines += [f"the next step that buys most: {following}"] if following else []
        end = f"the time is over; next: {following}" if following else "nothing that is left to try can move the front"
        self.log(event="end", left=[rung.title for rung in self.late])
        return dataclasses.replace(outcome, text="\n".join([outcome.text, "", *lines, end]))


def _line(event: Mapping[str, Any]) -> str:
    return f"{event['rung']} ({event['seconds']:.0f} s), {event['target']}: {event['change']}"


def before(folder: Path) -> list[str]:
    """What rungs bought in earlier commands, by the log of a run's folder since it was begun."""
    found = []
    try:
        for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            found += [_line(event)] if event.get("event") == "rung" else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a log that was cut off, or edited
        return found
    return found


def compress(
    asked: Asked,
    out: Path | str | None,
    *,
    fresh: bool,
    dry_run: bool,
    progress: Silent,
    time_budget: float | None,
    **how: Any,
) -> Outcome | str:
    """What `edgekd compress` does with a model. `how`: threads, device, on."""
    from edgekd.store.store import Store

    store = Store()
    deadline = None if time_budget is None else time.monotonic() + time_budget
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            place = Path(out) if out is not None else None
            with progress.task("check the model and the data"):
                unused = Path(scratch) if dry_run else None
                climb = prepared(asked, place, unused, store, progress, deadline, fresh=fresh, **how)
            return shown(climb) if dry_run else climb.run(fresh)
    finally:
        progress.close()
        store.close()


def prepared(
    asked: Asked,
    out: Path | None,
    scratch: Path | None,
    store: Store,
    progress: Silent,
    deadline: float | None,
    *,
    fresh: bool = False,
    **how: Any,
) -> Climb:
    """Checks all that is asked, and writes the model's weights into the folder of the run (or `scratch`, where nothing
    is to be run). Raises UsageError with every problem, before anything is trained; then no weights are left."""
    from edgekd import targets

    components.look_beside(Path.cwd())
    problems = asked.problems()
    for name in asked.targets:
        gathered(lambda name=name: targets.load(name), problems, "--target")  # type: ignore[misc]
    task = None
    if not any(p.place in (asked.model, asked.data) for p in problems):
        task = gathered(lambda: resolve.find_task(asked.head(Path())["task"], Path.cwd()), problems)
    if task is not None and task.metrics:
        named = {m.name: m.unit for m in task.metrics} | of_outputs(task.heads)
        problems += asked.wrong_rules(task.metrics[0].name, named)
    if task is None or problems:
        raise UsageError(*problems)
    folder = out if out is not None else Path("runs") / task.name
    if wrong := unwritable(folder, "choose another folder with --out"):
        raise UsageError(*wrong)
    weights = asked.file or (scratch or folder) / WEIGHTS
    new = asked.file is None and not weights.exists()
    if asked.file is None:
        tensors = given.weights(asked.name)
        if not new and not _ours(weights, asked, tensors, fresh):
            text = "holds the weights of something else, which would be replaced"
            raise UsageError(Problem(str(weights), text, "move them, or choose another folder with --out"))
        weights.parent.mkdir(parents=True, exist_ok=True)
        saved.write_tensors(weights, tensors)
    if how.get("threads") is None and not fresh:
        how = {**how, "threads": folders.threads_of(folder)}  # those that the run was begun with
    before = () if fresh else folders.devices_of(folder)
    climb = Climb(asked, task, folder, weights, (), None, store, progress, deadline, **how, before=before)
    try:
        ladder, checked = _ladder(climb)
    except BaseException:
        if new:
            weights.unlink(missing_ok=True)
        raise
    return dataclasses.replace(climb, ladder=tuple(ladder), checked=checked)


def _ours(weights: Path, asked: Asked, tensors: Mapping[str, Any], fresh: bool) -> bool:
    """Whether a file of weights is there for the run of this model, or of one that is to be replaced."""
    try:
        begun = folders.toml((weights.parent / "recipe.toml").read_text(encoding="utf-8"))["task"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        begun = None
    if begun is not None:
        return fresh or bool(begun == asked.name)
    try:
        return given.same(saved.read_tensors(weights), tensors)
    except UsageError:
        return False


def _ladder(climb: Climb) -> tuple[list[Rung], Plan]:
    """(the rungs that can be planned, a plan with a rung of each kind, which was checked). Raises UsageError with every
    other problem of the recipe."""
    task = climb.task
    samples = len(task.data("train"))
    kind = task.output.kind if task.output is not None else "classes" if task.classes else ""
    taught = bool(task.heads) or kind in ("classes", "yes_no", *FITTING)
    on_labels = () if task.heads else FITTING[kind][0] if kind in FITTING else [{"use": "cross_entropy"}]
    labels = [t if isinstance(t, dict) else t.table() for t in on_labels] if taught else []
    ladder = rungs(samples, taught, labels)
    kinds = [rung for rung in ladder if rung.names & EACH_KIND]
    found = climb.resolved(kinds)  # all problems of the task, the targets and the budgets
    try:
        planned = plan.make(found, climb.store)
        placing.check(placing.used(found, planned), planned, climb.store)
        return ladder, planned
    except UsageError as error:
        if not all("(half" in p.place for p in error.problems):
            raise
        for problem in error.problems:  # nothing can be pruned: number formats are what is left
            climb.progress.say(f"nothing is pruned: {problem}")
    ladder = [rung for rung in ladder if all(name.startswith("int8") for name in rung.names)]
    return ladder, plan.make(climb.resolved(ladder), climb.store)


def shown(climb: Climb) -> str:
    """The whole recipe, and its steps: what a dry run shows."""
    resolved = climb.resolved(list(climb.ladder))
    return f"{dump(resolved)}\n{describe(plan.make(resolved, climb.store, climb.checked), climb.store)}"
