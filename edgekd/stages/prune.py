"""Prunes a student's coupled channels to a share of its multiply-accumulates, then recovers it by distillation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from edgekd import components, models, pruning
from edgekd.errors import Problem, UsageError
from edgekd.records import Artifact, Made, Run
from edgekd.stages.distill import KD
from edgekd.train import Training, learn, seeded


@dataclass(frozen=True, kw_only=True)
class Prune(Training):
    """`macs`: the share to keep (1.0: none is pruned, only fine-tuned). `multiple_of`: widths are multiples of it; a target can raise it.
    `keep`: layers (dotted paths) whose channels all stay."""

    macs: Annotated[float, Gt(0), Le(1)] = 0.5
    multiple_of: Annotated[int, Ge(1)] = 8
    criterion: str = "magnitude"
    keep: tuple[str, ...] = ()
    losses: tuple[dict[str, Any], ...] = KD
    cache: bool = True
    reads: ClassVar = ("train",)

    def check(self, model: Any, example: Any, forward: Any = None) -> list[Problem]:
        """What is wrong with these settings for this model; asked before any training."""
        try:
            components.find("criteria", self.criterion)
        except UsageError as error:
            return [dataclasses.replace(p, place="criterion") for p in error.problems]
        layers = dict(model.named_modules())
        unknown = [Problem("keep", f"the model has no layer `{k}`", "names are those of `named_modules()`") for k in self.keep if k not in layers]
        try:
            found = pruning.plan(model, example, self.macs, self.multiple_of, forward, self.keep)
        except UsageError as error:
            return [*unknown, *error.problems]
        broken = pruning.trial(model, example, found.widths, forward)
        hint = "name it in `keep = [...]`, or write the forward without fixed channel counts"
        refused = [Problem("model", f"`{root}` can't be pruned: {why}", hint) for root, why in broken.items()]
        return [*unknown, *pruning.problems(found, self.multiple_of), *refused]

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        import numpy as np

        from edgekd.sources.columns import take

        record, module = models.record_of(source), models.load(source, run.task)
        columns = run.data("train")
        example = take(columns, np.arange(2, dtype=np.int64) % len(columns)).inputs
        before, _ = pruning.macs_and_parameters(module, example, run.task.forward)
        found = pruning.plan(module, example, self.macs, self.multiple_of, run.task.forward, self.keep)
        if pruning.problems(found, self.multiple_of):
            raise UsageError(*pruning.problems(found, self.multiple_of))
        with seeded(run.seed, run.threads):
            history = pruning.prune(module, example, found.widths, components.find("criteria", self.criterion), run.task.forward)
        after, parameters = pruning.macs_and_parameters(module, example, run.task.forward)
        run.log(event="pruned", asked=self.macs, share=after / before, widths=dict(found.widths), kept=dict(found.fixed))
        module.requires_grad_(True)
        facts = learn(module, run, self, teacher=teacher)
        models.save(run.folder, module, model=record["model"], pruning=[*(record["pruning"] or []), *history])
        return Made("torch", {**facts, "parameters": parameters, "macs": after, "share": after / before, "widths": dict(found.widths)})
