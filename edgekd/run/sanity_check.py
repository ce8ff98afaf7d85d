"""A sanity check of a run before any training. Untrained models go through the plan's own stages and the end of the
run, with a few samples and in a temporary folder: every form of model that the recipe makes is exported, counted,
scored, chosen, bundled and written under the names of the run."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekd import components, results, targets
from edgekd.errors import THEIRS, EdgekdError, EnvironmentUnfit, Problem, RunFailed, UsageError
from edgekd.files import unwritable, write_atomic
from edgekd.hosts import local
from edgekd.inputs import each, length
from edgekd.models import saved
from edgekd.models.scores import steps_of
from edgekd.progress import Silent
from edgekd.records import Artifact, Made, Metric, Run, Task
from edgekd.run import conclude, evaluate, keys, passed, steps
from edgekd.run.dump import dump
from edgekd.run.evaluate import Observed
from edgekd.run.plan import Plan, Step
from edgekd.run.resolve import Resolved
from edgekd.store import fingerprint
from edgekd.store.store import Store

if TYPE_CHECKING:
    from edgekd.data.columns import Columns

ROWS = 8  # samples of each split
MOST = 2000  # samples that metrics are checked with: enough to hold both classes, or values that differ
POINTS = 50  # candidates that go through the end of the run; the names of all are checked
SHORT = {  # settings that shorten the stages which change a model's number format
    "quantize": lambda part: {"mode": "ptq", "samples": 2, "after": ()},
    "weight_only": lambda part: {"method": "rtn", "bits": part.tried[0], "samples": 2},
}


@dataclass(frozen=True)
class Fresh:
    """A stage: a model of the task with its initial weights."""

    model: str
    reads: ClassVar = ()

    def __call__(self, source: None, run: Run, *, teacher: tuple = (), data: None = None) -> Made:
        saved.save(run.folder, saved.create(run.task, self.model, run.seed), model=self.model, seed=run.seed)
        return Made("torch")


def check(resolved: Resolved, plan: Plan, store: Store, folder: Path, progress: Silent) -> None:
    """Runs the sanity check, unless the store says that it passed. Raises UsageError with every problem, RunFailed
    where the disk has too little free space for the plan."""
    problems = unwritable(folder, "choose another folder with --out")
    if problems:
        raise UsageError(*problems)
    _room(resolved, plan, store, folder)
    forms = {point.step: _form(plan, point.step) for point in plan.points}
    passed.kept(
        store,
        "sanity-check",
        lambda: _identity(resolved, plan, forms),
        lambda: {"notes": _checked(resolved, plan, forms, progress)},
    )


def _checked(resolved: Resolved, plan: Plan, forms: Mapping[str, tuple], progress: Silent) -> list[str]:
    """Runs the sanity check; returns what is only reported. Raises UsageError with every problem."""
    with (
        progress.task("check export, choice and report with a few samples"),
        tempfile.TemporaryDirectory(prefix="edgekd-") as scratch,
    ):
        place = Path(scratch)
        few = dataclasses.replace(resolved, data=cache(lambda split: _some(resolved.data(split), ROWS)), gate={})
        made, problems, notes = _exported(few, plan, forms, Store(place / "store"))
        problems += _names(resolved, plan, place / "names")
        problems += _front_end(resolved.task, place / "before.onnx")
        if not problems:
            problems = _metrics(resolved, few, plan, made, Store(place / "store"))
        if not problems:
            problems = _tried("the end of the run", _concluded, few, plan, made, Store(place / "store"), place / "run")
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    for note in notes:
        progress.say(note)
    return notes


def _form(plan: Plan, key: str) -> tuple[str, str, Any]:
    """(model, stage, part) that make a candidate: its model of the task, untrained, and the stage that changes its
    number format, shortened."""
    step = root = plan.steps[key]
    while root.source:
        root = plan.steps[root.source]
    cut = SHORT.get(step.stage)
    part = None if cut is None else dataclasses.replace(step.part, **cut(step.part))
    return getattr(root.part, "model", "student"), step.stage if cut else "", part


def _identity(resolved: Resolved, plan: Plan, forms: Mapping[str, tuple]) -> tuple[Any, ...]:
    """What decides the result of a sanity check: candidates with their number formats and deployments, and the code of
    the parts, formats and runtimes that these name."""
    points = [(p.id, p.targets, p.reference, p.deployment, forms[p.step]) for p in plan.points]
    exports = {p.deployment: plan.steps[p.export].part for p in plan.points}
    stages = [*(part for *_, part in forms.values() if part is not None), *exports.values()]
    code = fingerprint.code_and_libraries(*(part for stage in stages for part in components.parts_of(stage)))
    runtimes = [keys.runtime(how.runtime) for how in exports]
    return resolved.identity(), points, code, runtimes, list(resolved.targets), resolved.select


def _exported(
    few: Resolved, plan: Plan, forms: Mapping[str, tuple], store: Store
) -> tuple[dict[str, Artifact], list[Problem], list[str]]:
    """({key of a step or its export: artifact}, problems, notes), for every form of model once."""
    made: dict[str, Artifact] = {}
    problems, notes, done = [], [], {}
    for point in plan.points:
        model, stage, part = form = forms[point.step]
        export = plan.steps[point.export].part
        if repr((form, export)) not in done:
            where = (
                f"task {few.task.name}: models[{model!r}]"
                if part is None
                else f"{few.recipe.place}: {plan.steps[point.step].label}"
            )
            start = Step(f"fresh-{_short(model)}", "fresh", "", Fresh(model), 0, None, ())
            line = [start] if part is None else [start, Step(f"form-{_short(form)}", stage, "", part, 0, start.key, ())]
            line.append(Step(f"export-{_short((form, export))}", "export", "", export, 0, line[-1].key, ()))
            done[repr((form, export))] = [s.key for s in line[-2:]]
            try:
                found = _tried(where, _run, line, made, few, store)
                problems += [dataclasses.replace(p, message=f"can't be exported: {p.message}") for p in found]
            except RunFailed as error:  # the file differs from its model: with untrained weights that is only a note
                if part is None:
                    problems += [dataclasses.replace(p, place=where) for p in error.problems]
                else:
                    notes.append(f"{where}: with untrained weights, {error.problems[0].message}")
                    plain = done.get(repr(((model, "", None), export)), done[repr((form, export))])
                    done[repr((form, export))] = plain
        step, file = done[repr((form, export))]
        if file in made:
            kept = made[step].facts.get("recurrent", ())
            notes += [f"the recurrent layers {', '.join(kept)} stay in float in int8 files"] if kept else []
            made |= {point.step: made[step], point.export: made[file]}
    return made, problems, list(dict.fromkeys(notes))


def _run(line: list[Step], made: dict[str, Artifact], few: Resolved, store: Store) -> None:
    for step in line:
        if step.key not in made:
            parents = {key: store.digest(made[key]) for keys in step.inputs.values() for key in keys}
            made[step.key] = steps.make(step, made, parents, few, store, lambda *_: None, lambda **_: None)


def _metrics(
    resolved: Resolved, few: Resolved, plan: Plan, made: Mapping[str, Artifact], store: Store
) -> list[Problem]:
    """Calls the metrics with a file's outputs, repeated for many validation samples: they must give a record per
    sample, and a finite value for these outputs or for random ones. A metric may raise on random outputs, which a model
    might never give."""
    point = plan.points[0]
    given = made[point.export], point.deployment, few, store, local.host()
    problems: list[Problem] = _tried(f"task {resolved.task.name}: models", evaluate.answers, *given)
    if problems:
        return problems
    like = evaluate.answers(*given)[0]["validation"]
    columns = _some(resolved.data("validation"), MOST)
    if columns.stepwise and not columns.strings:  # the few samples may have fewer steps
        axis, places = steps_of(resolved.task.output), np.arange(columns.labels.shape[1])
        like = each(like, lambda x: x.take(places % x.shape[axis], axis))
    for metric in resolved.task.metrics if columns.labels is not None else ():
        where, values = f"task {resolved.task.name}: metrics[{metric.name!r}]", []
        for seed in (None, 0, 1, 2):
            found = _tried(
                where,
                lambda m, o, v: v.append(_value(m, o, columns.labels)),
                metric,
                _outputs(like, len(columns), seed),
                values,
            )
            problems += found if seed is None else []
        if values and not np.isfinite(values).any():
            text = (
                f"is {values[0]} for the outputs of untrained models, and for random outputs for {len(columns)} "
                "validation samples"
            )
            problems.append(Problem(where, text, "a value that is not finite can't be compared or gated"))
    return problems


def _value(metric: Metric, outputs: Any, labels: Any) -> float:
    records = np.asarray(metric.records(outputs, labels))
    if records.shape[:1] != (length(labels),):
        raise UsageError(
            Problem(
                "",
                f"gives records of shape {list(records.shape)} for {length(labels)} samples",
                "one record per sample",
            )
        )
    return float(metric.value(np.asarray(records, np.float64)))


def _concluded(few: Resolved, plan: Plan, made: Mapping[str, Artifact], store: Store, folder: Path) -> None:
    """Runs the end of the run with the untrained models' files: scores, counts, chooses, writes, bundles, reports."""
    host = local.host()
    points = [p for p in plan.points if p.export in made][:POINTS]
    answered = [evaluate.answers(made[p.export], p.deployment, few, store, host) for p in points]
    found = [
        Observed(p, made[p.export], outputs, ran={"": ran}) for p, (outputs, ran) in zip(points, answered, strict=True)
    ]
    teacher = next((o for o in found if o.point.reference == "teacher"), None)
    hosts = {t.name: host for t in few.targets if targets.runs(t)}
    described = cache(lambda i: evaluate.described(found[i], teacher, dict.fromkeys(hosts, ()), few, hosts))
    same = {(o.artifact.key, o.point.targets): i for i, o in enumerate(found)}
    observed = [dataclasses.replace(o, measurements=described(same[o.artifact.key, o.point.targets])) for o in found]
    folder.mkdir()
    text = dump(few, folder)
    write_atomic(folder / "recipe.toml", text.encode())
    boards = {t.name: host for t in few.targets}  # emulation is not checked: it takes long
    conclude.conclude(few, plan, made, (), observed, folder, text, store, Silent(), boards)


