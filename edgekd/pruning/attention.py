"""torch's multi-head attention with fewer heads, or with another width inside than outside, which torch refuses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Narrowed(nn.MultiheadAttention):
    """`nn.MultiheadAttention` after pruning: the same parameters under the same names, in any widths. `head_dim` is
    that of the whole module, as heads go whole."""

    def forward(  # the signature of torch
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        single, turned = query.ndim == 2, not self.batch_first and query.ndim == 3
        given = [x[None] if single else x.transpose(0, 1) if turned else x for x in (query, key, value)]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip(given, weights, biases, strict=True)
        )
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
        if attn_mask is not None:
            shaped = attn_mask if attn_mask.ndim == 2 else attn_mask.unflatten(0, (q.shape[0], -1))
            scores = _masked(scores, shaped)
        if key_padding_mask is not None:
            padding = key_padding_mask[None] if single else key_padding_mask
            scores = _masked(scores, padding[:, None, None, :])
        shares = scores.softmax(-1)
        made = F.dropout(shares, self.dropout, self.training) @ v
        out = self.out_proj(made.transpose(1, 2).flatten(2))
        told = (shares.mean(1) if average_attn_weights else shares) if need_weights else None
        if single:
            return out[0], None if told is None else told[0]
        return out.transpose(0, 1) if turned else out, told


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def narrow(module: nn.Module) -> None:
    """Makes torch's attention one that may be pruned, in place."""
    if type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim and module.bias_k is None:
        module.__class__ = Narrowed
        module._qkv_same_embed_dim = False  # or torch's layers go past `forward` with a kernel of their own
