"""A resolved recipe as a graph of steps with keys, known before anything runs. Targets that agree on what they want
share the work."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekd import components, signatures
from edgekd.errors import UsageError, exits
from edgekd.records import Task
from edgekd.run import checks
from edgekd.run.interpret import FORMS, Asked
from edgekd.run.recipe import Read, at
from edgekd.run.resolve import Resolved
from edgekd.run.target_settings import Wants
from edgekd.store import fingerprint

GUIDED = ("combine", "teacher_precision", "balance", "ema")  # settings that a control without teachers has no use for


@dataclass(frozen=True)
class Step:
    """A stage with its settings, its inputs by role, and a seed. `part` is the stage, ready to be called."""

    key: str
    stage: str
    label: str
    part: Any
    settings: Mapping[str, Any]
    seed: int
    source: str | None
    teacher: tuple[str, ...]

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        roles = {"source": (self.source,) if self.source else (), "teacher": self.teacher}
        return {role: keys for role, keys in roles.items() if keys}


@dataclass(frozen=True)
class Point:
    """A candidate to be: which step makes its model, which step exports it, and the targets that it competes for.
    `reference` is `teacher` or `alone` for those; `beside`: the point that shows what the last stage brought, the
    student that learned from labels alone where there is one of the same widths, else the one that a further
    distillation began from."""

    id: str
    point: str
    seed: int
    parents: tuple[str, ...]
    stages: tuple[str, ...]
    step: str
    export: str
    targets: tuple[str, ...]
    reference: str | None = None
    beside: str | None = None


@dataclass
class Plan:
    """`steps` by key, in an order that can be run; `points` in the order of the table; `losses`: what each stage's
    terms look at; `notes` {target: what is to be said of the recipe's settings there}."""

    steps: dict[str, Step] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    losses: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@exits(UsageError)
def make(resolved: Resolved) -> Plan:
    """The plan of a recipe. Raises UsageError for what can't work, before any training."""
    planner = _Planner(resolved)
    planner.plan.losses, planner.plan.notes = checks.check(planner.asked)
    planner.run()
    return planner.plan


def extended(resolved: Resolved, plan: Plan, point: Point, changes: Mapping[str, Any], suffix: str) -> Plan:
    """`plan` and one point more: `point`'s last stage with other settings, for the same targets."""
    planner, step = _Planner(resolved), plan.steps[point.step]
    planner.plan = Plan(dict(plan.steps), list(plan.points), plan.losses, plan.notes)
    base, seeds = f"{point.point}{suffix}", resolved.read.recipe.sweep.get("seed", [point.seed])
    label = _named(base, point.seed, seeds)
    key = planner.step(
        step.stage,
        vars(signatures.changed(step.part, changes)),
        label,
        step.seed,
        source=step.source,
        teacher=step.teacher,
    )
    planner.point(label, base, point.seed, point.parents, point.stages, key, point.targets)
    return planner.plan


def again(plan: Plan, resolved: Resolved, point: Point, settings: Mapping[str, Any]) -> tuple[Step, Step]:
    """(step, its export) that make a point with other `settings` of its last stage: those that a recipe with these
    settings would plan."""
    old, planner = plan.steps[point.step], _Planner(resolved)
    key = planner.step(
        old.stage,
        vars(signatures.changed(old.part, settings)),
        old.label,
        old.seed,
        source=old.source,
        teacher=old.teacher,
    )
    export = planner.step("export", {}, f"export {point.id}", resolved.read.recipe.seed, source=key)
    return planner.plan.steps[key], planner.plan.steps[export]


class _Planner:
    """The one traversal that fills a Plan; the state is the plan itself."""

    def __init__(self, resolved: Resolved):
        self.resolved, self.data, self.asked, self.plan = resolved, resolved.data, Asked(resolved), Plan()
        self.read: Read = resolved.read
        self.task: Task = resolved.task
        self.made: dict[str, str] = {}  # name of a model table -> key

    def run(self) -> None:
        recipe, every = self.read.recipe, tuple(t.name for t in self.resolved.targets)
        seeds = recipe.sweep.get("seed", [recipe.seed])
        for name, table in self.read.models.items():
            if "weights" in table:  # first: what is wrong with their values is told before anything is trained
                self.model(name)
        teacher = self.model("teacher")
        self.point("teacher", "teacher", recipe.seed, (), ("teacher",), teacher, every, reference="teacher")
        first = self.read.stages[0]
        alone: dict[int, str] = {}
        for seed in seeds:
            if self.asked.controlled:
                shared = {f.name for f in dataclasses.fields(components.find("stages", "train"))}
                settings = {k: v for k, v in first.settings.items() if k in shared and k not in GUIDED} | {
                    "losses": self.asked.control(first)
                }
                start = self.model("student") if "student" in recipe.model else None
                alone[seed] = self.step("train", settings, "alone", seed, source=start)
                self.point(
                    _named("alone", seed, seeds), "alone", seed, (), ("alone",), alone[seed], every, reference="alone"
                )
        groups = self.asked.wants()
        swept = {k: v for k, v in recipe.sweep.items() if k != "seed"}
        for (want, targets), seed in itertools.product(self.asked.served().items(), seeds):
            for values in itertools.product(*swept.values()):
                self.line(want, targets, seed, dict(zip(swept, values, strict=True)), groups, seeds)
        for (want, targets), (seed, source) in itertools.product(self.asked.served().items(), alone.items()):
            self.control_line(want, targets, seed, source, groups, seeds)

    def control_line(
        self, want: Wants, targets: tuple[str, ...], seed: int, source: str, groups: Mapping, seeds: list
    ) -> None:
        """The control in the form that the line ends in, so that it competes with it: quantized by the last stage, with
        labels only. Of a sweep over that stage's settings it has those of the recipe."""
        last = self.read.stages[-1]
        if last.use not in FORMS:
            return
        settings = want.into(last)
        if self.asked.trains(last):
            settings = {k: v for k, v in settings.items() if k not in GUIDED} | {"losses": self.asked.control(last)}
        base = f"alone-{last.name}{self.asked.wanted(last, want, groups)}"
        label = _named(base, seed, seeds)
        key = self.step(last.use, settings, label, seed, source=source)
        self.point(label, base, seed, (_named("alone", seed, seeds),), ("alone", last.name), key, targets)

    def line(
        self, want: Wants, targets: tuple[str, ...], seed: int, swept: dict[str, Any], groups: Mapping, seeds: list
    ) -> None:
        """The student's line for one point of the sweep: each stage's product is a candidate."""
        source = self.model("student") if "student" in self.read.recipe.model else None
        parents, stages, suffix, known = ("teacher",), (), "", {"teacher": self.model("teacher")}
        whole = True  # so far no stage may have changed the widths: the control's stay as they are
        if source is not None:  # what the stages start from competes too
            self.point("student", "student", self.read.recipe.seed, parents, ("student",), source, targets)
            parents = ("student",)
        for stage in self.read.stages:
            own = {k.partition(".")[2]: v for k, v in swept.items() if k.partition(".")[0] == stage.name}
            stage = at(stage, own)
            settings = want.into(stage)
            suffix += "".join(f"-{_short(v)}" for v in own.values())
            suffix += self.asked.wanted(stage, want, groups)
            base = f"{stage.name}{suffix}"
            label = _named(base, seed, seeds)
            settings, taught = self.taught(stage.use, stage.teacher, settings, known)
            source = self.step(stage.use, settings, label, seed, source=source, teacher=taught)
            stages += (stage.name,)
            known[stage.name] = source
            beside = parents[0] if stage.use == "distill" and len(stages) > 1 else None
            if self.asked.controlled and len(stages) == 1:
                beside = _named("alone", seed, seeds)
            elif self.asked.controlled and stage.use in FORMS and whole:
                beside = _named(f"alone-{stage.name}{self.asked.wanted(stage, want, groups)}", seed, seeds)
            self.point(label, base, seed, parents, stages, source, targets, beside=beside)
            parents, whole = (label,), whole and _whole(stage.use, settings)

    def taught(
        self, use: str, teachers: tuple[str, ...], settings: Mapping[str, Any], known: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(settings with the teachers' names, their keys): of each teacher its cached answers, or the model itself
        where the stage says `cache = false` or a term looks inside it; then of each its answers to the validation
        split, if a schedule follows the agreement."""
        from edgekd.training.loop import views_of
        from edgekd.training.terms import tapped, terms

        if not teachers:
            return dict(settings), ()
        losses = terms(settings["losses"])
        views, precision = (
            views_of(components.find("stages", use)(**settings), self.task),
            settings["teacher_precision"],
        )
        keys, judged, known = [], [], known or {}
        for name in teachers:
            model, table = known.get(name) or self.model(name), self.read.models.get(name, {})
            shown = {key: table[key] for key in ("shows", "top") if table.get("shows", "logits") != "logits"}

            def answers(label: str, wanted: dict[str, Any], model: str = model, name: str = name) -> str:
                wanted["precision"] = precision
                return self.step("answer", wanted, f"answers of {name}{label}", self.read.recipe.seed, teacher=(model,))

            live = not shown and (not settings.get("cache", True) or tapped(losses, name))
            keys.append(model if live else answers("", {"views": views, **shown}))
            if any(term.by == "agreement" for term in losses):
                judged.append(answers(" (validation)", {"split": "validation", "shows": "label"}))
        return {**settings, "teachers": teachers}, (*keys, *judged)

    def model(self, name: str) -> str:
        """The key of a `[model.NAME]`: loaded from its file, trained, or distilled from another."""
        if name in self.made:
            return self.made[name]
        table, seed = self.read.models[name], self.read.recipe.seed
        seed = table["seed"] if table.get("seed") is not None else seed
        if "weights" in table:
            path = self.read.folder / table["weights"]
            settings = {"model": name, "weights": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            self.made[name] = self.step("load", settings, name, seed)
        elif "distill" in table:
            settings, keys = self.taught("distill", table["teacher"], table["distill"])
            self.made[name] = self.step("distill", settings, name, seed, teacher=keys)
        else:
            self.made[name] = self.step("train", table["train"], name, seed)
        return self.made[name]

    def step(
        self,
        use: str,
        settings: Mapping[str, Any],
        label: str,
        seed: int,
        *,
        source: str | None = None,
        teacher: tuple[str, ...] = (),
    ) -> str:
        from edgekd.training.loop import views_of

        part_class = components.find("stages", use)
        settings = dict(settings)
        if "augment_seed" in {f.name for f in dataclasses.fields(part_class)}:
            settings["augment_seed"] = self.read.recipe.seed
        if "epochs" in {f.name for f in dataclasses.fields(part_class)}:
            settings["views"] = views_of(part_class(**settings), self.task)
        part = part_class(**settings)
        filled = signatures.plain(part)
        losses = [components.find("losses", table["use"]) for table in filled.get("losses", ())]
        objects = [part_class, dict(self.task.models), *components.parts_of(part), *losses]
        objects += [f for f in (self.task.collate, self.task.augment, self.task.forward) if f is not None]
        inputs = {"source": [source] if source else [], "teacher": list(teacher)}
        read = {split: self.data(split).digest for split in part.reads} | {
            "version": self.task.version,
            "draws": str(self.task.draws),
        }
        if use == "export":
            read |= {"name": self.task.name, "inputs": repr(self.task.inputs), "outputs": repr(self.task.outputs)}
        if self.task.assets:
            read["assets"] = fingerprint.files(self.task.assets)
        code, libraries = fingerprint.code_and_libraries(*objects)
        key = fingerprint.key(
            stage=use,
            settings={k: v for k, v in filled.items() if k != "weights"},
            inputs=inputs,
            seed=seed,
            code=code,
            data=read,
            threads=self.resolved.threads,
            device="cpu",
            dtype="float32",
            libraries=libraries,
        )  # fmt: skip
        self.plan.steps.setdefault(key, Step(key, use, label, part, filled, seed, source, teacher))
        return key

    def point(
        self,
        id: str,
        point: str,
        seed: int,
        parents: tuple[str, ...],
        stages: tuple[str, ...],
        step: str,
        targets: tuple[str, ...],
        reference: str | None = None,
        beside: str | None = None,
    ) -> None:
        """Adds a candidate and its export; one that is there already (another target's line shares it) gains the
        targets."""
        for i, other in enumerate(self.plan.points):
            if other.step == step:
                self.plan.points[i] = dataclasses.replace(
                    other, targets=tuple(dict.fromkeys((*other.targets, *targets)))
                )
                return
        export = self.step("export", {}, f"export {id}", self.read.recipe.seed, source=step)
        self.plan.points.append(Point(id, point, seed, parents, stages, step, export, targets, reference, beside))


def _named(base: str, seed: int, seeds: list) -> str:
    return base if len(seeds) == 1 else f"{base}.s{seed}"


def _whole(use: str, settings: Mapping[str, Any]) -> bool:
    """Whether a stage leaves a model's widths as they are; of one's own stages that is not known."""
    return use in ("train", "distill") or (use == "prune" and components.find("stages", use)(**settings).asked[0] == 1)


def _short(value: Any) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in str(value)) or "x"