def _names(resolved: Resolved, plan: Plan, folder: Path) -> list[Problem]:
    """Creates empty files with the names of the run's files."""
    names = {p.id: f"the candidate {p.id[:40]}" for p in plan.points}
    files = {f"{p.id}{evaluate.suffix(p.deployment)}": names[p.id] for p in plan.points}
    files |= {results.executed(p.id, t): f"{names[p.id]} on {t[:40]}" for p in plan.points for t in p.targets}
    files |= {f".{t.name}.{'0' * 12}.part": f"the target {t.name[:40]}" for t in resolved.targets}
    long = {f"{p.id}{evaluate.suffix(p.deployment)}" for p in plan.points if len(p.id.encode()) > results.LONGEST}
    folder.mkdir()
    for name, told in files.items():
        try:
            if name in long:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            (folder / Path(name).name).touch()
        except OSError as error:
            text = f"{told} can't name a file: {error.strerror}, {len(Path(name).name.encode())} bytes"
            return [
                Problem(
                    f"{resolved.recipe.place}: name",
                    text,
                    "give stages and targets shorter names, or a sweep fewer values in one stage",
                )
            ]
    return []


def _front_end(task: Task, path: Path) -> list[Problem]:
    """Reads the ONNX file that a task's `before` returns, as users of bundles do."""
    if task.before is None:
        return []

    from edgekd.probes import static

    def read() -> None:
        given = task.before()
        if not isinstance(given, bytes):
            raise UsageError(
                Problem("", f"gives {type(given).__name__}, not the bytes of an ONNX file", "model.SerializeToString()")
            )
        path.write_bytes(given)
        static.read(path)

    return [
        dataclasses.replace(p, place=p.place.replace(f": {path}", ""))
        for p in _tried(f"task {task.name}: before", read)
    ]


