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

    from edgekd.outputs import Output

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


# ---------------------------------------------------------------- what a user gives


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

    `records(outputs, labels)` returns one number per sample, or several [n, k] (`outputs`: array [n, ...] or {name:
    array}); `value(records)` computes the metric from them. Two steps, so that intervals and paired comparisons work
    for every metric. `formula`: the name of its `value` in `edgekd.metrics.formulas`, with which `gate` computes it
    again; "" for a mean of the records, and for figures of one's own.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    records: Callable[[Any, np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], float]
    formula: str = ""


@dataclass(frozen=True)
class Task:
    """A task to compress: models by name (`teacher`, `student`), data by split, metrics. Everything else has a default.

    data      split name -> sequence of samples; `train`, `validation` and `test` must exist and be disjoint.
    collate   list of samples -> (inputs tensor or {name: tensor}, labels tensor or None); default: stack.
    augment   (inputs tensor [B, ...], u tensor [B, draws] uniform in [0, 1)) -> inputs; a pure function: `u` is its
              only source of randomness, and depends on seed, sample and view alone.
    views     how many augmented views of a sample exist; epoch e shows view e % views. The teacher runs once per view.
    forward   (model, inputs) -> output tensor, or {name: tensor} where several are declared; default: `model(inputs)`.
    classes   labels are integers in [0, classes); None for other labels.
    outputs   names of the model's outputs; or {name: what it is}, such as {"mask": edgekd.classes(axis=1)}, from which
              follow the losses and figures that fit, and what labels must look like (`edgekd.outputs`). Of several,
              models give {name: tensor}, or a tuple in this order, and labels are {name: [N, ...]}.
    lengths   {input whose samples [T, ...] differ in length: the input that gets their lengths [n] int64}.
    stream    `edgekd.streaming({"h_out": "h_in"})`: models with `state_shapes` take one step and their state; others
              get whole sequences [n, T, ...].
    licences  {what: its licence}, of data and weights: for those who read the task; nothing else uses it.
    assets    files that the task opens itself: their bytes are part of the keys of finished work.
    before    the preprocessing of raw inputs, as the bytes of an ONNX file, which bundles include.
    shareable whether golden vectors may hold real samples; else they hold seeded synthetic inputs.
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
    outputs: tuple[str, ...] | Mapping[str, Output] = ("output",)
    lengths: Mapping[str, str] = field(default_factory=dict)
    stream: Any = None
    assets: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], bytes] | None = None
    shareable: bool = False

    @property
    def output(self) -> Output | None:
        """What the only output is; None where the task does not say it, or says what `edgekd.data.check` refuses."""
        from edgekd.outputs import Output

        given = tuple(self.outputs.values()) if isinstance(self.outputs, Mapping) else ()
        return given[0] if len(given) == 1 and isinstance(given[0], Output) else None

    @property
    def heads(self) -> Mapping[str, Output]:
        """{name: what it is} of several declared outputs; {} of one, and where `edgekd.data.check` refuses them."""
        from edgekd.outputs import Output

        given = self.outputs if isinstance(self.outputs, Mapping) else {}
        return given if len(given) > 1 and all(isinstance(o, Output) for o in given.values()) else {}

    @property
    def declared(self) -> Output | Mapping[str, Output] | None:
        """What the only output is, or {name: what it is} of several."""
        return self.heads or self.output

    def call(self, model: torch.nn.Module, inputs: Any) -> Any:
        """The outputs of a model of the task for inputs, by `forward` if the task has one: as it gives them, or {name:
        tensor} in the declared order of several outputs. A streaming model goes through whole sequences."""
        if self.stream is not None and (answers := self.stream.call(self, model, inputs)) is not None:
            return answers
        return self.by_name((self.forward or plainly)(model, inputs))

    def by_name(self, answer: Any) -> Any:
        """What a model gives, with the names of several declared outputs. Raises ValueError where they don't fit."""
        from edgekd.outputs import by_name

        return by_name(tuple(self.heads), answer) if self.heads else answer

    @property
    def traced(self) -> Callable[[torch.nn.Module, Any], Any] | None:
        """How a model is called where it becomes a graph, whose outputs are in the declared order; None: by itself."""
        return self.call if self.heads else self.forward


def plainly(model: torch.nn.Module, inputs: Any) -> Any:
    """The default `forward` of a task."""
    return model(inputs)


# ---------------------------------------------------------------- training


