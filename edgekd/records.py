"""The records that edgekd's parts pass to each other: frozen dataclasses, no logic, no heavy imports.

Arrays are numpy unless a name says tensor. Times are milliseconds, sizes bytes, shares fractions, accuracies percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

if TYPE_CHECKING:
    import numpy as np
    import torch

Split = Literal["train", "validation", "test", "unlabelled", "prior"]
Origin = Literal["counted", "measured", "emulated", "predicted"]
Verdict = Literal["pass", "fail", "inconclusive"]
Architecture = Literal["x86-64", "aarch64", "armv7e-m"]
Cache = Literal["l1d", "l1i", "l2", "l3"]
Feature = Literal[
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "neon",
    "fp16",
    "dotprod",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
]


# ---------------------------------------------------------------- what a user brings


@dataclass(frozen=True)
class Sample:
    """One example. `inputs`: an array, or {input name: array}. `id` is stable across runs (default: position in its
    split)."""

    inputs: Any
    label: Any = None
    id: str | int | None = None
    tags: tuple[str, ...] = ()
    weight: float = 1.0
    source: str = "given"


@dataclass(frozen=True)
class Metric:
    """A task's metric on the outputs of a file.

    `records(outputs, labels)` gives one number per sample (`outputs`: array [n, ...] or {name: array});
    `value(records)` makes the figure of them. Two steps, so that intervals and paired comparisons work for every
    metric.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    records: Callable[[Any, np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Task:
    """What is to be compressed: models by name (`teacher`, `student`), data by split, metrics. Everything else has a
    default.

    data      split name -> sequence of samples; `train`, `validation` and `test` must exist and be disjoint.
    collate   list of samples -> (inputs tensor or {name: tensor}, labels tensor or None); default: stack.
    augment   (inputs tensor [B, ...], u tensor [B, draws] uniform in [0, 1)) -> inputs; pure: `u` is all its chance,
              and is a function of seed, sample and view alone.
    views     how many augmented views of a sample exist; epoch e shows view e % views. The teacher runs once per view.
    forward   (model, inputs) -> output tensor; default: `model(inputs)`.
    classes   labels are integers in [0, classes); None where labels are of another kind.
    assets    files that the task opens by itself: their bytes count in the keys of finished work.
    before    what makes the network's inputs of raw ones, as the bytes of an ONNX file: it travels with the bundles.
    shareable whether real samples may travel in golden vectors; else seeded synthetic inputs.
    """

    name: str
    version: str
    models: Mapping[str, Callable[[], torch.nn.Module]]
    data: Callable[[str], Sequence[Sample]]
    metrics: tuple[Metric, ...]
    classes: int | None = None
    collate: Callable[[Sequence[Sample]], tuple[Any, Any]] | None = None
    augment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    draws: int = 8
    views: int = 16
    forward: Callable[[torch.nn.Module, Any], torch.Tensor] | None = None
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("output",)
    assets: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], bytes] | None = None
    shareable: bool = False

    def call(self, model: torch.nn.Module, inputs: Any) -> Any:
        """What a model of the task gives for inputs: by `forward` where the task has one."""
        return (self.forward or plainly)(model, inputs)


def plainly(model: torch.nn.Module, inputs: Any) -> Any:
    """How a model is called where nobody says otherwise."""
    return model(inputs)


# ---------------------------------------------------------------- training


@dataclass
class Batch:
    """Rows of one split as tensors. `index` [B] int64: positions in the split; `view`: which augmented view this is;
    `tags`: B tuples, None where no sample of the split has any."""

    inputs: Any
    labels: torch.Tensor | None
    index: torch.Tensor
    weight: torch.Tensor
    view: int = 0
    tags: Sequence[tuple[str, ...]] | None = None


@dataclass
class Signals:
    """What a model shows of one batch. `output`: logits [B, C] (or {head: tensor}), None of a black box, which shows
    its `label` [B] only; `taps`: {dotted path: tensor}."""

    output: Any
    taps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    label: torch.Tensor | None = None


# ---------------------------------------------------------------- finished work


@dataclass(frozen=True)
class Artifact:
    """An immutable piece of finished work in the store. `folder` is where it lies on this machine, no part of its
    identity.

    form    torch (weights.safetensors + model.json) | quantized (the same + grid.json) | weight_only (the same +
            blocks.json, blocks.safetensors) | onnx (model.onnx) | logits (logits.npy)
    files   {file name: sha256}
    inputs  {role: keys of the artifacts it was made from}
    facts   JSON values that its stage found out: parameters, macs, epochs done, last losses, seconds
    """

    key: str
    form: str
    files: Mapping[str, str]
    inputs: Mapping[str, tuple[str, ...]]
    stage: str
    settings: Mapping[str, Any]
    seed: int | None
    facts: Mapping[str, Any]
    folder: Path = field(compare=False, default=Path())


