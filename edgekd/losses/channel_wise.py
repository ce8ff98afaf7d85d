"""Channel-wise distillation: each channel is a distribution over the positions of the map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from edgekd.losses._taps import pairs, same_channels
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def channel_wise(
    student: Signals, teacher: Signals, batch: Batch, *, temperature: Annotated[float, Gt(0)] = 4.0
) -> torch.Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) over positions, the mean over channels, per row: maps [B, C, H, W] ->
    [B].

    Shu et al. 2021, section 3. Channels must match: the paper's 1x1 convolution for others is not part of this term.
    Maps of different size are averaged down to the smaller first. T = 4 is usual for maps of logits, 1 for pyramid
    features.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> maps = torch.tensor([3.0, 1, 0, 2, 1, 0, 5, 1, 2, 2, 1, 0, 0, 4, 1, 3]).reshape(2, 2, 2, 2)
    >>> teacher = Signals(None, {"layer": maps})
    >>> channel_wise(Signals(None, {"layer": maps + 1}), teacher, batch)  # a channel's offset does not count
    tensor([0., 0.])
    >>> channel_wise(Signals(None, {"layer": maps.flip(-1)}), teacher, batch)
    tensor([3.5608, 2.5006])
    """
    import torch
    from torch.nn import functional as F

    rows = []
    for s, t in pairs(student, teacher):
        q, p = (F.log_softmax(x.flatten(2) / temperature, dim=-1) for x in same_channels(s, t))
        rows.append(temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean(1))
    return torch.stack(rows).mean(0)
