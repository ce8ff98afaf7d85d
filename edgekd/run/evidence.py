"""The evidence for the figures of a run's folder or a bundle: its models and predictions, checked against their digests
and the figures computed from them.

Evidence that contradicts a figure raises BaselineError. Missing files are named; rules that need them are
inconclusive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import intervals, metrics, results
from edgekd.decisions import budget, quantities
from edgekd.decisions.budget import Reference, Rule
from edgekd.delivery import bundle
from edgekd.errors import BaselineError, Problem, UsageError
from edgekd.files import sha256
from edgekd.metrics.formulas import FORMULAS
from edgekd.onnx_files import external
from edgekd.records import Candidate, Check, Measurement, Metric, Result

KNOWN = (metrics.top1().name, metrics.mean_error().name)  # means of their records, in runs that don't say which are
UNVERIFIED = (
    "result.json is older than edgekd.result/2 and has no digests of its predictions: it can't be verified that they "
    "are the run's own"
)
MODEL, OURS, THEIRS, THEIR_MODEL = "model", "predictions", "teacher's predictions", "teacher's model"
# what its figures are made of; a comparison takes its answers on the machine of the run
THEIRS_THERE = "teacher's predictions as the target"


@dataclass(frozen=True)
class Subject:
    """The subject of a gate for one target. `candidate` None: nothing was chosen, for the `reason`. `metrics`: those
    that are means of records; `missing` {what: its file}; `facts` {environment: facts of the machine}; `stored`: the
    checks of the run, None if their evidence can't be verified."""

    target: str
    candidate: Candidate | None
    teacher: Reference | None = None
    predictions: results.Predictions | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stored: tuple[Check, ...] | None = ()
    reason: str = ""

    def lacks(self, rule: Rule) -> str:
        """The missing files that the rule needs, as a reason; "" if there are none. Every rule needs the model; rules
        on quality need predictions."""
        named = [m for m in self.candidate.measurements if m.name == rule.name] if self.candidate else []
        sampled = any(m.split for m in named)
        needed = [
            MODEL,
            *([OURS] if sampled else []),
            *([THEIRS if sampled else THEIR_MODEL] if rule.versus == "teacher" else []),
        ]
        return "; ".join(f"{self.missing[what]} is missing" for what in needed if what in self.missing) if named else ""


def of_run(folder: Path, result: Result) -> list[Subject]:
    """The choice of a run for each of its targets. Raises BaselineError with every contradiction."""
    wrong = [
        p for c in result.candidates if c.file is not None for p in _model(folder / c.file, c.sha256, c.measurements)
    ]
    wrong += _digests(folder, result)
    wrong += [p for target in result.targets for p in _delivered(folder, result, target)]
    if wrong:
        raise BaselineError(*wrong)
    return [_chosen(folder, result, target) for target in result.targets]


def of_bundle(folder: Path, manifest: bundle.Manifest) -> Subject:
    """The candidate of a bundle; `bundle.read` has checked the digests of its files."""
    m, path = manifest, folder / "predictions.npz"
    made = Candidate(
        m.candidate, m.candidate, 0, (), m.stages, m.form, m.model, m.files[m.model].sha256, m.measurements, m.runtime
    )
    wrong = _model(folder / m.model, None, m.measurements)
    if path.name not in m.files:
        subject = Subject(m.target, made, missing={OURS: str(path)}, stored=m.checks)
    else:
        ours, theirs = _loaded(path), results.load_teacher(path)
        teacher = Reference((), theirs) if theirs else None
        subject = Subject(
            m.target,
            made,
            teacher,
            ours,
            _held(made.measurements, m.target, ours, m.means, str(path), wrong),
            stored=m.checks,
        )
        if ours.digest != m.test_digest:
            wrong.append(Problem(str(path), "is of another test set than the manifest says"))
    if m.means is not None:
        formulas = {} if subject.predictions is None else subject.predictions.formulas
        taught = _figures(made, m.target, subject.teacher.records, m.means, formulas) if subject.teacher else ()
        wrong += _contradictory(m.checks, m.verdict, f"{folder / bundle.MANIFEST}", made, taught)
    if wrong:
        raise BaselineError(*wrong)
    return replace(subject, candidate=_told(made, m.target, subject.predictions, subject.metrics))


