"""What `explain` looks at: a float file, the int8 file made of it, samples to look with and others to judge with; from
a run's folder or from files of any making."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekd import targets
from edgekd.errors import BaselineError, Problem, UsageError, gathered
from edgekd.files import sha256
from edgekd.inputs import each, named
from edgekd.measure import jobs, rolled
from edgekd.measure.machine import user_error
from edgekd.metrics import are_classes, suiting
from edgekd.onnx_files import external
from edgekd.probes import static
from edgekd.records import Candidate, Deployment, Metric, Result, Target, is_onnx
from edgekd.samples import read as reader
from edgekd.samples import rows
from edgekd.samples.signature import differing, of_model
from edgekd.samples.source import Source, refused_random

if TYPE_CHECKING:
    import onnx

    from edgekd.run.resolve import Resolved
    from edgekd.samples.sequences import Sequences

# of files that are not in QDQ form; QLinear... too
OTHER_FORMS = ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm", "QAttention", "MatMulIntegerToFloat")
MOST = 2048  # samples that a fix is chosen by, and judged by where there are no splits
KEEP = (
    "a run keeps the files of the front, the choice and the references: let [select] name a figure that the float "
    "parent is better in, "
    'such as maximize = ["top1"], and run again; finished work is reused'
)


@dataclass(frozen=True)
class Samples:
    """Rows of a split: `inputs` of the model, `labels` as the task has them, {output: array} of several, or None."""

    split: Literal["validation", "test"]
    inputs: rows.Samples
    labels: Any

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> Samples:
        inputs = _whole(self.inputs, count)
        return dataclasses.replace(
            self,
            inputs=inputs,
            labels=None if self.labels is None else each(self.labels, lambda array: array[: len(inputs)]),
        )


@dataclass(frozen=True)
class FromRun:
    """Where a subject comes from: a candidate of a run, chosen for `names`."""

    folder: Path
    candidate: Candidate
    names: tuple[str, ...]
    resolved: Resolved


@dataclass(frozen=True)
class FromFiles:
    """Where a subject comes from: what a person gave. `samples` all of the data."""

    model: Path
    given: Source
    target: Target
    samples: rows.Samples


@dataclass(frozen=True)
class Subject:
    """`float_file` has the operators of `int8_file`; `home` is where fixed files are put. `classes`: labels are class
    numbers of the only output; `norms`: the network has batch norms. `labels`, of files: {layer of a finding: its names
    in the table of `quantize`}; `ours`: edgekd made the int8 file."""

    id: str
    parent: str
    float_file: Path
    int8_file: Path
    home: Path
    looked: Samples
    judged: Samples
    metric: Metric | None
    classes: bool
    saturates: bool
    threads: int
    source: FromRun | FromFiles
    norms: bool
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ours: bool = True


def of_run(folder: Path, result: Result, c: Candidate, names: Sequence[str]) -> Subject | str:
    """The subject of a chosen int8 candidate; text where its files are not there. Raises BaselineError where a digest
    is wrong."""
    parent = next((p for p in result.candidates if c.parents and p.id == c.parents[0]), None)
    missing = next(
        (x for x in (c, parent) if x is not None and (x.file is None or not (folder / x.file).is_file())), None
    )
    if parent is None or missing is not None:
        name = missing.id if missing is not None else "its float parent"
        return f"the layers can't be looked at: the file of {name} was not kept in models/\n  hint: {KEEP}"
    if c.runtime not in (None, Deployment().runtime) or not is_onnx(c.form):
        return f"the layers can't be looked at: {c.id} is a file of {c.runtime}, and those of onnxruntime are"
    for x in (c, parent):
        if sha256(folder / x.file) != x.sha256:
            raise BaselineError(
                Problem(str(folder / x.file), "differs from its digest in result.json: not the file that was measured")
            )
    resolved = _resolved(folder, result)
    devices = [next((t for t in resolved.targets if t.name == n), None) or targets.load(n) for n in names]
    task = resolved.task
    if task.lengths:
        return "the layers can't be looked at: samples differ in length"
    if task.stream is not None:
        return "the layers can't be looked at: the file takes a step of a sequence, and its own state"
    looked, judged = _split(resolved, "validation"), _split(resolved, "test")
    labels = looked.labels if task.classes is not None and len(task.outputs) == 1 else None
    return Subject(
        id=c.id,
        parent=parent.id,
        float_file=folder / parent.file,
        int8_file=folder / c.file,
        home=folder / "fixed",
        looked=looked,
        judged=judged,
        metric=task.metrics[0] if task.metrics and looked.labels is not None and judged.labels is not None else None,
        classes=are_classes(labels),
        saturates=any(targets.saturates(d) for d in devices),
        threads=devices[0].threads if devices else 1,
        source=FromRun(folder, c, tuple(names), resolved),
        norms=_has_norms(resolved),
    )


def of_files(int8: Path, plain: Path | None, source: Source, target: str, workspace: Path) -> Subject:
    """The subject of an int8 file of any making, of the float file that it was made of and samples; of sequences the
    steps, with the states that the float file makes. Raises UsageError with every problem."""
    import onnx

    from edgekd.explain import layer_names
    from edgekd.quantization.onnx_graph import normalize

    model, given, device = _read(int8, plain, source, target)
    taken = (
        _whole(given.samples) if isinstance(given, reader.Given) else rolled.steps(plain, given, workspace / "steps")
    )
    with user_error():
        jobs.tried({str(plain): plain, str(int8): int8}, taken, folder=workspace / "tried")
    float_file, normal, kept = workspace / "float.onnx", normalize.normalized(model, str(plain)), onnx.load(int8)
    external.write(normal, float_file)
    first = taken.some(1).feed()
    classes = are_classes(taken.labels) and taken.labels.dtype != object and len(model.graph.output) == 1
    classes = classes and len(model.graph.output[0].type.tensor_type.shape.dim) == 2
    return Subject(
        id=int8.stem,
        parent=plain.name,
        float_file=float_file,
        int8_file=int8,
        home=int8.parent / "fixed",
        looked=_half(taken, 0, "validation"),
        judged=_half(taken, 1, "test"),
        metric=suiting(taken.labels) if classes else None,
        classes=classes,
        saturates=targets.saturates(device),
        threads=device.threads,
        source=FromFiles(plain, source, device, taken),
        norms=any(n.op_type == "BatchNormalization" for n in model.graph.node),
        labels=layer_names.labels(model, normal, first, kept),
        ours=kept.producer_name == "edgekd",
    )


def _read(
    int8: Path, plain: Path | None, source: Source, target: str
) -> tuple[onnx.ModelProto, reader.Given | Sequences, Target]:
    """(float model, samples or sequences, target). Raises UsageError with every problem."""
    from edgekd.quantization.onnx_graph import normalize

    problems: list[Problem] = []
    if plain is None:
        problems.append(Problem("--float", "is missing", "the float file that the int8 file was made of"))
    if source.data is None:
        hint = "an .npz with `inputs` and, if there are some, `labels`, or a folder"
        problems.append(Problem("--data", "is missing", hint))

    made = gathered(lambda: static.read(int8), problems)
    problems += _unread(made, int8) if made else []
    model = gathered(lambda: plain and static.read(plain), problems)
    device = gathered(lambda: targets.load(target), problems)
    problems += normalize.problems(model, str(plain)) if model else []
    problems += differing(of_model(model), of_model(made), (str(plain), str(int8))) if model and made else []
    given = None
    if source.data is not None:
        before = len(problems)
        why = "random values are not what a model is used on: no layer is judged by them"
        gathered(lambda: refused_random(source, why), problems)
        if len(problems) == before:
            read = reader.read_sequences if source.states else reader.read
            given = gathered(lambda: read(source, of_model(model)) if model else reader.readable(source), problems)
    if problems:
        raise UsageError(*problems)
    return model, given, device


def _has_norms(resolved: Resolved) -> bool:
    from torch.nn.modules.batchnorm import _NormBase

    from edgekd.models import saved

    model = saved.create(resolved.task, getattr(resolved.recipe.stages[0].stage, "model", "student"), 0)
    return any(isinstance(m, _NormBase) for m in model.modules())


def _unread(model: onnx.ModelProto, path: Path) -> list[Problem]:
    """Why an int8 file's layers can't be looked at: it must have QuantizeLinear and DequantizeLinear."""
    kinds = {n.op_type for n in model.graph.node}
    other = sorted(k for k in kinds if k.startswith("QLinear") or k in OTHER_FORMS)
    if other:
        hint = "make the file in QDQ form: `edgekd quantize`, or quant_format=QuantFormat.QDQ of onnxruntime"
        text = f"holds integer operators ({', '.join(other)}), which explain can't read: it reads QDQ files"
        return [Problem(str(path), text, hint)]
    if not kinds & {"QuantizeLinear", "DequantizeLinear"}:
        return [Problem(str(path), "is a float file: nothing in it is quantized", "give the int8 file")]
    return []


def _whole(samples: rows.Samples, count: int | None = None) -> rows.Samples:
    """The first samples (default: all) that fill whole batches of a file that fixes their size."""
    size = samples.rows or 1
    return samples.take(slice(max(size, (len(samples) if count is None else count) // size * size)))


def _half(samples: rows.Samples, which: int, split: Literal["validation", "test"]) -> Samples:
    """Every other sample, or sequence, so that a fix is not judged by what it was chosen by; all of them where there
    are few."""
    count = len(samples)
    group = np.arange(count) // (samples.rows or 1) if samples.begins is None else np.cumsum(samples.begins) - 1
    every = np.arange(count)
    taken = every[group % 2 == which][:MOST] if count >= 64 and group[-1] else every
    found = _whole(samples.take(taken))
    return Samples(split, found, found.labels)


def _resolved(folder: Path, result: Result) -> Resolved:
    from edgekd.run import resolve

    file = folder / "recipe.toml"
    if not file.is_file():
        raise UsageError(Problem(str(folder), "has no recipe.toml to find the validation data by"))
    if sha256(file) != result.recipe_sha256:
        raise BaselineError(Problem(str(file), "differs from its digest in result.json: not the recipe of this run"))
    return resolve.resolved(file)


def _split(resolved: Resolved, split: Literal["validation", "test"]) -> Samples:
    """At most MOST samples of validation in a fixed shuffled order; all of test."""
    columns = resolved.data(split)
    numbers = (
        np.random.default_rng(0).permutation(len(columns))[:MOST] if split == "validation" else np.arange(len(columns))
    )
    inputs = named(columns.inputs, resolved.task.inputs[0])
    chosen = rows.Samples({name: rows.chosen(a, numbers) for name, a in inputs.items()})
    labels = None if columns.labels is None else each(columns.labels, lambda array: array[numbers])
    return Samples(split, chosen, labels)