def _room(resolved: Resolved, plan: Plan, store: Store, folder: Path) -> None:
    """Raises RunFailed where the store's disk has too little free space for the teachers' answers, a run's largest
    files."""
    wanted: dict[str, int] = {}
    for step in plan.steps.values():
        if step.stage == "answer" and resolved.task.classes:
            stage = step.part
            width = {"logits": resolved.task.classes, "top": 2 * stage.top, "label": 1}[stage.shows]
            wanted[step.key] = 4 * stage.views * len(resolved.data(stage.split)) * width
    free = shutil.disk_usage(next(p for p in (store.root, *store.root.parents) if p.exists())).free
    if sum(wanted.values()) > free:
        done = steps.finished(plan, store)
        wanted = {key: size for key, size in wanted.items() if key not in done}
    if sum(wanted.values()) > free:
        text = (
            f"the disk has {free / 1e6:.0f} MB free, and the teachers' answers take {sum(wanted.values()) / 1e6:.0f} MB"
        )
        raise RunFailed(
            Problem(
                str(store.root),
                text,
                "free disk space, set EDGEKD_STORE to another disk, or set cache = false in the stages",
            )
        )


def _tried(where: str, work: Callable[..., Any], *given: Any) -> list[Problem]:
    """What `work` raises, as problems; RunFailed and EnvironmentUnfit are raised again."""
    try:
        work(*given)
    except (RunFailed, EnvironmentUnfit):
        raise
    except EdgekdError as error:
        return [p.within(where) for p in error.problems]
    except THEIRS as error:  # models, metrics and data are the user's code
        reason = (str(error).strip().splitlines() or [""])[0]
        return [
            Problem(
                where,
                f"{type(error).__name__}: {reason}"[:400],
                "raised in the sanity check before training, with untrained models and a few samples",
            )
        ]
    return []


def _some(columns: Columns, most: int) -> Columns:
    """Up to `most` rows, spaced evenly over the split."""
    from edgekd.data.columns import some

    rows = np.linspace(0, len(columns) - 1, min(most, len(columns))).astype(int)
    return some(columns, rows)


def _outputs(like: Any, count: int, seed: int | None) -> Any:
    """Outputs for `count` samples in the form of `like`: random, or (`seed` None) those of `like` repeated."""
    rng = np.random.default_rng(seed)

    def draw(x: np.ndarray) -> np.ndarray:
        shape = (count, *x.shape[1:])
        if seed is None:
            return np.resize(x, shape)
        return (
            rng.normal(size=shape).astype(x.dtype) if x.dtype.kind == "f" else rng.integers(0, 2, shape).astype(x.dtype)
        )

    return each(like, draw)


def _short(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:24]
