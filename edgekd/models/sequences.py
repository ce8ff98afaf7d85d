"""For models of samples of different length: x [n, T, ...] is filled up to the longest of a batch, `lengths` [n] int64
says how long each is. What these give for a sample is what the sample alone would give, and so are its gradients; they
can be exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def mask(x: Tensor, lengths: Tensor) -> Tensor:
    """[n, T] bool: which steps of x [n, T, ...] are the samples' own.

    >>> import torch
    >>> mask(torch.zeros(2, 3, 1), torch.tensor([3, 1])).tolist()
    [[True, True, True], [True, False, False]]
    """
    import torch

    return torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]


def last(x: Tensor, lengths: Tensor) -> Tensor:
    """[n, F]: the last step of each sample of x [n, T, F].

    >>> import torch
    >>> last(torch.tensor([[[1.0], [2.0]], [[3.0], [9.0]]]), torch.tensor([2, 1])).tolist()
    [[2.0], [3.0]]
    """
    return x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def mean(x: Tensor, lengths: Tensor) -> Tensor:
    """[n, F]: the mean over each sample's steps of x [n, T, F].

    >>> import torch
    >>> mean(torch.tensor([[[1.0], [2.0]], [[3.0], [9.0]]]), torch.tensor([2, 1])).tolist()
    [[1.5], [3.0]]
    """
    return (x * mask(x, lengths)[..., None].to(x.dtype)).sum(1) / lengths[:, None].to(x.dtype)


def run(rnn: nn.RNNBase, x: Tensor, lengths: Tensor) -> Tensor:
    """[n, T, directions * hidden]: the outputs of an RNN, GRU or LSTM with `batch_first`, zero past each sample's end,
    as `pack_padded_sequence` gives them. The backward direction begins at each sample's own end. Raises ValueError for
    a layer without `batch_first`, or with projections."""
    import torch
    from torch.nn import functional as F

    if not rnn.batch_first or rnn.proj_size:
        raise ValueError("give a recurrent layer with batch_first=True and without proj_size")
    kind = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}.get(rnn.mode, rnn.mode.lower())
    own = mask(x, lengths)[..., None]
    steps = torch.arange(x.shape[1], device=x.device)[None]
    back = torch.where(own[..., 0], lengths[:, None] - 1 - steps, steps)[..., None]  # a sample's steps, last first
    zeros = x.new_zeros(1, x.shape[0], rnn.hidden_size)
    start: Any = [zeros, zeros] if kind == "lstm" else zeros

    def one(layer: int, ending: str, given: Tensor) -> Tensor:
        names = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if rnn.bias else ())]
        weights = [getattr(rnn, f"{name}_l{layer}{ending}") for name in names]
        return getattr(torch, kind)(given, start, weights, rnn.bias, 1, 0.0, False, False, True)[0]

    for layer in range(rnn.num_layers):
        found = one(layer, "", x)
        if rnn.bidirectional:
            turned = one(layer, "_reverse", x.gather(1, back.expand_as(x)))
            found = torch.cat([found, turned.gather(1, back.expand_as(turned))], -1)
        x = torch.where(own, found, torch.zeros_like(found))
        x = F.dropout(x, rnn.dropout, rnn.training) if layer + 1 < rnn.num_layers else x
    return x
