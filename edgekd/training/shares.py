"""How much a batch counts in its step: a step may take several batches, and each process has a part of each. The mean
of a term is over all rows of the step that count, so the mean over a part is multiplied by the part's share of the
sample weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.outputs import Output
from edgekd.records import Batch
from edgekd.training.ranks import One

if TYPE_CHECKING:
    import torch

    from edgekd.training.terms import Bound

SAMPLES = " "  # of terms that tap layers: every sample counts once; no output has this name


@dataclass(frozen=True)
class Share:
    """`ranks`: of this process in a batch, by output; `batch`: of the batch in its step; `count`: of processes."""

    ranks: Mapping[str, torch.Tensor]
    batch: Mapping[str, torch.Tensor]
    count: int

    def within(self, bound: Bound) -> torch.Tensor | float:
        """The share of this process in a term. All compute the same where rows of all are compared."""
        return 1 / self.count if bound.across else self.ranks[self._name(bound)]

    def of_step(self, bound: Bound) -> torch.Tensor:
        """The share of the batch in a term."""
        return self.batch[self._name(bound)]

    def own(self, output: str) -> torch.Tensor:
        """The share of this process and batch in what an ensemble learns on an output."""
        name = output if output in self.ranks else SAMPLES
        return self.ranks[name] * self.batch[name]

    def _name(self, bound: Bound) -> str:
        return SAMPLES if bound.term.on or bound.term.output not in self.ranks else bound.term.output


def shares(
    declared: Output | Mapping[str, Output] | None, batches: Sequence[Batch], ranks: One
) -> Sequence[Share | None]:
    """The share of each batch of a step; None for the only batch of the only process."""
    if len(batches) == 1 and ranks.count == 1:
        return [None]
    each = [_weights(declared, batch) for batch in batches]
    names, sums = list(each[0]), iter(ranks.summed([w for weights in each for w in weights.values()]))
    of_all = [{name: next(sums) for name in names} for _ in batches]
    whole = {name: sum(found[name] for found in of_all) for name in names}
    return [
        Share({n: _part(own[n], found[n]) for n in names}, {n: _part(found[n], whole[n]) for n in names}, ranks.count)
        for own, found in zip(each, of_all, strict=True)
    ]


def _part(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole in float32; 0 of nothing."""
    return (part / whole.clamp_min(1e-30)).float()


def _weights(declared: Output | Mapping[str, Output] | None, batch: Batch) -> dict[str, torch.Tensor]:
    """{output: the sum of the sample weights over its positions that count}."""
    weight = batch.weight.float()
    found, outputs = {SAMPLES: weight.sum()}, declared if isinstance(declared, Mapping) else {"": declared}
    for name, output in outputs.items():
        labels = (batch.labels or {}).get(name) if isinstance(declared, Mapping) else batch.labels
        found[name] = found[SAMPLES]
        if output is not None and output.blank is not None:  # frames count, which are as many as steps, or a part
            found[name] = found[SAMPLES] if batch.lengths is None else (batch.lengths * weight).sum()
        elif output is not None and output.scored and labels is not None and output.ignore_index is not None:
            keep = labels.reshape(len(batch.index), -1) != output.ignore_index
            found[name] = (keep.sum(1) * weight).sum()
    return found
