"""The mean of the teachers' probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Gt

from edgekd.ensembles._given import check_scores
from edgekd.records import Batch, Signals


def mean(signals: Mapping[str, Signals], batch: Batch, *, temperature: Annotated[float, Gt(0)] = 1.0) -> Signals:
    """T log((1/M) sum_m softmax(z_m / T)): logits [B, C] each -> [B, C], whose softmax at temperature T is the mean
    distribution.

    Hinton, Vinyals, Dean 2015, section 1, with the arithmetic mean: an over-confident teacher can't dominate the
    others, as in a mean of logits. Set `temperature` to that of the loss for the mean of the softened distributions.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> sure = Signals(torch.tensor([[4.0, 0.0], [4.0, 0.0]]))
    >>> unsure = Signals(torch.tensor([[0.0, 0.1], [0.0, 0.1]]))
    >>> mean({"sure": sure, "unsure": unsure}, batch).output.softmax(-1)
    tensor([[0.7285, 0.2715],
            [0.7285, 0.2715]])
    """
    import torch
    from torch.nn import functional as F

    check_scores(signals)
    every = torch.stack([F.log_softmax(s.output.float() / temperature, -1) for s in signals.values()])
    return Signals(temperature * (torch.logsumexp(every, 0) - every.new_full((), float(len(every))).log()))
