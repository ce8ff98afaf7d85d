"""Weight-only quantization: rounds the weights of a student's linear layers to 4 or 8 bits in blocks; activations stay
in float. It suits transformers, whose activations have outliers that 8 bits represent badly, and whose size is mostly
weights of linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, MinLen

from edgekd.errors import EnvironmentUnfit, Problem, UsageError, near
from edgekd.models import saved
from edgekd.records import Artifact, Made, Run
from edgekd.stages.quantize import calibration

if TYPE_CHECKING:
    from torch import fx, nn

    from edgekd.quantization.weight_blocks.blocks import Blocks

Bits = Literal[4, 8]


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """`method`: round to nearest (`rtn`), activation-aware scales (`awq`), rounding with error compensation (`gptq`),
    or `auto`: round to nearest with the first of `bits` that loses at most `tolerable_loss` points of the task's first
    metric on validation, or the best if none does. `bits`: 4 by default, 4 and then 8 for `auto`. `group_size`: weights
    of one output that share a scale. `samples` of the train split calibrate `awq` and `gptq`; layers whose inputs
    `group_size` does not divide are rounded to nearest by these too, and named in the fact `nearest`. `float_layers`
    (of the captured graph) keep float weights; so do layers that would not get smaller, or whose weight is also an
    embedding."""

    method: Literal["auto", "rtn", "awq", "gptq"] = "auto"
    bits: Bits | Annotated[tuple[Bits, ...], MinLen(1)] | None = None
    group_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = True
    tolerable_loss: Annotated[float, Ge(0)] = 1.0
    samples: Annotated[int, Ge(1)] = 256
    float_layers: tuple[str, ...] = ()
    cpu_only: ClassVar = True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train", "validation") if self.method == "auto" else ("train",)

    @property
    def tried(self) -> tuple[int, ...]:
        """The numbers of bits to try, in order."""
        if self.bits is None:
            return (4, 8) if self.method == "auto" else (4,)
        return (self.bits,) if isinstance(self.bits, int) else tuple(self.bits)

    def check(self, model: nn.Module, example: Any, forward: Any = None) -> list[Problem]:
        """Problems of settings that exclude each other or don't fit the model. Called before any training. Raises
        EnvironmentUnfit for missing packages."""
        from edgekd.quantization.torch_graph.capture import capture
        from edgekd.quantization.weight_blocks.neural_compressor import unfit

        if missing := unfit(self.method):
            raise EnvironmentUnfit(*missing)
        found = []
        if self.method != "auto" and len(self.tried) > 1:
            found.append(
                Problem("bits", f"`{self.method}` takes one number of bits", 'method = "auto", or a list in [sweep]')
            )
        if not self.symmetric and (self.method == "auto" or 8 in self.tried):
            hint = "set symmetric = true: neural-compressor computes asymmetric 8-bit weights wrong"
            found.append(Problem("symmetric", "false needs 4 bits, and a method other than `auto`", hint))
        if self.method == "awq" and 8 in self.tried:
            found.append(
                Problem(
                    "bits",
                    "`awq` always searches with 4 bits, so its scales don't fit 8",
                    'set method = "rtn"',
                )
            )
        return found + self.wrong(capture(model, example, forward))

    def wrong(self, graph: fx.GraphModule) -> list[Problem]:
        """Problems of settings that don't fit a captured graph."""
        from edgekd.quantization.weight_blocks.blocks import linears

        known = linears(graph)
        layers = f"its linear layers are {', '.join(known)}" if known else "`quantize` is for convolutions"
        found = []
        for name in (n for n in self.float_layers if n not in known):
            text = f"the model's graph has no linear layer `{name}`"
            found.append(Problem("float_layers", text, near(name, known, layers)))
        chosen = self.chosen(graph)
        if not chosen:
            found.append(Problem("", "the model has no linear layer whose weights would get smaller", layers))
        return found

    def chosen(self, graph: fx.GraphModule) -> dict[str, fx.Node]:
        """The layers that get integer weights."""
        from edgekd.quantization.weight_blocks.blocks import linears, stored_bytes

        shape = lambda node: getattr(graph, node.args[1].target).shape
        smaller = lambda node: stored_bytes(*shape(node), max(self.tried), self.group_size) < 4 * shape(node).numel()
        return {name: node for name, node in linears(graph).items() if name not in self.float_layers and smaller(node)}

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        from edgekd import quantization
        from edgekd.quantization.torch_graph import sites
        from edgekd.quantization.torch_graph.capture import graph_digest, of_task
        from edgekd.quantization.weight_blocks import blocks, neural_compressor
        from edgekd.training.loop import seeded

        if missing := neural_compressor.unfit(self.method):
            raise EnvironmentUnfit(*missing)
        columns, record = run.data("train"), saved.record_of(source)
        graph = of_task(run.task, saved.load(source, run.task), quantization.example_of(columns))
        if problems := self.wrong(graph):
            raise UsageError(*problems)
        layers = {name: _linear(graph, node) for name, node in self.chosen(graph).items()}
        facts: dict[str, Any] = {"method": self.method, "parameters": sum(p.numel() for p in graph.parameters())}
        with seeded(run.seed, run.threads):
            if self.method == "auto":
                score = _loss(graph, run)
                settings = {"group_size": self.group_size, "tolerable_loss": self.tolerable_loss}
                table, facts["trials"] = neural_compressor.autotune(layers, self.tried, score, **settings)
                lost = next(t["loss"] for t in facts["trials"] if t["bits"] == next(iter(table.values())).bits)
                facts |= {"loss": lost, "tolerable": lost <= self.tolerable_loss}
            else:
                table = self.searched(graph, layers, run)
        table = {name: table[name] for name in layers}
        facts |= {"bits": table[next(iter(table))].bits, "layers": list(table)}
        if self.method in ("awq", "gptq"):
            facts["nearest"] = [name for name, layer in layers.items() if layer.in_features % self.group_size]
        facts["float_layers"] = [name for name in sites.layers(graph) if name not in table]
        facts |= {
            "weight_bytes": sum(blocks.bytes_of(b) for b in table.values()),
            "float_bytes": sum(4 * b.integers.size for b in table.values()),
        }
        run.log(event="weight_only", **facts)
        saved.save(run.folder, graph, model=record["model"], pruning=record["pruning"], seed=record["seed"])
        blocks.write(table, graph_digest(graph), run.folder)
        return Made("weight_only", facts)

    def searched(self, graph: fx.GraphModule, layers: Mapping[str, nn.Linear], run: Run) -> dict[str, Blocks]:
        """The blocks that one method finds. `awq` may move scales into the norms of `graph`, whose outputs stay the
        same."""
        from edgekd.quantization.watch import watch
        from edgekd.quantization.weight_blocks import awq, blocks, neural_compressor

        ((bits,), settings) = self.tried, {"group_size": self.group_size, "symmetric": self.symmetric}
        if self.method == "rtn":
            return neural_compressor.rtn(layers, bits=bits, **settings)
        nodes = {n.name: n for n in graph.graph.nodes}
        nearest = {name: layer for name, layer in layers.items() if layer.in_features % self.group_size}
        table = neural_compressor.rtn(nearest, bits=bits, **settings) if nearest else {}
        columns, groups = run.data("train"), awq.groups(graph, layers.keys() - nearest)
        for number, (value, names) in enumerate(groups.items()):
            run.progress(number, len(groups), ", ".join(names))
            # gptq also compensates the errors of earlier layers
            now = blocks.apply(graph, table) if self.method == "gptq" else graph
            read = [
                seen[value].contiguous()
                for seen in watch(now, calibration(columns, min(self.samples, len(columns))), {value})
            ]
            theirs = {name: layers[name] for name in names}
            if self.method == "gptq":
                table |= neural_compressor.gptq(theirs, read, bits=bits, **settings)
            else:
                found, gain = neural_compressor.awq(theirs, read, bits=bits, **settings)
                table |= awq.absorbed(graph, nodes[value], found, gain)
        return table


