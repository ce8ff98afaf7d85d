"""Int8 as a table: a captured graph with batch norms folded (`torch_graph.capture`), the sites of its values and
weights (`torch_graph.sites`), a grid of scales that calibration (`torch_graph.calibrate`) or training
(`torch_graph.fake`) finds, and the proof that a file computes what the fake-quantized model does (`torch_graph.check`).

Before sites are inserted: `torch_graph.equalize`, `smooth`. Once scales are fixed: `torch_graph.adaround`, then
`correction`. Float ONNX files from elsewhere, without torch: `onnx_graph`. Which layers get other bits or stay in
float: `diagnosis.sensitivity`, `diagnosis.mixed_precision`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx, nn

    from edgekd.records import Artifact, Task


def calibrated(model: nn.Module, batches: Iterable[Any], *, ranges: str = "minmax", **insert: Any) -> fx.GraphModule:
    """A model captured, with fake quantization at its sites and ranges from `batches` of inputs [B, ...]. Memory does
    not grow with them."""
    from itertools import chain

    from edgekd.quantization.torch_graph.calibrate import calibrate
    from edgekd.quantization.torch_graph.capture import capture
    from edgekd.quantization.torch_graph.fake import insert as insert_sites

    stream = iter(batches)
    first = next(stream)
    module = insert_sites(capture(model, first[:2]), **{"scheme": _default(), **insert})
    return calibrate(module, chain([first], stream), ranges)


def fake_quantized(model: nn.Module, inputs: Any, **insert: Any) -> fx.GraphModule:
    """A model ready for quantization-aware training, its ranges started from one batch of inputs."""
    from edgekd.quantization.torch_graph.fake import set_mode

    return set_mode(calibrated(model, [inputs], **insert), "train")


def load(artifact: Artifact, task: Task, example: Any) -> tuple[fx.GraphModule, fx.GraphModule, Any]:
    """(captured float graph, settled fake-quantized module, grid) of a `quantized` artifact, bit for bit as it was
    trained.

    `exact.Settled(module)` computes it as the integer kernels do."""
    from edgekd.models import saved
    from edgekd.quantization.grid import read
    from edgekd.quantization.torch_graph.capture import of_task
    from edgekd.quantization.torch_graph.fake import apply

    graph = of_task(task, saved.build(saved.record_of(artifact), task), example)
    graph.load_state_dict(saved.read_tensors(artifact.folder / "weights.safetensors"))
    grid = read(artifact.folder / "grid.json")
    return graph, apply(graph, grid), grid


def _default():
    from edgekd.records import Scheme

    return Scheme()


def example_of(columns: Any, rows: int = 2) -> Any:
    """The first rows of a split as tensors: what a model is captured with."""
    import numpy as np

    from edgekd.data.columns import take

    return take(columns, np.arange(rows, dtype=np.int64) % len(columns)).inputs
