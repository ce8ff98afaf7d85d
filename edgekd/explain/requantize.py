"""How the int8 file that `explain` looked at is made again with other settings: through the run's own steps, or from
the float file."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import signatures
from edgekd.explain import layer_names
from edgekd.explain.inputs import FromFiles, FromRun, Subject
from edgekd.files import write_atomic
from edgekd.inputs import named
from edgekd.quantization.diagnosis.fixes import FLAGS, Now, options, shown
from edgekd.records import Target
from edgekd.run import target_settings
from edgekd.samples.rows import Samples, fitting

if TYPE_CHECKING:
    from edgekd.progress import Silent
    from edgekd.store.store import Store

RECIPE = frozenset(
    ("ranges", "samples", "before", "after", "pairs16", "float_layers", "layer_bits", "weight_bits", "observer")
)
FILE = frozenset(("ranges", "samples", "before", "after", "weight_bits", "float_layers"))
CALIBRATION = 512  # samples, unless a fix says how many


@dataclass(frozen=True)
class Way:
    """`make(settings, path)` writes the file and says what was proven of it; `lasting(settings)` is what makes such a
    file from now on. `trains`: each making is a training; `note` what is to be known of this way."""

    now: Now
    make: Callable[[Mapping[str, Any], Path], str]
    lasting: Callable[[Mapping[str, Any]], str]
    trains: bool = False
    note: str = ""


def way(subject: Subject, store: Store, progress: Silent) -> Way:
    """The way that a subject's file can be made again. Raises UsageError where there is none."""
    if isinstance(subject.source, FromFiles):
        return _from_files(subject, subject.source)
    return _through_steps(subject, subject.source, store, progress) or _from_float(subject, subject.source)


def _through_steps(subject: Subject, source: FromRun, store: Store, progress: Silent) -> Way | None:
    """Through the stages of the recipe; None if what comes before them is no longer in the store."""
    from edgekd import quantization
    from edgekd.models import saved
    from edgekd.quantization.torch_graph.capture import capture
    from edgekd.quantization.torch_graph.sites import layers
    from edgekd.run import plan
    from edgekd.run.steps import finished, make

    resolved = source.resolved
    planned = plan.make(resolved, store)
    point = next((p for p in planned.points if p.id == source.candidate.id), None)
    step = planned.steps.get(point.step) if point is not None else None
    if step is None or step.stage != "quantize":
        return None
    made = finished(planned, store)
    trains = step.part.mode == "qat"
    if step.source not in made or (trains and any(key not in made for key in step.teacher)):
        return None
    columns = resolved.data("train")
    graph = capture(
        saved.load(made[step.source], resolved.task),
        quantization.example_of(columns),
        resolved.task.traced,
        resolved.task.lengths,
    )

    def build(settings: Mapping[str, Any], path: Path) -> str:
        artifacts = dict(made)
        for again in plan.again(planned, resolved, point, settings):
            parents = {key: store.digest(artifacts[key]) for keys in again.inputs.values() for key in keys}
            artifacts[again.key] = make(again, artifacts, parents, resolved, store, lambda *_: None, lambda **_: None)
        exported = artifacts[again.key]
        write_atomic(path, (exported.folder / "model.onnx").read_bytes())
        equal = exported.facts["equality"]
        steps = (
            "none by more than a step"
            if equal["most_steps"] <= 1.25
            else f"none by more than {equal['most_steps']:.0f} steps"
        )
        return f"the file is the model that was settled: {100 * equal['equal']:.4g} % of its outputs equal, {steps}"

    now = Now(
        signatures.plain(step.part),
        len(columns),
        RECIPE,
        _bits(source),
        layer_names.layers(subject.int8_file, graph, layers(graph)),
    )
    return Way(now, build, lambda settings: _recipe_lines(source, point.stages[-1], settings), trains)


def _from_float(subject: Subject, source: FromRun) -> Way:
    """From the run's float file, with samples of its train split: where the store has not the model any more."""
    columns = source.resolved.data("train")
    arrays = named(columns.inputs, source.resolved.task.inputs[0])
    stage = source.resolved.recipe.stages[-1]
    now, build = _file(subject.float_file, _labels(subject, arrays), arrays, _served(source))
    captured = layer_names.captured(source, subject.int8_file)

    def lasting(settings: Mapping[str, Any]) -> str:
        if "float_layers" not in settings:
            return _recipe_lines(source, stage.name, settings)
        if not captured:
            return "the recipe's `float_layers` names layers of the model's graph; run it again to have it name them"
        back = {n: f for f, names in now.layers.items() for n in names}
        named = tuple(n for label in settings["float_layers"] for n in captured.get(back[label], ()))
        return _recipe_lines(source, stage.name, {**settings, "float_layers": named})

    note = (
        "the store no longer has what this run was made of: fixed files are made from its float file; those of `edgekd "
        "compress` may differ a little"
    )
    return Way(now, build, lasting, note=note)


