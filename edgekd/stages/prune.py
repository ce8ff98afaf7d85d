"""Prunes a trained student to a share of its MACs, and lets it recover by distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from edgekd.components import Part, Use
from edgekd.errors import Problem, near
from edgekd.models import saved
from edgekd.records import Artifact, Made, Run
from edgekd.stages.distill import KD
from edgekd.training.learn import learn
from edgekd.training.loop import seeded
from edgekd.training.read_terms import Losses
from edgekd.training.settings import Training
from edgekd.training.terms import Term

if TYPE_CHECKING:
    from torch import nn


NAMED = "names are those of `named_modules()`"


def _share(value: Any) -> Any:
    """A share of the MACs as a recipe says it: 0.7, or "max 0.7"."""
    text = (
        value.removeprefix("max ")
        if isinstance(value, str) and value.startswith("max ")
        else None
        if isinstance(value, str | bool)
        else value
    )
    try:
        if 0 < float(text) <= 1:
            return value
    except (TypeError, ValueError):
        pass
    raise PydanticCustomError("share", 'must be a share above 0 and up to 1, or such a limit: "max 0.7"')


@dataclass(frozen=True, kw_only=True)
class Prune(Training):
    """`macs`: the share of the source's MACs to keep, or "max 0.7": the nearest that can be reached below it; at 1 none
    is pruned, and the model is trained on like the others. Widths become multiples of `multiple_of` (the target's where
    a recipe doesn't say it); a layer that is no wider keeps its width. `criterion`: which channels go first. `keep`:
    layers, or modules that hold them, that are left as they are. The other settings are of the recovery."""

    macs: Annotated[float | str, BeforeValidator(_share)] = 0.5
    multiple_of: Annotated[int, Ge(1)] = 8
    criterion: Annotated[Use, Part("criteria")] = Use("criteria", "magnitude")
    keep: tuple[str, ...] = ()
    losses: Annotated[tuple[Term, ...], Losses()] = KD
    cache: bool = True
    reads: ClassVar = ("train",)

    @property
    def requested(self) -> tuple[float, bool]:
        """(the share of the MACs, whether it is the most that may be kept)"""
        return (float(self.macs.removeprefix("max ")), True) if isinstance(self.macs, str) else (self.macs, False)

    def check(self, model: nn.Module, example: Any, forward: Any = None) -> list[Problem]:
        """What stands against pruning `model` so far; the architecture alone decides. Asked before any training."""
        from edgekd import pruning

        names = [name for name, _ in model.named_modules() if name]
        found = [
            Problem("keep", f"the model has no layer `{name}`", near(name, names, NAMED, 3))
            for name in self.keep
            if name not in names
        ]
        share, at_most = self.requested
        return found + pruning.problems(
            model, example, share, self.multiple_of, at_most=at_most, forward=forward, protect=self.keep
        )

    def __call__(self, source: Artifact, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        import numpy as np

        from edgekd import pruning
        from edgekd.data.columns import take

        columns, record = run.data("train"), saved.record_of(source)
        module, example = (
            saved.load(source, run.task),
            take(columns, np.arange(2, dtype=np.int64) % len(columns)).inputs,
        )
        with seeded(run.seed, run.threads):
            share, at_most = self.requested
            plan = pruning.plan(
                module, example, share, self.multiple_of, at_most=at_most, forward=run.task.forward, protect=self.keep
            )
            history = pruning.prune(module, plan, self.criterion)
        macs, parameters = pruning.macs_and_parameters(module, example, run.task.forward)
        facts: dict[str, Any] = {
            "macs": macs,
            "parameters": parameters,
            "asked": self.macs,
            "reached": round(plan.reached, 6),
        }
        facts |= {
            "widths": {name: list(pair) for name, pair in plan.widths.items()},
            "refused": [str(r) for r in plan.refused],
        }
        run.log(event="pruned", **facts)
        facts |= learn(module, run, self, teacher=teacher)  # at macs = 1 too: points of a sweep have equal budgets
        saved.save(
            run.folder,
            module,
            model=record["model"],
            pruning=[*(record["pruning"] or []), *history],
            seed=record["seed"],
        )
        return Made("torch", facts)