def _model(path: Path, digest: str | None, measurements: Iterable[Measurement]) -> list[Problem]:
    """Problems of a model's file, if it exists."""
    if not path.is_file():
        return []
    if digest is not None and sha256(path) != digest:
        return [Problem(str(path), "differs from its digest in result.json: not the file that was measured")]
    size = external.size(path)
    told = [m.value for m in measurements if m.name == "file_bytes" and m.origin == "counted" and m.value != size]
    return [Problem(str(path), f"has {size} bytes, and the figure is {told[0]:.0f}")] if told else []


def _digests(folder: Path, result: Result) -> list[Problem]:
    files = ((folder / "predictions" / name, digest) for name, digest in (result.predictions or {}).items())
    text = "differs from its digest in result.json: not what the measured file answered"
    return [Problem(str(path), text) for path, digest in files if path.is_file() and sha256(path) != digest]


def _delivered(run: Path, result: Result, target: str) -> list[Problem]:
    """How a run's bundle for a target, if it exists, differs from the run."""
    folder, chosen = run / "bundles" / target, result.targets[target].chosen
    candidate = next((c for c in result.candidates if c.id == chosen), None)
    if candidate is None or not folder.exists():
        return []
    try:
        manifest = bundle.read(folder)
        of_bundle(folder, manifest)
    except (UsageError, BaselineError) as error:
        return list(error.problems)
    claims, recipe = bundle.claimed(result, candidate, target), run / "recipe.toml"
    if recipe.is_file() and sha256(recipe) == result.recipe_sha256:  # another one isn't what the run was judged by
        claims["gate"] = bundle.budget_of(run, target)
    found = [
        Problem(f"{folder / bundle.MANIFEST}: {k}", "differs from result.json")
        for k, v in claims.items()
        if getattr(manifest, k) != v
    ]
    if manifest.files[manifest.model].sha256 != candidate.sha256:
        found.append(
            Problem(
                str(folder / manifest.model), "differs from its digest in result.json: not the file that was measured"
            )
        )
    return found


def _chosen(folder: Path, result: Result, target: str) -> Subject:
    found = result.targets[target]
    candidate = next((c for c in result.candidates if c.id == found.chosen), None)
    if candidate is None:
        return Subject(target, None, reason=found.reason)
    means = None if result.predictions is None else result.means
    wrong: list[Problem] = []
    missing: dict[str, str] = {}

    def kept(name: str, what: str) -> results.Predictions | None:
        path = folder / "predictions" / name
        if not path.is_file() or result.predictions is not None and name not in result.predictions:
            missing[what] = str(path)
            return None
        return _loaded(path)

    def model(of: Candidate, what: str) -> None:
        if of.file is None or not (folder / of.file).is_file():
            missing[what] = str(folder / (of.file or f"models/{of.id}"))

    def apart(id: str) -> str:
        """The file of its outputs as the target; "" if these equal its outputs on the machine of the run."""
        name = results.executed(id, target)
        there = (
            name in result.predictions if result.predictions is not None else (folder / "predictions" / name).is_file()
        )
        return name if there else ""

    model(candidate, MODEL)
    elsewhere = apart(candidate.id)
    place = folder / "predictions" / (elsewhere or f"{candidate.id}.npz")
    ours, reference, metrics = kept(place.name, OURS), None, {}
    if ours is not None:
        metrics = _held(candidate.measurements, target, ours, means, str(place), wrong)
    teacher = next((c for c in result.candidates if c.id == result.references.get("teacher")), None)
    theirs: tuple[Measurement, ...] = () if teacher is None else teacher.measurements
    if teacher is not None:
        model(teacher, THEIR_MODEL)
        name = f"{teacher.id}.npz"
        taught, there = kept(name, THEIRS), apart(teacher.id)
        answered = kept(there, THEIRS_THERE) if there else taught
        here = (None, next(iter(result.environment), None))  # the machine of the run stands first
        if answered is not None:
            figures = [m for m in theirs if there or m.environment in here]
            _held(figures, target, answered, means, str(folder / "predictions" / (there or name)), wrong)
        records: Mapping[str, np.ndarray] = {} if taught is None else taught.records
        if elsewhere:  # has the teacher's records of its samples
            missing.pop(THEIRS, None)
            records = {} if ours is None else results.load_teacher(place)
            theirs = _figures(candidate, target, records, means or {}, {} if ours is None else ours.formulas)
            wrong += [] if ours is None or taught is None else _others(ours, records, taught, str(place))
        elif ours is not None and taught is not None:
            wrong += unlike(ours, taught, str(folder / "predictions" / name), "the candidate")
        reference = Reference(teacher.measurements, records)
    if means is not None:
        wrong += _contradictory(
            found.checks, found.verdict, f"{folder / 'result.json'}: targets.{target}", candidate, theirs
        )
    if wrong:
        raise BaselineError(*wrong)
    candidate = _told(candidate, target, ours, metrics)
    return Subject(
        target,
        candidate,
        reference,
        ours,
        metrics,
        missing,
        result.environment,
        None if means is None else found.checks,
    )