def _from_files(subject: Subject, source: FromFiles) -> Way:
    now, build = _file(source.model, subject.labels, source.samples, [source.target])

    def lasting(settings: Mapping[str, Any]) -> str:
        words = [
            "edgekd",
            "quantize",
            str(source.model),
            *source.given.words(),
            "--out",
            str(subject.int8_file),
            "--target",
            source.target.name,
        ]
        words += options({"samples": min(CALIBRATION, now.samples), **settings})
        words += [] if settings.get("float_layers") else ["--slower-int8"]  # else times may put layers into float
        return shlex.join(words)

    return Way(now, build, lasting)


def _labels(subject: Subject, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Names of a run's layers in its float file."""
    import onnx

    from edgekd.quantization.onnx_graph import normalize

    model = onnx.load(subject.float_file)
    first = fitting(arrays, model).some(1).feed()
    return layer_names.labels(model, normalize.normalized(model), first, onnx.load(subject.int8_file))


def _file(
    model: Path,
    labels: Mapping[str, tuple[str, ...]],
    given: Mapping[str, np.ndarray] | Samples,
    targets: Sequence[Target],
) -> tuple[Now, Callable]:
    """(what is known of an int8 file of any making, how it is made again from `model` for the targets)."""
    from edgekd.onnx_files import external
    from edgekd.probes import static
    from edgekd.quantization.onnx_graph import checks, convert
    from edgekd.samples.split import divided

    parsed = static.read(model)
    samples = fitting(given, parsed)
    count = len(samples)

    def build(settings: Mapping[str, Any], path: Path) -> str:
        taken = samples.take(divided(count, settings.get("samples", CALIBRATION), samples.rows)[0])
        asked = {k: settings[k] for k in ("weight_bits", "float_layers") if k in settings}
        scheme = target_settings.scheme(targets, **asked)
        parts = {*settings.get("before", ()), *settings.get("after", ())}
        more = {"equalize": "equalize" in parts, "correct_bias": "bias_correction" in parts}
        ranges = settings.get("ranges", "minmax")
        made = convert.quantize(parsed, taken, scheme=scheme, ranges=ranges, place_name=str(model), **more)
        external.put(checks.finished(made.model, path.name), path.parent)
        differ, reason = checks.simulated(path, checks.affordable(made.float_model, taken))
        said = "every integer operator computes what the file says: 0 values differ from the simulation"
        return reason if differ is None else said

    return of_file(count, labels), build


def of_file(count: int, labels: Mapping[str, tuple[str, ...]], *, same: bool = False) -> Now:
    """What is known of an int8 file of any making: the samples that there are, the names of its layers, and whether
    `quantize` made it."""
    return Now({}, count, FILE, 8, labels, same=same, parts=frozenset(FLAGS))


def _bits(source: FromRun) -> int:
    """The most bits that weights may have on all the targets."""
    return target_settings.merged(_served(source)).weight_bits


def _served(source: FromRun) -> list[Target]:
    """The targets that the file is for."""
    targets = source.resolved.targets
    return [t for t in targets if t.name in source.names] or list(targets[:1])


def _recipe_lines(source: FromRun, stage: str, settings: Mapping[str, Any]) -> str:
    lines = "\n".join(f"    {k} = {shown(v)}" for k, v in settings.items())
    sets = " ".join("--set " + _quoted(f"{stage}.{k}={shown(v)}") for k, v in settings.items())
    if not settings:
        return f"edgekd compress {source.folder / 'recipe.toml'} --fresh    (the same settings make a sound file)"
    return (
        f"in the recipe, [[stage]] `{stage}`:\n"
        f"{lines}\n"
        f"or: edgekd compress {source.folder / 'recipe.toml'} --out NEW {sets}"
    )


def _quoted(text: str) -> str:
    return f"'{text}'" if any(c in text for c in ' "[{') else text