@dataclass(frozen=True)
class Made:
    """What a stage returns: the form of the files it wrote into `run.folder`, and facts about them."""

    form: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a stage works with. Files written into `folder` become the artifact's; `scratch` holds checkpoints, survives
    a kill, and is removed once the artifact stands. `progress(done, total, text)` moves the bar; `log(**event)` adds a
    line to log.jsonl. `data(split)` gives the loaded split (`edgekd.sources.Columns`)."""

    task: Task
    seed: int
    threads: int
    folder: Path
    scratch: Path
    data: Callable[[str], Any]
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    log: Callable[..., None] = lambda **event: None


# ---------------------------------------------------------------- int8


@dataclass(frozen=True)
class Site:
    """The integer lattice of one value: real = scale * (q - zero_point), q in [low, high].

    `axis` None: one scale (a 1-tuple); else one scale per slice along `axis`. Activations are kept as unsigned (low 0),
    weights as signed symmetric (zero_point 0); unsigned with zero point z and signed with z - 128 are the same numbers,
    so signedness is chosen when rendering. Biases have no site: they are rounded to int32 at the product of their
    operands' scales.
    """

    scale: tuple[float, ...]
    zero_point: int
    low: int
    high: int
    axis: int | None = None


@dataclass(frozen=True)
class Int8:
    """How a target's kernels want int8: bits of weights and of the values between layers, a scale per output channel of
    a weight or one in all. `pairs16`: weights are scaled until no sum of two neighbours' products leaves 16 bits, in
    which some x86 kernels add them, so that a file answers the same everywhere."""

    weight_bits: Annotated[int, Ge(2), Le(8)] = 8
    activation_bits: Annotated[int, Ge(2), Le(8)] = 8
    per_channel: bool = True
    pairs16: bool = True


@dataclass(frozen=True)
class Scheme(Int8):
    """A target's int8 facts, and what is of one graph: `float_layers`, which keep float weights; `layer_bits` {layer:
    bits of its weight} where not `weight_bits`."""

    float_layers: tuple[str, ...] = ()
    layer_bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """All sites of one captured graph. `graph` is the digest of the captured graph that the site names refer to."""

    graph: str
    scheme: Scheme
    sites: Mapping[str, Site]


# ---------------------------------------------------------------- devices


@dataclass(frozen=True)
class Runtime:
    """What runs the files on a device: `name` of one of edgekd/runtimes, `package.module` of one's own, or `none`
    where none of edgekd's runs; `format`: of its files, "" for the one that it reads first."""

    name: Annotated[str, MinLen(1)] = "onnxruntime"
    version: str = ""
    format: str = ""


@dataclass(frozen=True)
class Deployment:
    """How a model goes to a device: the format of its file, and the runtime that opens it."""

    format: str = "onnx"
    runtime: str = "onnxruntime"


@dataclass(frozen=True)
class Target:
    """Facts of a kind of device and of its runtime: data, not code. None: not known, or not the same on all devices of
    the kind.

    `core`: the name of the core that files run on, lower case (cortex-a72): cores of one name have the same kernels and
    the same time per cycle; `cores`: how many of them; `clock_mhz`: highest sustained; `caches`: {l1d, l1i, l2, l3:
    bytes}; `channel_multiple`: the widths that its kernels run well at; `int8`: the lattice that its kernels compute
    exactly on; `emulated_as`: the name of its CPU, or of a stand-in with the same kernels, to an emulator (qemu's
    -cpu); `runtime`, and `others` where its file has several `[[runtime]]`: a candidate is made for each of them;
    `sources`: {fact: where it is from}."""

    name: Annotated[str, MinLen(1)]
    title: Annotated[str, MinLen(1)]
    architecture: Architecture
    core: Annotated[str, MinLen(1)] | None = None
    features: tuple[Feature, ...] = ()
    cores: Annotated[int, Ge(1)] | None = None
    clock_mhz: Annotated[float, Gt(0), Le(1e5)] | None = None
    caches: Mapping[Cache, Annotated[int, Gt(0)]] = field(default_factory=dict)
    ram_bytes: Annotated[int, Gt(0)] | None = None
    flash_bytes: Annotated[int, Gt(0)] | None = None
    runtime: Runtime = Runtime()
    others: tuple[Runtime, ...] = ()
    threads: Annotated[int, Ge(1), Le(1024)] = 1
    int8: Int8 = Int8()
    channel_multiple: Annotated[int, Ge(1), Le(1024)] = 8
    emulated_as: Annotated[str, MinLen(1)] | None = None
    sources: Mapping[str, Annotated[str, MinLen(1)]] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """A way to a device. `run(job_folder, timeout, progress) -> out folder` brings a job there, runs it and fetches
    what it wrote (`timeout` in seconds, `progress(done, total)` over its schedule); `facts`: what
    environment.describe() tells, of the machine there; `launch`: how an emulator starts a job's processes
    (hosts/emulator.py), whose times are never shown; `cores`: the numbers of those that they are held to;
    `lacks(runtime)`: problems with what is not installed there of what a runtime needs."""

    name: str
    run: Callable[[Path, float, Callable[[int, int], None]], Path]
    facts: Mapping[str, Any]
    launch: Mapping[str, Any] | None = None
    cores: tuple[int, ...] = ()
    lacks: Callable[[str], list[Any]] = lambda runtime: []


