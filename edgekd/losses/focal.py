"""Cross-entropy with the labels, with less weight on rows that are already right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from edgekd.losses._takes import class_numbers, scores
from edgekd.losses._weights import of_classes
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def focal(
    student: Signals,
    teacher: Signals | None,
    batch: Batch,
    *,
    gamma: Annotated[float, Ge(0)] = 2.0,
    weights: tuple[float, ...] = (),
) -> torch.Tensor:
    """-w_y (1 - p_y)^gamma log p_y per row, p = softmax(z): logits [B, C], labels [B] -> [B].

    Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 5; their alpha is `weights` = (1 - alpha, alpha) of a
    yes-or-no label. gamma = 0 is `cross_entropy`.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> focal(student, None, batch)
    tensor([0.0109, 0.0991])
    """
    from torch.nn import functional as F

    z = scores(student)
    wanted = class_numbers(batch, z.shape[-1])
    log = -F.cross_entropy(z, wanted, reduction="none")
    return -of_classes(weights, z, wanted) * (-log.expm1()).clamp_min(1e-12) ** gamma * log