@dataclass
class Batch:
    """Rows of one split as tensors, all on the device of the training. `labels` [B, ...], or {output: [B, ...]} where
    the task declares several; `index` [B] int64: positions in the split;
    `view`: the number of the augmented view; `tags`: B tuples, None if no sample of the split has any; `part` [B]: the
    number of a row's position in its sample, where the rows are positions; `rows`: `index` as an array in the CPU's
    memory where the tensors are on another device; `steps` of the longest sample, where they differ in length and each
    step has a label, or a frame; `lengths` [B] of the samples, where they differ; `blank`: the class between the
    symbols of labels that are strings. These are [rows, L], filled with -1, the same for all frames of a sample."""

    inputs: Any
    labels: Any
    index: torch.Tensor
    weight: torch.Tensor
    view: int = 0
    tags: Sequence[tuple[str, ...]] | None = None
    part: torch.Tensor | None = None
    rows: np.ndarray | None = None
    steps: int | None = None
    lengths: torch.Tensor | None = None
    blank: int | None = None


@dataclass
class Signals:
    """A model's outputs for one batch. `output`: logits [B, C], None for a black box, which shows its `label` [B] only;
    `taps`: {dotted path of a layer: its output tensor}; `kind`: of the output (`edgekd.outputs`), "" where the task
    does not say it. Of several outputs `output` and `label` are {name: tensor}, and `heads` has the signals of each."""

    output: Any
    taps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    label: Any = None
    kind: str = ""
    heads: Mapping[str, Signals] = field(default_factory=dict)


# ---------------------------------------------------------------- finished work


@dataclass(frozen=True)
class Artifact:
    """An immutable result of a step in the store. `folder`: its place on this machine, not part of its identity.

    form    torch (weights.safetensors + model.json) | quantized (the same + grid.json) | weight_only (the same +
            blocks.json, blocks.safetensors) | onnx (model.onnx) | logits (logits.npy)
    files   {file name: sha256}
    inputs  {role: keys of the artifacts that it was made from}
    facts   JSON values from its stage: parameters, macs, epochs done, last losses, seconds
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
    """The result of a stage: the form of the files that it wrote into `run.folder`, and facts about them."""

    form: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The context of a stage. Files written into `folder` become the artifact's; `scratch` holds checkpoints, stays if
    the process is killed, and is removed once the artifact is finished. `progress(done, total, text)` updates the
    progress bar; `log(**event)` adds a line to log.jsonl; `data(split)` returns the loaded split
    (`edgekd.data.columns.Columns`). `device`: where models are trained, `cpu`, `cuda`, `cuda:1` or `mps`; a stage takes
    models from the CPU and leaves them there."""

    task: Task
    seed: int
    threads: int
    folder: Path
    scratch: Path
    data: Callable[[str], Any]
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    log: Callable[..., None] = lambda **event: None
    device: str = "cpu"


# ---------------------------------------------------------------- int8


