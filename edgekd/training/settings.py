"""The settings of every stage that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from edgekd.components import Part, Use
from edgekd.models.precision import Precision
from edgekd.training.read_terms import Losses
from edgekd.training.terms import Term


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of every stage that trains. Stages extend it with their own fields; it has no methods.

    `batch` rows, `lr` peak learning rate, `warmup` share of the steps; `views` None: the task's own number.
    `augment_seed` is filled in by the plan, so that the teacher's cache and its students see the same views.
    `precision` bfloat16 or float16: the student's convolutions and matrix products in it (weights, norms and losses
    stay float32), channels last, with float16 and a scaled gradient; `teacher_precision`: the same for the teacher.
    `tf32`: float32 products on a GPU in TensorFloat-32; `compile`: the student's forward pass by torch.compile.
    `teachers` (filled in by the plan): the names of the stage's teachers; `combine`: the ensemble of several.
    `ema`: decay of the student's moving average, the teacher "ema". `balance`: terms are scaled by their gradients'
    norms, so that the weights are shares of the gradient. `accumulate`: batches whose gradients one step takes.
    `batch_norm`: with several processes, each of which has `batch` rows: statistics over all ranks, or per rank."""

    epochs: Annotated[int, Ge(1)] = 30
    batch: Annotated[int, Ge(1)] = 64
    lr: Annotated[float, Gt(0)] = 2e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Ge(0), Le(1)] = 0.9
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    clip: Annotated[float, Gt(0)] | None = None
    views: Annotated[int, Ge(1)] | None = None
    augment_seed: int = 0
    precision: Precision = "float32"
    teacher_precision: Precision = "float32"
    tf32: bool = False
    compile: bool = False
    accumulate: Annotated[int, Ge(1)] = 1
    batch_norm: Literal["synchronized", "per_rank"] = "synchronized"
    teachers: tuple[str, ...] = ()
    combine: Annotated[Use | None, Part("ensembles")] = None
    ema: Annotated[float, Ge(0), Lt(1)] = 0.999
    balance: bool = False
    losses: Annotated[tuple[Term, ...], Losses()] = (Term("cross_entropy"),)
