"""Quantizes a trained student to int8: from calibration alone (`ptq`), or fine-tuned with its roundings in place (`qat`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from edgekd import models
from edgekd.records import Artifact, Made, Run, Scheme
from edgekd.stages.distill import KD
from edgekd.train import Training, learn


@dataclass(frozen=True, kw_only=True)
class Quantize(Training):
    """`ranges`: what the lattices start from, on `samples` of the train split. `observer`: in training, ranges follow a moving average
    (`averaged`, still for the last `frozen` share of the epochs) or are learned by gradient (`learned`). `weight_bits` 7 where 16-bit
    products would saturate; a target can lower it."""

    mode: Literal["qat", "ptq"] = "qat"
    ranges: Literal["minmax", "percentile", "entropy", "mse"] = "minmax"
    observer: Literal["averaged", "learned"] = "averaged"
    samples: Annotated[int, Ge(1)] = 512
    weight_bits: Annotated[int, Ge(2), Le(8)] = 8
    frozen: Annotated[float, Gt(0), Le(1)] = 0.5
    epochs: Annotated[int, Ge(1)] = 10
    lr: Annotated[float, Gt(0)] = 5e-4
    precision: Literal["float32"] = "float32"  # a lattice's values are not bfloat16's
    losses: tuple[dict[str, Any], ...] = KD
    cache: bool = True
    reads: ClassVar = ("train",)

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        from edgekd import quantization
        from edgekd.quantization import fake, grid
        from edgekd.quantization.calibrate import calibrate, call
        from edgekd.quantization.capture import capture
        from edgekd.train import seeded

        columns, record = run.data("train"), models.record_of(source)
        graph = capture(models.load(source, run.task), quantization.example_of(columns), run.task.forward)
        module = fake.insert(graph, Scheme(weight_bits=self.weight_bits), learned=self.mode == "qat" and self.observer == "learned")
        with seeded(run.seed, run.threads):
            calibrate(module, _calibration(columns, min(self.samples, len(columns))), self.ranges)
        facts: dict[str, Any] = {"samples": min(self.samples, len(columns)), "parameters": sum(p.numel() for p in graph.parameters())}
        if self.mode == "qat":
            fake.set_mode(module, "train")
            still = self.epochs - max(1, round(self.frozen * self.epochs))
            facts |= learn(module, run, self, teacher=teacher, forward=call, on_epoch=lambda epoch: fake.freeze(module) if epoch >= still else None)
        found = fake.settle(module.eval())
        graph.load_state_dict({name: t for name, t in module.state_dict().items() if name in graph.state_dict()})
        models.save(run.folder, graph, model=record["model"], pruning=record["pruning"], seed=record["seed"])
        grid.write(found, run.folder / "grid.json")
        return Made("quantized", facts)


def _calibration(columns: Any, samples: int):
    """Inputs of the first `samples` in a fixed shuffled order, 64 at a time."""
    from edgekd.sources.columns import take
    from edgekd.sources.epochs import order

    rows = order(0, 0, len(columns))[:samples]
    for start in range(0, samples, 64):
        yield take(columns, rows[start : start + 64]).inputs