# ---------------------------------------------------------------- observations


# how the note of a count begins that leaves something out: no figure that a budget can be judged by
NOT_COUNTED = "not counted: "


@dataclass(frozen=True)
class Quantity:
    """What is measured under one name, as a probe declares it (edgekd/probes): `profile`, budgets, reports and schemas
    read it here.

    `better`: which way; None: neither. `origin`: how its figures are had: counted on the file (deterministic),
    measured, or by emulation alone. `split`: whether a figure is of the samples of a split (quality), else it is of
    the file (cost). `repeats`: what `n` counts where that is not samples. `budget`: whether a rule may be on it.

    In reports: `heading` of its column (default: name and unit); `column`: its place, the smallest leftmost (None:
    none, it stands in the list of all figures alone); `keep`: how long tables keep the column as they get narrower,
    the greatest longest; 0: on the page alone, which has room; `shown`: (unit, size of it) where that is another;
    `words`: what less and more of it is called beside the teacher, for what is drawn against quality."""

    name: Annotated[str, MinLen(1)]
    unit: str
    title: Annotated[str, MinLen(1)]
    better: Literal["lower", "higher"] | None = None
    origin: Literal["counted", "measured", "emulated"] = "measured"
    split: bool = False
    repeats: Literal["processes", "inferences"] = "processes"
    budget: bool = True
    heading: str = ""
    column: int | None = 1000
    keep: Annotated[int, Ge(0)] = 0
    shown: tuple[str, float] | None = None
    words: tuple[str, str] | None = None


@dataclass(frozen=True)
class Measurement:
    """One figure about one artifact. `low` and `high`: 95 % interval; counted figures have low = value = high.

    `each`: what the figure is the median of, per process or input, in order; two figures with the same `pairing` (a
    timing session, a set of inputs) were taken side by side, so their `each` are pairs. Both are empty where nothing
    can be paired."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    n: int
    split: Split | None
    target: str | None
    origin: Origin
    threads: int | None = None
    environment: str | None = None
    note: str = ""
    each: tuple[float, ...] = ()
    pairing: str = ""


@dataclass(frozen=True)
class Candidate:
    """An artifact that competes for a target, or a reference. `id` is unique in a run and readable (`prune-0.5.int8`);
    candidates that differ by seed alone share a `point`. `form`: the format of its file; `file` is relative to the run
    folder, None where it was not kept; `runtime`: that made its figures, None where nobody says."""

    id: str
    point: str
    seed: int
    parents: tuple[str, ...]
    stages: tuple[str, ...]
    form: str
    file: str | None
    sha256: str
    measurements: tuple[Measurement, ...] = ()
    runtime: str | None = None


@dataclass(frozen=True)
class Check:
    """One line of a budget, judged. `place` says where the line stands; `limit` and `value` in the measurement's
    unit."""

    target: str
    candidate: str
    name: str
    rule: str
    verdict: Verdict
    level: Literal["error", "warn"]
    value: float | None
    low: float | None
    high: float | None
    unit: str
    origin: Origin | None
    place: str = ""
    reason: str = ""


@dataclass(frozen=True)
class TargetResult:
    """What a run found for one target. `front` and `chosen` are candidate ids; `verdict` None: the recipe has no
    gate."""

    front: tuple[str, ...]
    chosen: str | None
    verdict: Verdict | None
    checks: tuple[Check, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """`result.json`. `environment`: {id: facts of a machine}; `steps`: what was done or found finished, with seconds;
    `predictions`: {file in predictions/: sha256}, None before edgekd.result/2; `means`: {metric that is a multiple of
    the mean of its records: which}."""

    task: str
    recipe_sha256: str
    environment: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    targets: Mapping[str, TargetResult]
    steps: tuple[Mapping[str, Any], ...] = ()
    predictions: Mapping[str, str] | None = None
    means: Mapping[str, float] = field(default_factory=dict)
    schema: str = "edgekd.result/2"
