"""Quantizes a trained student to int8: by calibration only (`ptq`), or fine-tuned with fake quantization (`qat`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from edgekd.components import Part, Use
from edgekd.errors import Problem, UsageError, closest, meant
from edgekd.models import saved, streams
from edgekd.records import Artifact, Made, Run, Scheme
from edgekd.stages.distill import KD
from edgekd.training.learn import learn
from edgekd.training.read_terms import Losses
from edgekd.training.settings import Training
from edgekd.training.terms import Term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import fx, nn

    from edgekd.models.streams import Stream


@dataclass(frozen=True, kw_only=True)
class Quantize(Training):
    """`ranges`: the calibration method, with `samples` of the train split. `observer`: during training, ranges follow a
    moving average (`averaged`, frozen for the last `frozen` share of the epochs) or are learned by gradient
    (`learned`).

    `pairs16` scales weights so that no products saturate in kernels that add two of them in 16 bits (x86 with AVX2,
    without VNNI): a file then gives the same outputs on every CPU. False is refused if the recipe has such a target.
    `layer_bits` {layer: bits of its weight}; `per_channel`: per-channel weight scales, else per-tensor. `weight_bits`
    and `per_channel` are the target's by default, and refused where its kernels don't support them.

    `float_layers` keep float weights; values that no integer layer computes or reads stay in float too. Layers are
    those of the captured graph (`sites.layers`). `before`: transformations that make the model easier to quantize,
    before calibration; `after`: corrections of the rounding errors after calibration, with `ptq`; both in the order
    given."""

    mode: Literal["qat", "ptq"] = "qat"
    ranges: Annotated[Use, Part("ranges")] = Use("ranges", "minmax")
    observer: Literal["averaged", "learned"] = "averaged"
    samples: Annotated[int, Ge(1)] = 512
    weight_bits: Annotated[int, Ge(2), Le(8)] = 8
    float_layers: tuple[str, ...] = ()
    layer_bits: dict[str, Annotated[int, Ge(2), Le(8)]] = field(default_factory=dict)
    per_channel: bool = True
    before: tuple[Literal["equalize", "smooth"], ...] = ()
    after: tuple[Literal["adaround", "bias_correction"], ...] = ()
    pairs16: bool = True
    frozen: Annotated[float, Gt(0), Le(1)] = 0.5
    epochs: Annotated[int, Ge(1)] = 10
    lr: Annotated[float, Gt(0)] = 5e-4
    precision: Literal["float32"] = "float32"  # bfloat16 can't hold all quantized values
    tf32: Literal[False] = False  # nor can TensorFloat-32
    compile: Literal[False] = False  # ranges are read at every step
    losses: Annotated[tuple[Term, ...], Losses()] = KD
    cache: bool = True
    reads: ClassVar = ("train",)

    def check(self, model: nn.Module, example: Any, forward: Any = None) -> list[Problem]:
        """Problems of settings that exclude each other, and of unknown layers. Called before any training."""
        found = []
        if self.mode == "qat" and self.after:
            found.append(
                Problem(
                    "after",
                    "works only without training, which corrects rounding errors itself",
                    'set mode = "ptq", or leave it out',
                )
            )
        if "adaround" in self.after[1:] and "bias_correction" in self.after[: self.after.index("adaround")]:
            found.append(
                Problem(
                    "after",
                    "`adaround` would change the rounding after biases are corrected for it",
                    'write after = ["adaround", "bias_correction"]',
                )
            )
        if self.float_layers or self.layer_bits:
            from edgekd.quantization.torch_graph.capture import capture
            from edgekd.quantization.torch_graph.sites import layers

            found += _named(layers(capture(model, example, forward)), self.float_layers, self.layer_bits)
        return found

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        from edgekd import quantization
        from edgekd.models import device
        from edgekd.quantization import grid
        from edgekd.quantization.torch_graph import fake
        from edgekd.quantization.torch_graph.calibrate import calibrate, call
        from edgekd.quantization.torch_graph.capture import of_task
        from edgekd.quantization.torch_graph.sites import layers, recurrent
        from edgekd.training.loop import seeded

        samples = lambda: calibration(columns, min(self.samples, len(columns)), stepped)
        columns, record = run.data("train"), saved.record_of(source)
        loaded = saved.load(source, run.task)
        graph = of_task(run.task, loaded, quantization.example_of(columns))
        stream = streams.of(run.task, loaded)
        stepped = None if stream is None else partial(steps, stream, graph)
        if problems := _named(layers(graph), self.float_layers, self.layer_bits):
            raise UsageError(*problems)
        given = {
            name: getattr(self, name)
            for name in ("weight_bits", "per_channel", "pairs16", "float_layers", "layer_bits")
        }
        scheme = Scheme(**given)
        facts: dict[str, Any] = {
            "samples": min(self.samples, len(columns)),
            "parameters": sum(p.numel() for p in graph.parameters()),
        }
        facts |= {"recurrent": kept} if (kept := recurrent(graph)) else {}
        with seeded(run.seed, run.threads, run.device), device.arithmetic(run.device):
            facts |= {name: _equalized(name, graph, samples()) for name in self.before}
            module = fake.insert(graph, scheme, learned=self.mode == "qat" and self.observer == "learned")
            inputs = (device.moved(x, run.device) for x in samples())
            calibrate(device.placed(module, run.device), inputs, self.ranges.name, **self.ranges.settings)
            device.placed(module, device.CPU)
        if self.mode == "qat":
            fake.set_mode(module, "train")
            still = self.epochs - max(1, round(self.frozen * self.epochs))
            facts |= learn(
                module,
                run,
                self,
                teacher=teacher,
                forward=call if stream is None else partial(_whole, stream),
                on_epoch=lambda epoch: fake.freeze(module) if epoch >= still else None,
            )
        found = fake.settle(module.eval())
        with seeded(run.seed, run.threads):
            facts |= {name: _corrected(name, module, graph, samples(), run.seed) for name in self.after}
        graph.load_state_dict({name: t for name, t in module.state_dict().items() if name in graph.state_dict()})
        saved.save(run.folder, graph, model=record["model"], pruning=record["pruning"], seed=record["seed"])
        grid.write(found, run.folder / "grid.json")
        return Made("quantized", facts)


def _named(known: Mapping[str, str], float_layers: Sequence[str], layer_bits: Mapping[str, int]) -> list[Problem]:
    """Problems of the named layers; `known`: {layer: attribute of its weight}. Layers that share a weight need the same
    settings: the weight is stored once, and integers in one layer are integers in all."""
    found = []
    for place, names in (("float_layers", float_layers), ("layer_bits", tuple(layer_bits))):
        for name in names:
            if name not in known:
                hint = f"{meant(closest(name, known), '')} its layers are {', '.join(known)}".lstrip()
                found.append(Problem(place, f"the model's graph has no layer `{name}`", hint))
            given = layer_bits.get(name) if place == "layer_bits" else None
            for other in [o for o in known if name in known and known[o] == known[name] and o != name]:
                if other not in names or (given is not None and layer_bits[other] != given):
                    found.append(
                        Problem(place, f"`{name}` shares its weight with `{other}`", "name both with the same setting")
                    )
    found += [
        Problem("layer_bits", f"`{name}` is also in float_layers", "name it in one of them")
        for name in layer_bits
        if name in float_layers
    ]
    return found


def _equalized(name: str, graph: fx.GraphModule, batches: Any) -> list[list[Any]]:
    """Transforms a captured graph in place so that it is easier to quantize; returns the layers changed together."""
    from edgekd.quantization.torch_graph.equalize import equalize
    from edgekd.quantization.torch_graph.smooth import smooth

    touched = (
        equalize(graph) if name == "equalize" else [(norm, *layers) for norm, layers in smooth(graph, batches).items()]
    )
    return [list(names) for names in touched]


def _corrected(name: str, module: fx.GraphModule, graph: fx.GraphModule, batches: Any, seed: int) -> dict[str, Any]:
    """Corrects the rounding errors of a quantized `module` in place, with the same quantization parameters; returns
    {layer: its change}."""
    from edgekd.quantization.torch_graph.adaround import adaround
    from edgekd.quantization.torch_graph.correction import correct

    if name == "bias_correction":
        return correct(module, graph, batches)
    return {layer: dataclasses.asdict(change) for layer, change in adaround(module, graph, batches, seed=seed).items()}


def steps(stream: Stream, graph: nn.Module, inputs: Any) -> Iterator[dict[str, Any]]:
    """What a graph of a step gets at each step of sequences, with the states that it gives itself. Of sequences of
    different length the longest come first: none goes on behind its end."""
    import torch

    from edgekd.quantization.torch_graph.calibrate import call

    with torch.no_grad():
        yield from (feed for feed, _ in stream.run(lambda feed: call(graph, feed), inputs, ends=True))


def _whole(stream: Stream, module: nn.Module, inputs: Any) -> Any:
    """The answers of a graph of a step to sequences."""
    from edgekd.quantization.torch_graph.calibrate import call

    answers = stream.over(lambda feed: call(module, feed), inputs)
    return answers if len(answers) > 1 else answers[0]


def calibration(columns: Any, samples: int, stepped: Callable[[Any], Iterator[Any]] | None = None):
    """Yields the inputs of the first `samples` in a fixed shuffled order, 64 at a time; of different lengths sorted by
    them, each length by itself, so that no range is of what fills a batch. With `stepped`, the steps of the
    sequences."""
    from edgekd.data.columns import even, take
    from edgekd.data.epochs import order

    rows = order(0, 0, len(columns))[:samples]
    if columns.lengths is not None:
        rows = rows[np.argsort(columns.lengths[rows], kind="stable")]
    if stepped is not None:  # the longest first: those that go on come first
        for start in range(0, len(rows), 64):
            yield from stepped(take(columns, rows[::-1][start : start + 64].copy()).inputs)
        return
    for part in even(columns, rows, 64):
        yield take(columns, part).inputs
