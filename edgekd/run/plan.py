"""A resolved recipe as a graph of steps with keys, known before anything runs. Targets with equal settings share the
work."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekd import components, signatures
from edgekd import targets as devices
from edgekd.errors import THEIRS, UsageError, exits
from edgekd.models.device import CPU, kind
from edgekd.records import Deployment, Task
from edgekd.run import checks, passed
from edgekd.run.graph import Plan, Point, Step
from edgekd.run.keys import key_of
from edgekd.run.recipe import Recipe
from edgekd.run.recipe.stages import partners
from edgekd.run.resolve import Resolved
from edgekd.run.variants import FORMS, RecipeView, Variant
from edgekd.store import fingerprint
from edgekd.store.store import Store


@exits(UsageError)
def make(resolved: Resolved, store: Store | None = None, checked: Plan | None = None) -> Plan:
    """The plan of a recipe. Raises UsageError with every problem, before any training. Checks that passed before are
    not repeated if `store` has their results. `checked`: the plan of a recipe with the same losses and settings that
    passed them; they are not repeated."""
    planner = _Planner(resolved, store)
    try:
        planner.run()
    except THEIRS:
        checks.check(planner.view)  # raises UsageError with every problem
        raise
    plan = planner.plan
    if checked is not None:
        plan.losses, plan.notes = checked.losses, checked.notes
        return plan

    def check() -> dict[str, Any]:
        losses, notes = checks.check(planner.view)
        return {"losses": losses, "notes": notes}

    found = passed.kept(store, "plan", lambda: _identity(resolved, plan), check)
    plan.losses, plan.notes = found["losses"], found["notes"]
    return plan


def _identity(resolved: Resolved, plan: Plan) -> tuple[Any, ...]:
    """What decides the result of a plan's checks."""
    steps = [(step.key, step.label) for step in plan.steps.values()]
    lines = [(line.number, line.name) for line in resolved.recipe.stages]
    # models that no stage refers to make no step, and are checked
    models = {name: (signatures.plain(m.stage), _code(m.stage)) for name, m in resolved.recipe.models.items()}
    return resolved.identity(), steps, lines, models, list(resolved.targets)


def _code(stage: Any) -> Any:
    """Of the parts that a stage names."""
    return fingerprint.code_and_libraries(*components.parts_of(stage)) if stage is not None else None


def extended(
    resolved: Resolved, plan: Plan, point: Point, changes: Mapping[str, Any], suffix: str, store: Store | None = None
) -> Plan:
    """`plan` with one more point: `point` with other settings of its last stage, for the same targets."""
    planner = _Planner(resolved, store)
    planner.plan = Plan(dict(plan.steps), list(plan.points), plan.losses, plan.notes)
    without = lambda name: name.removesuffix(f".{point.way}")
    base = f"{without(point.point)}{suffix}"
    label = _named(base, point.seed, resolved.recipe.sweep.seeds)
    key = planner.changed(plan.steps[point.step], changes, label)
    parents = tuple(map(without, point.parents))
    planner.point(label, base, point.seed, parents, point.stages, key, point.targets, only=point.deployment)
    return planner.plan


def again(plan: Plan, resolved: Resolved, point: Point, settings: Mapping[str, Any]) -> tuple[Step, Step]:
    """(step, its export) that make a point with other `settings` of its last stage, as a recipe with these settings
    plans them."""
    old, planner = plan.steps[point.step], _Planner(resolved)
    key = planner.changed(old, settings, old.label)
    export = planner.export(point.deployment, point.id, key)
    return planner.plan.steps[key], planner.plan.steps[export]


