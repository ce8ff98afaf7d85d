"""The teachers' probabilities, weighted sample by sample by how well each knows the label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Gt

from edgekd.ensembles._given import check_scores, targets
from edgekd.records import Batch, Signals


def confidence(signals: Mapping[str, Signals], batch: Batch, *, temperature: Annotated[float, Gt(0)] = 1.0) -> Signals:
    """T log(sum_m w_m softmax(z_m / T)) with w_m = (1 - softmax_m(H_m)) / (M - 1), H_m the cross-entropy of teacher m
    with the label: logits [B, C] each, labels [B] -> [B, C].

    Zhang, Chen, Wang 2022, "Confidence-Aware Multi-Teacher Knowledge Distillation", eq. 4.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> sure = Signals(torch.tensor([[4.0, 0.0], [4.0, 0.0]]))
    >>> unsure = Signals(torch.tensor([[0.0, 0.1], [0.0, 0.1]]))
    >>> confidence({"sure": sure, "unsure": unsure}, batch).output.softmax(-1)  # each row by who knows its label
    tensor([[0.8167, 0.1833],
            [0.4918, 0.5082]])
    """
    import torch
    from torch.nn import functional as F

    check_scores(signals)
    logits = torch.stack([s.output.float() for s in signals.values()])
    if len(logits) == 1:
        return Signals(logits[0])
    wanted = targets(batch)
    loss = torch.stack([F.cross_entropy(z, wanted, reduction="none") for z in logits])
    weight = (1 - torch.softmax(loss, 0)) / (len(logits) - 1)
    every = F.log_softmax(logits / temperature, -1) + weight.clamp_min(1e-12).log().unsqueeze(-1)
    return Signals(temperature * torch.logsumexp(every, 0))