@dataclass(frozen=True)
class Site:
    """The quantization parameters and integer range of one value: real = scale * (q - zero_point), q in [low, high].

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
    """The int8 quantization that a target's kernels need: bits of weights and of activations, per-channel or per-tensor
    weight scales. `pairs16`: weights are scaled so that no sum of two neighbouring products overflows 16 bits, in which
    some x86 kernels add them. A file then gives the same outputs on every CPU."""

    weight_bits: Annotated[int, Ge(2), Le(8)] = 8
    activation_bits: Annotated[int, Ge(2), Le(8)] = 8
    per_channel: bool = True
    pairs16: bool = True


@dataclass(frozen=True)
class Scheme(Int8):
    """A target's int8 facts, and those of one graph: `float_layers` keep float weights; `layer_bits` {layer: bits of
    its weight} overrides `weight_bits`."""

    float_layers: tuple[str, ...] = ()
    layer_bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """All sites of one captured graph. `graph`: the digest of the captured graph that the site names refer to."""

    graph: str
    scheme: Scheme
    sites: Mapping[str, Site]


# ---------------------------------------------------------------- devices


@dataclass(frozen=True)
class Runtime:
    """A runtime on a device. `name`: one of edgekd/runtimes, the user's own `package.module`, or `none` if edgekd has
    no runtime for it; `format`: of its files, "" for the first format that it reads."""

    name: Annotated[str, MinLen(1)] = "onnxruntime"
    version: str = ""
    format: str = ""


@dataclass(frozen=True)
class Deployment:
    """How a model goes to a device: the format of its file, and the runtime that opens it."""

    format: str = "onnx"
    runtime: str = "onnxruntime"

    @property
    def is_onnx(self) -> bool:
        return is_onnx(self.format)


def is_onnx(format: str | None) -> bool:
    """Whether files of a format are ONNX files: edgekd reads these itself; what is in others their runtime knows."""
    return format == Deployment.format


@dataclass(frozen=True)
class Target:
    """Facts of a kind of device and of its runtime: data, not code. None: not known, or different among devices of the
    kind.

    `core`: the name of the core that files run on, in lower case (cortex-a72): cores of one name have the same kernels
    and the same time per cycle; `cores`: their number; `clock_mhz`: the highest sustained clock; `caches`: {l1d, l1i,
    l2, l3: bytes}; `channel_multiple`: the multiple of channels that its kernels run fast at; `int8`: the quantization
    that its kernels compute exactly; `emulated_as`: the emulator's name (qemu's -cpu) for its CPU, or for a substitute
    CPU with the same kernels; `runtime`, and `others` if its file has several `[[runtime]]`: each gets its own
    candidates; `sources`: {fact: its source}."""

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
    """A machine that runs jobs. `run(job_folder, timeout, progress) -> out folder` copies a job to it, runs it and
    copies its output back (`timeout` in seconds, `progress(done, total)` over its schedule); `facts`: those of
    environment.describe() on that machine; `launch`: how an emulator starts a job's processes (hosts/emulator.py),
    whose times are never shown; `cores`: the numbers of the cores that the processes are pinned to; `lacks(runtime)`:
    problems with packages of a runtime that are not installed there; `versions(libraries)`: {library: its version} of
    those that are installed there."""

    name: str
    run: Callable[[Path, float, Callable[[int, int], None]], Path]
    facts: Mapping[str, Any]
    launch: Mapping[str, Any] | None = None
    cores: tuple[int, ...] = ()
    lacks: Callable[[str], list[Any]] = lambda runtime: []
    versions: Callable[[Sequence[str]], Mapping[str, str]] = lambda libraries: {}


# ---------------------------------------------------------------- observations


# the start of the note of an incomplete count, which no budget can be judged by
NOT_COUNTED = "not counted: "


@dataclass(frozen=True)
class Quantity:
    """A kind of measurement, declared by a probe (edgekd/probes) and read by `profile`, budgets, reports and schemas.

    `better`: the better direction; None: neither. `origin`: counted on the file (deterministic), measured, or only by
    emulation. `split`: whether it is measured on the samples of a split (quality), else on the file (cost). `repeats`:
    the unit of `n`, if not samples. `budget`: whether a rule may be on it.

    In reports: `heading`: of its column (default: name and unit); `column`: its position, the smallest leftmost (None:
    no column, it is only in the list of all figures); `keep`: its priority in narrow tables, the largest stays longest;
    0: only on the HTML page; `shown`: (unit, its size) if shown in another unit; `words`: the words for less and for
    more of it than the teacher's, for charts against quality."""

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
    """One figure of one artifact. `low` and `high`: 95 % interval; counted figures have low = value = high.

    `each`: the values whose median the figure is, per process or input, in order. Two figures with the same `pairing`
    (a timing session, a set of inputs) were measured interleaved, so their `each` are pairs. Both are empty where
    nothing can be paired."""

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
    """An artifact that competes for a target, or a reference. `id`: unique in a run and readable (`prune-0.5.int8`);
    candidates that differ only in the seed share a `point`; `form`: the format of its file; `file`: relative to the
    run's folder, None if it was not kept; `runtime`: the runtime that its figures were measured with, None if not
    recorded."""

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
    """The check of one budget rule. `place`: where the rule is written; `value`, `low` and `high` in `unit`."""

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
    """The result of a run for one target. `front` and `chosen`: ids of candidates; `verdict` None: the recipe has no
    gate."""

    front: tuple[str, ...]
    chosen: str | None
    verdict: Verdict | None
    checks: tuple[Check, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """`result.json`. `environment`: {id: facts of a machine}; `steps`: the steps made or reused, with seconds;
    `predictions`: {file in predictions/: sha256}, None before edgekd.result/2; `means`: {metric that is a multiple of
    the mean of its records: the multiple}."""

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