class _Planner:
    """Fills a Plan in one traversal of the recipe."""

    def __init__(self, resolved: Resolved, store: Store | None = None):
        self.store, self.digests = store, dict[str, str]()  # of steps that are finished
        self.resolved, self.view, self.plan = resolved, RecipeView(resolved), Plan()
        self.recipe: Recipe = resolved.recipe
        self.task: Task = resolved.task
        self.made: dict[str, str] = {}  # name of a model table -> key
        self.keys: dict[tuple[str, ...], str] = {}  # of steps that several points have
        self.devices = tuple(d for t in resolved.targets for d in devices.each(t))
        self.ways = ways(map(devices.deployment, self.devices))

    def run(self) -> None:
        recipe, every = self.recipe, tuple(t.name for t in self.resolved.targets)
        for name, model in recipe.models.items():
            if model.way in ("weights", "given"):  # first: problems with their values are reported before any training
                self.model(name)
        teacher = self.model("teacher")
        self.point("teacher", "teacher", recipe.seed, (), ("teacher",), teacher, every, reference="teacher")
        alone = {seed: self.alone(seed, every) for seed in recipe.sweep.seeds if self.view.controlled}
        for variant in self.view.variants():
            self.line(variant)
        for control in self.view.controls():
            self.control(control, alone[control.seed])

    def alone(self, seed: int, targets: tuple[str, ...]) -> str:
        """Adds the control, a student trained on labels alone; returns its key."""
        source = self.model("student") if "student" in self.recipe.models else None
        key, id = self.step("train", self.view.alone(), "alone", seed, source=source), self.named("alone", seed)
        self.point(id, "alone", seed, (), ("alone",), key, targets, reference="alone")
        return key

    def control(self, variant: Variant, source: str) -> None:
        """Adds the control in the number format of the last stage."""
        (last,), seed = variant.stages, variant.seed
        label = self.named(last.base, seed)
        key = self.step(last.line.use, last.stage, label, seed, source=source)
        stages = ("alone", last.line.name)
        self.point(label, last.base, seed, (self.named("alone", seed),), stages, key, variant.targets)

    def line(self, variant: Variant) -> None:
        """Adds the student's stages: each makes a candidate."""
        source, seed = self.model("student") if "student" in self.recipe.models else None, variant.seed
        parents, stages, known = ("teacher",), (), {"teacher": self.model("teacher")}
        whole = True  # no stage so far changed the widths: the control's widths never change
        if source is not None:  # the stages' starting model competes too
            self.point("student", "student", self.recipe.seed, parents, ("student",), source, variant.targets)
            parents = ("student",)
        for settled in variant.stages:
            line, label = settled.line, self.named(settled.base, seed)
            stage, taught = self.taught(settled.stage, line.teacher, known)
            source = known[line.name] = self.step(line.use, stage, label, seed, source=source, teacher=taught)
            stages += (line.name,)
            beside = parents[0] if line.use == "distill" and len(stages) > 1 else None
            if self.view.controlled and len(stages) == 1:
                beside = self.named("alone", seed)
            elif self.view.controlled and line.use in FORMS and whole:
                beside = self.named(settled.control, seed)
            self.point(label, settled.base, seed, parents, stages, source, variant.targets, beside=beside)
            parents, whole = (label,), whole and _whole(line.use, stage)

    def taught(
        self, stage: Any, teachers: tuple[str, ...], known: Mapping[str, str] | None = None
    ) -> tuple[Any, tuple[str, ...]]:
        """(the stage with the teachers' names, keys): of each teacher its cached answers, or the model itself if the
        stage has `cache = false` or a term taps its layers; the models that learn together with the student and
        have a table; then the teachers' answers to the validation split, if a schedule follows the agreement."""
        from edgekd.stages.answer import Answer
        from edgekd.training.learn import views_of
        from edgekd.training.terms import tapped

        begun = [name for name in partners(stage) if name in self.recipe.models and self.recipe.models[name].given]
        if not teachers and not begun:
            return stage, ()
        keys, judged, views = [], [], views_of(stage, self.task)
        for name in teachers:
            model, table = (known or {}).get(name) or self.model(name), self.recipe.models.get(name)
            shown = {} if table is None or table.shows == "logits" else {"shows": table.shows, "top": table.top}

            def answers(label: str, model: str = model, name: str = name, **wanted: Any) -> str:
                given = Answer(precision=stage.teacher_precision, **wanted)
                return self.step("answer", given, f"answers of {name}{label}", self.recipe.seed, teacher=(model,))

            live = not shown and (not getattr(stage, "cache", True) or tapped(stage.losses, name))
            keys.append(model if live else answers("", views=views, **shown))
            if any(term.by == "agreement" for term in stage.losses):
                judged.append(answers(" (validation)", split="validation", shows="label"))
        keys += map(self.model, begun)
        return dataclasses.replace(stage, teachers=(*teachers, *begun)), (*keys, *judged)

    def model(self, name: str) -> str:
        """The key of a `[model.NAME]`: loaded from its file, trained, or distilled from another."""
        if name not in self.made:
            model = self.recipe.models[name]
            seed = model.seed if model.seed is not None else self.recipe.seed
            if model.way == "given":
                self.made[name] = self.step("given", components.find("stages", "given")(model=name), name, seed)
            elif model.weights is None:
                stage, keys = self.taught(model.stage, model.teacher)
                self.made[name] = self.step(model.way, stage, name, seed, teacher=keys)
            else:
                path = self.recipe.folder / model.weights
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                stage = components.find("stages", "load")(model=name, weights=str(path), sha256=digest)
                self.made[name] = self.step("load", stage, name, seed)
        return self.made[name]

    def changed(self, step: Step, settings: Mapping[str, Any], label: str) -> str:
        """Adds a copy of a step with other settings, given as in a recipe; returns its key."""
        stage = signatures.changed(step.part, settings)
        return self.step(step.stage, stage, label, step.seed, source=step.source, teacher=step.teacher)

    def export(self, how: Deployment, id: str, source: str) -> str:
        """Adds the step that writes a point's file, one for all runtimes that read its format; returns its key."""
        first = next(h.runtime for h in self.ways if h.format == how.format)
        opened = devices.reference(how.format) or first
        stage = components.find("stages", "export")(format=components.Use("formats", how.format), runtime=opened)
        return self.step("export", stage, f"export {id}", self.recipe.seed, source=source)

    def step(
        self, use: str, stage: Any, label: str, seed: int, *, source: str | None = None, teacher: tuple[str, ...] = ()
    ) -> str:
        """Adds a step, unless it is there; returns its key."""
        from edgekd.training.learn import views_of

        fields = {f.name for f in dataclasses.fields(stage)}
        given = {"augment_seed": self.recipe.seed} if "augment_seed" in fields else {}
        given |= {"views": views_of(stage, self.task)} if {"views", "epochs"} <= fields else {}
        stage = dataclasses.replace(stage, **given) if given else stage
        inputs = {"source": [source] if source else [], "teacher": list(teacher)}
        kinds = list(dict.fromkeys(map(kind, reversed(self.resolved.devices))))[::-1]
        for device in [CPU] if getattr(stage, "cpu_only", False) else kinds:
            known = (use, repr(stage), str(seed), repr(inputs), device)
            if known not in self.keys:
                self.keys[known] = key_of(self.resolved, use, stage, seed, inputs, device)
            key = self.keys[known]
            if device != kinds[-1] and self.finished(key, (*inputs["source"], *teacher)):
                break
        self.plan.steps.setdefault(key, Step(key, use, label, stage, seed, source, teacher, device))
        return key

    def finished(self, key: str, inputs: Sequence[str]) -> bool:
        """Whether the store has a step with these inputs. Asked only of a run that went on on another device."""
        if len(self.resolved.devices) < 2 or self.store is None:
            return False
        for name in (*inputs, key):
            step = self.plan.steps.get(name)
            given = inputs if step is None else [k for keys in step.inputs.values() for k in keys]
            if name not in self.digests and all(k in self.digests for k in given):
                found = self.store.find(name, {k: self.digests[k] for k in given})
                self.digests |= {} if found is None else {name: self.store.digest(found)}
        return key in self.digests

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
        only: Deployment | None = None,
    ) -> None:
        """Adds a candidate and its export for each format and runtime of the targets (or for `only` one). A candidate
        that exists (other targets share it) gets the targets added."""
        for how, way in self.ways.items():
            taking = {d.name for d in self.devices if devices.deployment(d) == how}
            served = tuple(t for t in targets if t in taking)
            if not served or only not in (None, how):
                continue
            at = next((i for i, p in enumerate(self.plan.points) if (p.step, p.deployment) == (step, how)), None)
            if at is not None:
                known = self.plan.points[at]
                every = tuple(dict.fromkeys((*known.targets, *served)))
                self.plan.points[at] = dataclasses.replace(known, targets=every)
                continue
            named = lambda name, way=way: f"{name}.{way}" if way else name
            # a teacher is one point, whatever the format of its files
            kind = point if reference == "teacher" else named(point)
            made = Point(named(id), kind, seed, tuple(map(named, parents)), stages, step, "", served, reference)
            made = dataclasses.replace(made, beside=beside and named(beside), deployment=how, way=way)
            self.plan.points.append(dataclasses.replace(made, export=self.export(how, made.id, step)))

    def named(self, base: str, seed: int) -> str:
        """The name of a point with one of the recipe's seeds."""
        return _named(base, seed, self.recipe.sweep.seeds)


def ways(wanted: Iterable[Deployment]) -> dict[Deployment, str]:
    """{deployment: what tells its candidates' names from those of the others, as short as can be}; "" for one that is
    alone."""
    every = tuple(dict.fromkeys(wanted))
    short = lambda name: name.rpartition(".")[2]
    kinds = [lambda h: "", lambda h: short(h.runtime), lambda h: f"{short(h.runtime)}-{short(h.format)}"]
    kinds += [lambda h: f"{h.runtime}-{h.format}"]
    named = next(names for kind in kinds if len(set(names := [kind(h) for h in every])) == len(every))
    return dict(zip(every, named, strict=True))


def _named(base: str, seed: int, seeds: Sequence[int]) -> str:
    return base if len(seeds) == 1 else f"{base}.s{seed}"


def _whole(use: str, stage: Any) -> bool:
    """Whether a stage is known to keep a model's widths; a user's own stage is not."""
    return use in ("train", "distill") or (use == "prune" and stage.requested[0] == 1)
