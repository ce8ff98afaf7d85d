"""The mean of the teachers' logits."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.ensembles._given import check_shown
from edgekd.records import Batch, Signals


def mean_logits(signals: Mapping[str, Signals], batch: Batch) -> Signals:
    """(1/M) sum_m z_m: logits [B, C] each -> [B, C], the geometric mean of the distributions (Hinton, Vinyals, Dean
    2015, section 1).

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> sure = Signals(torch.tensor([[4.0, 0.0], [4.0, 0.0]]))
    >>> unsure = Signals(torch.tensor([[0.0, 0.1], [0.0, 0.1]]))
    >>> mean_logits({"sure": sure, "unsure": unsure}, batch).output
    tensor([[2.0000, 0.0500],
            [2.0000, 0.0500]])
    """
    import torch

    check_shown(signals)
    return Signals(torch.stack([s.output.float() for s in signals.values()]).mean(0))