def _loaded(path: Path) -> results.Predictions:
    """Predictions of a run. Raises BaselineError where they can't be read, since the run wrote them otherwise."""
    try:
        return results.load_predictions(path)
    except UsageError as error:
        raise BaselineError(*error.problems) from None


def _held(
    measurements: Iterable[Measurement],
    target: str,
    found: results.Predictions,
    means: Mapping[str, float] | None,
    place: str,
    wrong: list[Problem],
) -> dict[str, Metric]:
    """The metrics that are means of their records, or a formula of edgekd's of them. Records that contradict the figure
    go to `wrong`. `means` None: it is not recorded which metrics are means, so these are the ones that edgekd knows and
    the ones whose figure is the mean. Other metrics need the task's code, which is not run here."""
    made = {}
    for name in dict.fromkeys([*(means or {}), *found.records]):
        figures = [m for m in measurements if m.name == name and m.split == "test" and m.target in (None, target)]
        figure = next((m for m in figures if m.origin == "measured"), figures[0] if figures else None)
        rows = found.records.get(name)
        formula = FORMULAS.get(found.formulas.get(name, ""))
        if figure is None or (means is not None and name not in means and formula is None):
            continue
        value = formula or _times(means[name] if means is not None else 100.0 if figure.unit == "%" else 1.0)
        text = _against(figure, rows, value)
        if not text:
            better = found.better.get(name) or ("lower" if quantities.lower(name) else "higher")
            made[name] = Metric(name, figure.unit, better, lambda outputs, labels: outputs, value)  # type: ignore[arg-type]
        elif means is not None or name in KNOWN:
            wrong.append(
                Problem(f"{place}: {name}.records", text, "the figure was not computed from these predictions")
            )
    return made


def _times(factor: float) -> Callable[[np.ndarray], float]:
    """A metric's value that is a multiple of the mean of its records."""
    return lambda records: factor * float(np.mean(records))


def _against(figure: Measurement, rows: np.ndarray | None, of: Callable[[np.ndarray], float]) -> str:
    """How records contradict a figure that should be `of` them; "" if they don't."""
    if rows is None:
        return "are missing"
    if len(rows) != figure.n:
        return f"are of {len(rows)} samples, the figure of {figure.n}"
    if not np.isfinite(rows).all():
        return "have values that are not finite"
    value = intervals.figure(of, rows)
    same = math.isclose(value, figure.value, rel_tol=1e-6, abs_tol=1e-9)
    return "" if same else f"come to {value:.6g} {figure.unit}".rstrip() + f", the figure is {figure.value:.6g}"


def _told(
    candidate: Candidate, target: str, found: results.Predictions | None, made: Mapping[str, Metric]
) -> Candidate:
    """The candidate with intervals recomputed from its records of 0 and 1."""

    def told(m: Measurement) -> Measurement:
        rows = found.records[m.name] if found is not None and m.name in made else np.zeros(0)
        if m.split != "test" or m.target not in (None, target) or len(rows) != m.n or not _binary(rows):
            return m
        _, low, high = intervals.interval_of(made[m.name], rows)
        return replace(m, low=low, high=high)

    return replace(candidate, measurements=tuple(map(told, candidate.measurements)))


