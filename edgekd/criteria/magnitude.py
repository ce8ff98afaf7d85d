"""Keep the channels with the largest weights, over all layers that they are coupled with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekd.pruning import Channels


def magnitude(group: Channels) -> torch.Tensor:
    """Squared L2 norm of a channel's weights, mean over the coupled layers: Fang et al. 2023 (DepGraph,
    arXiv:2301.12900), without its sparse training. Kernels, matrices and the scales of norms count, biases don't.

    >>> import torch
    >>> from edgekd.pruning import Channels, Slice
    >>> weight = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])  # 3 channels
    >>> group = Channels("layer", 3, (Slice("layer", "linear", "out", weight),))
    >>> magnitude(group)
    tensor([5., 1., 9.])
    """
    import torch

    scores = [s.values.square().sum(1) for s in group.slices if s.kind in ("conv", "linear", "norm")]
    return torch.stack(scores).mean(0)
