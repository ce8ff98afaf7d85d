"""Exports a model to a file for a runtime, and checks that the file computes the same as the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from edgekd import environment
from edgekd.components import Part, Use
from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.inputs import named, positional
from edgekd.models import saved, streams
from edgekd.records import Artifact, Deployment, Made, Run
from edgekd.samples.rows import joined

if TYPE_CHECKING:
    from torch import fx, nn

    from edgekd.models.streams import Stream
    from edgekd.quantization.weight_blocks.blocks import Blocks
    from edgekd.records import Grid, Task

TOLERANCE = 1e-4  # of a float file, relative to the largest output
ROWS = 32  # samples to locate a difference with


@dataclass(frozen=True, kw_only=True)
class Export:
    """Exports a `torch` (float), `quantized` (int8) or `weight_only` (int4, int8 weights) artifact to a format, and
    compares file and artifact over the test split in the runtime. The facts say how equal they are."""

    format: Annotated[Use, Part("formats")] = Use("formats", Deployment().format)
    runtime: str = Deployment().runtime
    reads: ClassVar = ("test",)
    cpu_only: ClassVar = True

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        form, model = self.format.part(), _model(source, run)
        path = run.folder / f"model{form.SUFFIX}"
        run.progress(1, 3, "translate")
        names = _written(form, self.format.name, model, path, source, run)
        run.progress(2, 3, "compare")
        file = _File(path, form, names, environment.opened(self.runtime, path), model.names, model.outputs(run.task))
        facts = {"bytes": path.stat().st_size, **_compared(model, file, run)}
        facts |= {} if model.stream is None else {"stream": model.stream.fact}
        return Made(self.format.name, facts)


@dataclass(frozen=True)
class _Model:
    """The model to export: the captured `graph`; `module`, whose outputs the file must have; the `grid` of an int8
    model, or the `blocks` of a weight-only one. `inputs`: {name: samples of the test split}."""

    graph: fx.GraphModule
    module: nn.Module
    grid: Grid | None
    blocks: Mapping[str, Blocks]
    inputs: Mapping[str, np.ndarray]
    columns: Any
    stream: Stream | None = None

    @property
    def form(self) -> str:
        return "int8" if self.grid else "weight_only" if self.blocks else "float32"

    def few(self, rows: int = ROWS) -> tuple[Any, dict[str, np.ndarray]]:
        """The first samples as tensors and as arrays."""
        from edgekd import quantization

        if self.stream is not None:
            given = self.example(rows)
            return given, {name: tensor.numpy() for name, tensor in given.items()}
        index = np.arange(rows) % len(self.columns)
        return quantization.example_of(self.columns, rows), {n: a[index] for n, a in self.inputs.items()}

    def example(self, rows: int = 2) -> Any:
        """What the file takes of the first samples: of sequences the first step."""
        from edgekd import quantization

        given = quantization.example_of(self.columns, rows)
        return given if self.stream is None else self.stream.example(given)

    def outputs(self, task: Task) -> tuple[str, ...]:
        """The names of the file's outputs."""
        return tuple(task.outputs) if self.stream is None else self.stream.given

    @property
    def names(self) -> tuple[str, ...]:
        """Of the file's inputs."""
        return tuple(self.inputs if self.stream is None else self.example())


@dataclass(frozen=True)
class _File:
    """An exported file: `names` {site: the name of its value in the file}; `infer`: the runtime's function; names of
    its `inputs` and `outputs`."""

    path: Path
    form: Any
    names: Mapping[str, str]
    infer: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def answers(self, inputs: Any) -> list[np.ndarray]:
        """The outputs of the file for a batch of tensors: one, or {name: tensor} in the order of the file's inputs."""
        answered = self.infer(dict(zip(self.inputs, (t.numpy() for t in positional(inputs)), strict=True)))
        return [answered[name] for name in self.outputs]

    def where(self, model: _Model) -> str:
        """Where file and model first differ, if the format can tell."""
        if not hasattr(self.form, "difference"):
            return ""
        return self.form.difference(self.path, model.module, model.grid, model.blocks, self.names, *model.few())


def _model(source: Artifact, run: Run) -> _Model:
    from edgekd import quantization
    from edgekd.quantization.torch_graph.capture import of_task
    from edgekd.quantization.weight_blocks import blocks

    task, columns = run.task, run.data("test")
    example, grid, table = quantization.example_of(columns), None, {}
    if source.form == "quantized":
        graph, module, grid = quantization.load(source, task, example)
    elif source.form == "weight_only":
        graph, table = blocks.load(source, task, example)
        module = blocks.apply(graph, table)
    else:
        module = saved.load(source, task)
        graph = of_task(task, module, example)
    stream = None if task.stream is None else streams.of(task, saved.build(saved.record_of(source), task))
    found = _Model(graph, module, grid, table, named(columns.inputs, task.inputs[0]), columns, stream)
    count = len(_outputs(found)) - (0 if stream is None else len(stream.states))
    if count != len(task.outputs):
        message = f"the model has {count} outputs, but the task names {len(task.outputs)}: {', '.join(task.outputs)}"
        raise UsageError(Problem(f"task {task.name}: outputs", message, "name each output of the model"))
    return found