def _binary(rows: np.ndarray) -> bool:
    return rows.ndim == 1 and bool(np.isin(rows, (0, 1)).all())


def _figures(
    ours: Candidate,
    target: str,
    records: Mapping[str, np.ndarray],
    means: Mapping[str, float],
    formulas: Mapping[str, str],
) -> tuple[Measurement, ...]:
    """The teacher's figures to compare with the candidate's: from the teacher's records of the same samples."""
    of = {name: _times(factor) for name, factor in means.items()}
    of |= {name: FORMULAS[formula] for name, formula in formulas.items() if formula in FORMULAS}
    own = [m for m in ours.measurements if m.split == "test" and m.target in (None, target) and m.name in of]
    return tuple(
        replace(m, value=intervals.figure(of[m.name], records[m.name]))
        for m in own
        if len(records.get(m.name, ())) == m.n
    )


def _others(
    ours: results.Predictions, records: Mapping[str, np.ndarray], theirs: results.Predictions, place: str
) -> list[Problem]:
    """Problems of the teacher's records in a candidate's file: they must equal the teacher's own for the same
    samples."""
    known = set(theirs.ids.tolist())
    if ours.digest != theirs.digest or not known.issuperset(ours.ids.tolist()):
        return [Problem(place, "is of another test set than the teacher", "measure both on the same test samples")]
    rows = results.places(theirs.ids, ours.ids)
    differ = [
        n
        for n, r in records.items()
        if n in theirs.records and not np.array_equal(r, theirs.records[n][rows], equal_nan=True)
    ]
    return [Problem(f"{place}: {name}.teacher", "differ from the teacher's own records") for name in differ]


def _contradictory(
    checks: Iterable[Check], verdict: str | None, place: str, ours: Candidate, teacher: Iterable[Measurement] = ()
) -> list[Problem]:
    """Problems of stored checks that don't follow from the figures, and of a verdict that doesn't follow from the
    checks."""
    checks, found, theirs = tuple(checks), [], tuple(teacher)
    for c in checks:
        where, told = f"{place}.checks ({c.name} {c.rule})", budget.verdict_of(c)
        if told not in ("", c.verdict):
            found.append(Problem(where, f"the stored verdict is {c.verdict}, and its own figures give {told}"))
        value = _value(c, ours.measurements, theirs)
        if (
            c.candidate == ours.id
            and None not in (value, c.value)
            and not math.isclose(abs(c.value), value, rel_tol=1e-6, abs_tol=1e-9)
        ):  # type: ignore
            found.append(Problem(where, f"the stored value is {c.value:.6g}, and the figures give {value:.6g}"))
    whole = budget.overall(checks)
    if checks and verdict is not None and verdict != whole:
        found.append(Problem(f"{place}.verdict", f"is {verdict}, and the checks give {whole}"))
    return found


def _value(check: Check, ours: Iterable[Measurement], theirs: Iterable[Measurement]) -> float | None:
    """The absolute value of a check, recomputed from its figures; None if it can't be."""
    mine = next((m for m in ours if _of(m, check) and m.origin == check.origin), None)
    rule = budget.parse(check.name, check.rule)
    if mine is None or rule.kind in ("min", "max"):
        return None if mine is None else abs(mine.value)
    other = (
        next((m for m in theirs if _of(m, check) and m.n == mine.n), None)
        if rule.versus == "teacher" and mine.split
        else None
    )
    if other is None or rule.kind == "regress" and other.value == 0:
        return None
    return abs(other.value - mine.value) / (abs(other.value) / 100 if rule.kind == "regress" else 1)


def _of(m: Measurement, check: Check) -> bool:
    return m.name == check.name and m.split in (None, "test") and m.target in (None, check.target)


def unlike(ours: results.Predictions, theirs: results.Predictions, place: str, what: str) -> list[Problem]:
    """The problem of predictions for another test set, or for the same in another order."""
    if ours.digest == theirs.digest and np.array_equal(ours.ids, theirs.ids):
        return []
    return [Problem(place, f"is of another test set than {what}", "measure both on the same test samples")]
