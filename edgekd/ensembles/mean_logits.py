"""The mean of the teachers' logits."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.records import Batch, Signals


def mean_logits(signals: Mapping[str, Signals], batch: Batch) -> Signals:
    """(1/M) sum_m z_m: logits [B, C] each -> [B, C], the geometric mean of the distributions (Hinton, Vinyals, Dean
    2015, section 1)."""
    import torch

    return Signals(torch.stack([s.output.float() for s in signals.values()]).mean(0))
