"""Writes a model as a file of a runtime, and proves that the file computes what the model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from edgekd import environment
from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.inputs import length, named
from edgekd.models import saved
from edgekd.records import Artifact, Made, Run

if TYPE_CHECKING:
    from torch import nn

    from edgekd.records import Grid

TOLERANCE = 1e-4  # of a float file, relative to the largest output
ROWS = 32  # samples that a difference is looked for with


@dataclass(frozen=True, kw_only=True)
class Export:
    """model.onnx of a `torch` (float), `quantized` (int8) or `weight_only` (int4, int8 weights) artifact, compared with
    it over the test split. The product's facts say how equal."""

    format: Literal["onnx"] = "onnx"
    opset: Annotated[int, Ge(18), Le(24)] = 20
    reads: ClassVar = ("test",)

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        import onnx as library

        from edgekd import quantization
        from edgekd.data.columns import batches
        from edgekd.formats import _nbits, onnx
        from edgekd.quantization.qdq import saturation
        from edgekd.quantization.torch_graph import check
        from edgekd.quantization.torch_graph.capture import capture
        from edgekd.quantization.torch_graph.exact import Settled
        from edgekd.quantization.weight_blocks import blocks
        from edgekd.quantization.weight_blocks import check as check_blocks

        task, columns, path = run.task, run.data("test"), run.folder / "model.onnx"
        example = quantization.example_of(columns)
        names = tuple(example) if isinstance(example, Mapping) else task.inputs
        if source.form == "quantized":
            (graph, module, grid), table = quantization.load(source, task, example), {}
        elif source.form == "weight_only":
            (graph, table), grid = blocks.load(source, task, example), None
            module = blocks.apply(graph, table)
        else:
            module, table = saved.load(source, task), {}
            graph, grid = capture(module, example, task.forward), None
        if len(_outputs(graph, grid)) != len(task.outputs):
            message = (
                f"the model has {len(_outputs(graph, grid))} outputs, the task names {len(task.outputs)}: "
                f"{', '.join(task.outputs)}"
            )
            raise UsageError(Problem(f"task {task.name}: outputs", message, "name each output of the model"))
        run.progress(1, 3, "translate")
        metadata = {
            "edgekd.task": task.name,
            "edgekd.form": "int8" if grid else "weight_only" if table else "float32",
            "edgekd.weights": source.files["weights.safetensors"],
        }
        sites = onnx.export(
            _nbits.render(graph, table) if table else graph,
            grid,
            example,
            path,
            metadata=metadata,
            opset=self.opset,
            inputs=names,
            outputs=task.outputs,
        )
        run.progress(2, 3, "compare")
        rows = [b.inputs for b in batches(columns, 256)]
        with environment.threads(run.threads):
            ours = _joined(
                [
                    _answer(Settled(module), b) if grid else _answer(module, b, None if table else task.call)
                    for b in rows
                ]
            )
            fake = _joined([_answer(module, b) for b in rows]) if grid else []
        theirs = _file(path, columns.inputs, names, task.outputs)
        facts: dict[str, Any] = {"opset": self.opset, "bytes": path.stat().st_size}
        if grid is None:
            few = quantization.example_of(columns, ROWS)
            where = lambda: (
                check_blocks.first_difference(module, table, path, few, _some(columns, names)) if table else ""
            )
            return Made("onnx", {**facts, "float": _near(ours, theirs, where)})
        few, feed = quantization.example_of(columns, ROWS), _some(columns, names)
        found, plain = [], []
        for a, b, floats, site in zip(ours, theirs, fake, _outputs(graph, grid), strict=True):
            step = grid.sites[site].scale[0]
            found.append(check.compare(a, b, step, floats=bool(grid.scheme.float_layers)))
            plain.append(check.compare(floats, b, step))  # the model in plain floats, as it was trained
            if found[-1].reasons:
                check.refuse(found[-1], check.first_difference(module, grid, path, sites, few, feed))
        facts["equality"] = asdict(min(found, key=lambda e: e.equal))
        facts["fake_quantized"] = asdict(min(plain, key=lambda e: e.equal))
        layers = saturation.audit(library.load(path), feed)
        facts["saturation"] = [asdict(layer) for layer in layers if layer.can_saturate]
        if grid.scheme.pairs16 and facts["saturation"]:
            names = ", ".join(layer["name"] for layer in facts["saturation"])
            raise RunFailed(
                Problem(
                    "",
                    f"products of neighbours leave 16 bits in {names}",
                    "please report this: the lattice was to prevent it",
                )
            )
        return Made("onnx", {**facts, "float_kernels": onnx.float_kernels(path)})


def _answer(module: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None) -> list[np.ndarray]:
    """Outputs of a captured graph, or of a task's model by `forward`."""
    import torch

    from edgekd.quantization.torch_graph.calibrate import call

    with torch.no_grad():
        outputs = (forward or call)(module, inputs)
    return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _joined(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _file(path: Any, inputs: Any, names: tuple[str, ...], outputs: tuple[str, ...]) -> list[np.ndarray]:
    """What the file answers, in its runtime, 256 samples at a time."""
    from edgekd.runtimes.onnxruntime import load

    infer, arrays = load(str(path), 1), named(inputs, names[0])
    answered = [infer({n: a[i : i + 256] for n, a in arrays.items()}) for i in range(0, length(inputs), 256)]
    return [np.concatenate([a[name] for a in answered]) for name in outputs]


def _some(columns: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    index = np.arange(ROWS) % len(columns)
    return {n: a[index] for n, a in named(columns.inputs, names[0]).items()}


def _outputs(graph: Any, grid: Grid | None) -> list[str]:
    """The sites of the graph's outputs (a moved value lies on its source's)."""
    from edgekd.quantization.torch_graph.sites import place

    tied = place(graph, grid.scheme.float_layers if grid is not None else ()).tied
    return [tied.get(n.name, n.name) for node in graph.graph.nodes if node.op == "output" for n in node.all_input_nodes]


def _near(ours: list[np.ndarray], theirs: list[np.ndarray], where: Callable[[], str]) -> dict[str, float]:
    worst = max(
        float(np.abs(a - b).max(initial=0) / max(float(np.abs(a).max(initial=0)), 1e-6))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not worst <= TOLERANCE:
        raise RunFailed(
            f"the exported file is not the model: outputs differ by {worst:.2g} of the largest (at most "
            f"{TOLERANCE:g}){where()}"
        )
    return {"relative_difference": worst}
