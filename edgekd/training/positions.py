"""Batches and outputs as rows: every position of a batch (a pixel, a token, a yes-or-no label) is one row for losses
and ensembles, which take logits [rows, classes]. Positions that don't count are left out, so that means are over what
counts, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.models import scores
from edgekd.outputs import Output, frames
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """`batch`: as given; `flat`: with one row per position that counts (`part`: the number of its position in the
    sample); `keep`: which positions count, None for all; `heads`: the rows of each of several outputs; `frames`: of an
    output with a blank the number of its frames, at which others' answers end."""

    batch: Batch
    flat: Batch
    output: Output | None = None
    keep: torch.Tensor | None = None
    heads: Mapping[str, Rows] = field(default_factory=dict)
    frames: int | None = None

    def head(self, name: str) -> Rows:
        """The rows of one of several outputs; of the only output, and where a term names none, these."""
        return self.heads.get(name, self)

    def of(self, signals: Signals) -> Signals:
        """The output as rows: logits [rows, classes] where it is scored, else as it is; of several outputs each."""
        if self.heads:
            each = {name: rows.of(_alone(signals, name)) for name, rows in self.heads.items()}
            return dataclasses.replace(signals, heads=each)
        if self.output is None:
            return signals
        if not self.output.scored:
            return dataclasses.replace(signals, kind=self.output.kind)
        output = None if signals.output is None else self._kept(scores.rows(self.output, self._cut(signals.output)))
        label = None if signals.label is None else self._kept(self._cut(signals.label, 1).reshape(-1))
        return dataclasses.replace(signals, output=output, label=label, kind=self.output.kind)

    def _cut(self, values: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        """Answers that have room for the longest sample of the split, as far as the batch goes."""
        if self.frames is None or self.output is None:
            return values
        return values.narrow(scores.steps_of(self.output) if axis is None else axis, 0, self.frames)

    def _kept(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.keep is None else rows[self.keep]


def head(signals: Signals, name: str) -> Signals:
    """The signals of one of several outputs; of the only output, and where a term names none, these."""
    return signals.heads.get(name, signals)


def _alone(signals: Signals, name: str) -> Signals:
    """What a model gives for one of several outputs."""
    of = lambda values: values.get(name) if isinstance(values, Mapping) else None
    return Signals(of(signals.output), signals.taps, of(signals.label))


def rows_of(output: Output | Mapping[str, Output] | None, batch: Batch, seen: Signals) -> Rows:
    """The rows of a batch, for the positions of a model's output; a batch as it is where the task declares nothing. Of
    several outputs, {name: what it is}, those of each."""
    import torch

    if isinstance(output, Mapping):
        labels = batch.labels or {}
        alone = lambda name: dataclasses.replace(batch, labels=labels.get(name))
        each = {name: rows_of(kind, alone(name), _alone(seen, name)) for name, kind in output.items()}
        return Rows(batch, batch, heads=each)
    if output is None or not output.scored or seen.output is None:
        return Rows(batch, batch, output)
    count = len(scores.rows(output, seen.output)) // len(batch.index)
    repeated = lambda values: values.repeat_interleave(count)
    strings = output.blank is not None
    labels = None if batch.labels is None else _labels(output, batch, count)
    part = torch.arange(count, device=seen.output.device).repeat(len(batch.index))
    keep = None if labels is None or output.ignore_index is None else labels != output.ignore_index
    if strings:
        ends = None if batch.lengths is None else frames(batch.lengths, int(batch.lengths.max()), count)
        keep = None if ends is None else part < repeated(ends)
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
    flat.blank = output.blank
    return Rows(batch, flat, output, keep, frames=count if strings else None)


def _labels(output: Output, batch: Batch, count: int) -> torch.Tensor:
    """The labels of rows [rows]; [rows, C] of soft ones; of strings, [rows, L] for all frames, filled with -1."""
    if output.blank is None:
        soft = output.kind == "classes" and batch.labels.is_floating_point() and batch.labels.ndim == 2
        return batch.labels if soft else batch.labels.reshape(-1)
    labels = batch.labels.masked_fill(batch.labels == output.ignore_index, -1)
    return labels.repeat_interleave(count, 0)
