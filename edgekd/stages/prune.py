"""Prunes a trained student to a share of its MACs, and fine-tunes it by distillation."""

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
    """Validates a share of the MACs: 0.7, or "max 0.7"."""
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


def _layers(value: Any) -> Any:
    """Validates names of layers: a share is what `macs` takes."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    hint = 'keep = ["stem"]: these layers are not pruned; the share of the MACs to keep is `macs`'
    raise PydanticCustomError("layers", "must be a list of names of layers", {"hint": hint})


@dataclass(frozen=True, kw_only=True)
class Prune(Training):
    """`macs`: the share of the source's MACs to keep, or "max 0.7" for the nearest share below it that can be reached;
    1 prunes nothing and only fine-tunes. Widths become multiples of `multiple_of` (by default the target's); a layer
    that is not wider keeps its width. `criterion`: ranks the channels. `keep`: layers, or modules that contain them,
    that are not pruned. The other settings are those of the fine-tuning."""

    macs: Annotated[float | str, BeforeValidator(_share)] = 0.5
    multiple_of: Annotated[int, Ge(1)] = 8
    criterion: Annotated[Use, Part("criteria")] = Use("criteria", "magnitude")
    keep: Annotated[tuple[str, ...], BeforeValidator(_layers)] = ()
    losses: Annotated[tuple[Term, ...], Losses()] = KD
    cache: bool = True
    reads: ClassVar = ("train",)

    @property
    def requested(self) -> tuple[float, bool]:
        """(the requested share of the MACs, whether it is an upper limit)."""
        return (float(self.macs.removeprefix("max ")), True) if isinstance(self.macs, str) else (self.macs, False)

    def check(self, model: nn.Module, example: Any, forward: Any = None) -> list[Problem]:
        """Problems with pruning `model` this far, which depend only on the architecture. Called before any training."""
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
                module, example, share, self.multiple_of, at_most=at_most, forward=run.task.traced, protect=self.keep
            )
            history = pruning.prune(module, plan, self.criterion)
        macs, parameters = pruning.macs_and_parameters(module, example, run.task.traced)
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
        facts |= learn(module, run, self, teacher=teacher)  # also at macs = 1: points of a sweep get equal training
        saved.save(
            run.folder,
            module,
            model=record["model"],
            pruning=[*(record["pruning"] or []), *history],
            seed=record["seed"],
        )
        return Made("torch", facts)