def _written(form: Any, name: str, model: _Model, path: Path, source: Artifact, run: Run) -> dict[str, str]:
    """Writes the file; returns {site: the name of its value in the file}."""
    import inspect

    metadata = {
        "edgekd.task": run.task.name,
        "edgekd.form": model.form,
        "edgekd.weights": source.files["weights.safetensors"],
    }
    if model.stream is not None:
        metadata[streams.STATE] = json.dumps(model.stream.states)
    given = {"metadata": metadata, "inputs": model.names, "outputs": model.outputs(run.task)}
    if model.blocks:
        if "blocks" not in inspect.signature(form.export).parameters:
            raise RunFailed(
                Problem(
                    "", f"the format {name} can't hold weights in blocks", "use the stage `quantize` for this target"
                )
            )
        given["blocks"] = model.blocks
    names = form.export(model.graph, model.grid, model.example(), path, **given)
    if not path.is_file():
        hint = "export(graph, grid, example, path, ...) writes the file at `path`"
        raise UsageError(Problem(f"format {name}", f"its `export` wrote no {path.name}", hint))
    return names


def _compared(model: _Model, file: _File, run: Run) -> dict[str, Any]:
    """Facts on how equal file and model are. Raises RunFailed where they differ."""
    from edgekd.data.columns import batches, few
    from edgekd.quantization.torch_graph.exact import Settled

    forward, stream = None if model.blocks else run.task.call, model.stream
    exact = None if model.grid is None else Settled(model.module)
    answered = []
    for batch in batches(model.columns, few(model.columns)):
        with environment.threads(run.threads):
            ours = _answer(exact or model.module, batch.inputs, None if exact else forward, stream)
            fake = _answer(model.module, batch.inputs, None, stream) if exact else []
        answered.append((ours, _filed(file, batch.inputs, stream), fake))
    ours, theirs, fake = (_joined(parts) for parts in zip(*answered, strict=True))
    if model.grid is None:
        return {"float": _near(ours, theirs, lambda: file.where(model))}
    return _equal(model, model.grid, file, ours, theirs, fake)


def _equal(
    model: _Model, grid: Grid, file: _File, ours: list[np.ndarray], theirs: list[np.ndarray], fake: list[np.ndarray]
) -> dict[str, Any]:
    """Facts on how equal an int8 file is to the quantized model, and to the fake-quantized model as it was trained."""
    from edgekd.quantization.torch_graph import check, sites

    found, plain = [], []
    floats = bool(grid.scheme.float_layers or sites.recurrent(model.graph))
    for a, b, fakes, site in zip(ours, theirs, fake, _outputs(model)[: len(ours)], strict=True):
        step = grid.sites[site].scale[0]
        found.append(check.compare(a, b, step, floats=floats))
        plain.append(check.compare(fakes, b, step))
        if found[-1].reasons:
            check.refuse(found[-1], file.where(model))
    facts = {
        name: asdict(min(e, key=lambda e: e.equal)) for name, e in (("equality", found), ("fake_quantized", plain))
    }
    more = file.form.audit(file.path, model.few()[1]) if hasattr(file.form, "audit") else {}
    if grid.scheme.pairs16 and more.get("saturation"):
        names = ", ".join(layer["name"] for layer in more["saturation"])
        text = f"sums of two neighbouring products overflow 16 bits in {names}"
        raise RunFailed(Problem("", text, "please report this: pairs16 should have prevented it"))
    return {**facts, **more}


def _filed(file: _File, inputs: Any, stream: Stream | None) -> list[np.ndarray]:
    """The outputs of a file; of sequences the answers, with the states that it gives itself."""
    import torch

    if stream is None:
        return file.answers(inputs)
    step = lambda feed: [torch.from_numpy(array) for array in file.answers(feed)]
    return [answer.numpy() for answer in stream.over(step, inputs)]


def _answer(
    module: nn.Module,
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    stream: Stream | None = None,
) -> list[np.ndarray]:
    """The outputs of a captured graph, or of a task's model by `forward`; of a graph of a step its answers to
    sequences."""
    import torch

    from edgekd.quantization.torch_graph.calibrate import call

    with torch.no_grad():
        if stream is not None and forward is None:
            return [answer.numpy() for answer in stream.over(lambda feed: call(module, feed), inputs)]
        outputs = (forward or call)(module, inputs)
    return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else positional(outputs))]


def _joined(batches: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    return [joined(parts) for parts in zip(*batches, strict=True)]


def _outputs(model: _Model) -> list[str]:
    """The sites of the graph's outputs; a value that was only moved has its source's site."""
    from edgekd.quantization.torch_graph.capture import ends
    from edgekd.quantization.torch_graph.sites import place

    tied = place(model.graph, model.grid.scheme.float_layers if model.grid is not None else ()).tied
    return [tied.get(n.name, n.name) for n in ends(model.graph)]


def _near(ours: list[np.ndarray], theirs: list[np.ndarray], where: Callable[[], str]) -> dict[str, float]:
    worst = max(
        float(np.abs(a - b).max(initial=0) / max(float(np.abs(a).max(initial=0)), 1e-6))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not worst <= TOLERANCE:
        raise RunFailed(
            f"the exported file differs from the model: outputs differ by {worst:.2g} of the largest output (allowed: "
            f"{TOLERANCE:g}){where()}"
        )
    return {"relative_difference": worst}
