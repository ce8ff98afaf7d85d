"""Batches and outputs as rows: every position of a batch (a pixel, a token, a yes-or-no label) is one row for losses
and ensembles, which take logits [rows, classes]. Positions that don't count are left out, so that means are over what
counts, once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.models import scores
from edgekd.outputs import Output
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """`batch`: as given; `flat`: with one row per position that counts (`part`: the number of its position in the
    sample); `keep`: which positions count, None for all."""

    batch: Batch
    flat: Batch
    output: Output | None = None
    keep: torch.Tensor | None = None

    def of(self, signals: Signals) -> Signals:
        """The output as rows: logits [rows, classes] where it is scored, else as it is."""
        if self.output is None:
            return signals
        if not self.output.scored:
            return dataclasses.replace(signals, kind=self.output.kind)
        output = None if signals.output is None else self._kept(scores.rows(self.output, signals.output))
        label = None if signals.label is None else self._kept(signals.label.reshape(-1))
        return dataclasses.replace(signals, output=output, label=label, kind=self.output.kind)

    def _kept(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.keep is None else rows[self.keep]


def rows_of(output: Output | None, batch: Batch, seen: Signals) -> Rows:
    """The rows of a batch, for the positions of a model's output; a batch as it is where the task declares nothing."""
    import torch

    if output is None or not output.scored or seen.output is None:
        return Rows(batch, batch, output)
    count = len(scores.rows(output, seen.output)) // len(batch.index)
    repeated = lambda values: values.repeat_interleave(count)
    labels = None if batch.labels is None else batch.labels.reshape(-1)
    part = torch.arange(count, device=seen.output.device).repeat(len(batch.index))
    keep = None if labels is None or output.ignore_index is None else labels != output.ignore_index
    chosen = lambda values: values if keep is None or values is None else values[keep]
    if labels is not None and output.kind == "yes_no":
        labels = labels.long()
    tags = batch.tags if batch.tags is None or count == 1 else [tags for tags in batch.tags for _ in range(count)]
    if tags is not None and keep is not None:
        tags = [tags for tags, kept in zip(tags, keep.tolist(), strict=True) if kept]
    index, weight = (chosen(repeated(values)) for values in (batch.index, batch.weight))
    flat = dataclasses.replace(
        batch, labels=chosen(labels), index=index, weight=weight, tags=tags, part=chosen(part), rows=None
    )
    return Rows(batch, flat, output, keep)