def _linear(graph: fx.GraphModule, node: fx.Node) -> nn.Linear:
    from torch import nn

    weight = getattr(graph, node.args[1].target).detach()
    bias = getattr(graph, node.args[2].target).detach() if len(node.args) > 2 and node.args[2] is not None else None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight.data = weight.clone()
    if bias is not None:
        made.bias.data = bias.clone()
    return made


def _loss(graph: fx.GraphModule, run: Run):
    """A function from a table of blocks to the points of the task's first metric that the model loses with it on
    validation."""
    import torch

    from edgekd.data.columns import batches
    from edgekd.quantization.torch_graph.calibrate import call
    from edgekd.quantization.weight_blocks import blocks

    if not run.task.metrics or run.data("validation").labels is None:
        raise UsageError(
            Problem(f"task {run.task.name}", "`auto` needs a metric and labels on validation", 'set method = "rtn"')
        )
    metric, columns = run.task.metrics[0], run.data("validation")

    def figure(module: nn.Module) -> float:
        rows = []
        with torch.no_grad():
            for batch in batches(columns, 256):
                made = call(module, batch.inputs)
                rows.append([o.numpy() for o in (made if isinstance(made, tuple) else (made,))])
        outputs = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        answers = outputs[0] if len(outputs) == 1 else dict(zip(run.task.outputs, outputs, strict=True))
        return metric.value(metric.records(answers, columns.labels))

    best, sign = figure(graph), 1 if metric.better == "higher" else -1

    def loss(table: Mapping[str, Blocks]) -> float:
        return sign * (best - figure(blocks.apply(graph, table)))

    return loss
