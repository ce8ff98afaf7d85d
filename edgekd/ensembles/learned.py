"""The teachers' probabilities, with weights that are learned from the labels during the student's training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from edgekd.ensembles._given import check_scores, targets
from edgekd.records import Batch, Signals


class Learned(nn.Module):
    """log(sum_m w_m softmax(z_m)) with w = softmax(theta) over the teachers, theta from 0: logits [B, C] each -> [B,
    C].

    theta is trained with `own`, the cross-entropy of the mixture with the labels (a stacked generalization, Wolpert
    1992, on the mixture's weights). The output is detached, so the student's loss does not favour a teacher that is
    easy to imitate.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> sure = Signals(torch.tensor([[4.0, 0.0], [4.0, 0.0]]))
    >>> unsure = Signals(torch.tensor([[0.0, 0.1], [0.0, 0.1]]))
    >>> ensemble = Learned(["sure", "unsure"], 2)  # equal weights, until they have learned
    >>> ensemble({"sure": sure, "unsure": unsure}, batch).output.softmax(-1)
    tensor([[0.7285, 0.2715],
            [0.7285, 0.2715]])
    """

    def __init__(self, names: Sequence[str], classes: int):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(names)))
        self.own: torch.Tensor | None = None

    def forward(self, signals: Mapping[str, Signals], batch: Batch) -> Signals:
        check_scores(signals)
        every = torch.stack([F.log_softmax(s.output.float(), -1) for s in signals.values()])
        mixed = torch.logsumexp(every + F.log_softmax(self.theta, 0)[:, None, None], 0)
        wanted = targets(batch)
        soft = wanted.is_floating_point()
        self.own = -(wanted * mixed).sum(1).mean() if soft else F.nll_loss(mixed, wanted)
        return Signals(mixed.detach())
