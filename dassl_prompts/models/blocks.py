"""Evaluation of CLIP's residual attention blocks from their weights.

open_clip's own ``forward`` is not used: which rows are computed, and against which keys, is what the exact savings of the
towers are about, and the layout flags of its attention modules change between versions. Weights may be half precision;
layer norms and softmax run in fp32.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)`` in fp32, returned in the dtype of ``x``."""
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


def check_blocks(blocks) -> None:
    """Refuse blocks whose parts this module does not know.

    Raises:
        ValueError: naming the block.
    """
    for i, block in enumerate(blocks):
        if not hasattr(block, "attn") or not hasattr(block.attn, "in_proj_weight") or block.attn.in_proj_weight is None:
            raise ValueError(f"block {i} is a {type(block).__name__}: only CLIP's plain residual attention blocks are supported")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[..., L, d] -> [..., heads, L, d / heads]``."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """``[..., heads, L, d / heads] -> [..., L, d]``."""
    return x.transpose(-2, -3).flatten(-2)


def project(block: nn.Module, x: Tensor, parts: str = "qkv") -> list[Tensor]:
    """Some of queries, keys and values of ``x`` ``[..., L, d]`` (before its first norm), split into heads."""
    attention, width = block.attn, x.shape[-1]
    first, last = "qkv".index(parts[0]) * width, ("qkv".index(parts[-1]) + 1) * width
    weight, bias = attention.in_proj_weight[first:last], attention.in_proj_bias[first:last]
    out = F.linear(layer_norm(block.ln_1, x), weight, bias)
    return [split_heads(t, attention.num_heads) for t in out.chunk(len(parts), dim=-1)]


def finish(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block for the rows ``x``, given what they attended to (in heads)."""
    attention = block.attn
    x = x + block.ls_1(F.linear(merge_heads(attended), attention.out_proj.weight, attention.out_proj.bias))
    return x + block.ls_2(block.mlp(layer_norm(block.ln_2, x)))


def run_block(block: nn.Module, x: Tensor, causal: bool) -> Tensor:
    """One block on ``[N, L, d]``."""
    q, k, v = project(block, x)
    return finish(block, x, F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def run_rows(block: nn.Module, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """One block for one output row of each sequence: row 0, or under a causal mask row ``rows[i]``.

    In a tower's last block everything but that row is thrown away.

    Args:
        x: ``[N, L, d]``.
        rows: ``[N]``; None is row 0 with unmasked attention.

    Returns:
        ``[N, d]``.
    """
    k, v = project(block, x, "kv")
    if rows is None:
        own, mask = x[:, :1], None
    else:
        own = x[torch.arange(len(x), device=x.device), rows].unsqueeze(1)
        mask = (torch.arange(x.shape[1], device=x.device) <= rows[:, None])[:, None, None, :]
    (q,) = project(block, own, "q")
    return finish(block, own, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)).squeeze(1)


def attend_with_prefix(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor) -> Tensor:
    """Attention of many short sequences that share one prefix, without copying the prefix's keys and values.

    Args:
        q: ``[G, C, H, R, e]``, k, v: ``[G, C, H, S, e]``: R query rows and S own positions of C sequences in each of G groups.
        prefix_k, prefix_v: ``[G, H, P, e]``, seen by every query of the group.
        mask: True where a query may see an own position, broadcastable to ``[G, C, H, R, S]``.

    Returns:
        ``[G, C, H, R, e]``.
    """
    groups, classes, heads, rows, width = q.shape
    together = q.transpose(1, 2).reshape(groups, heads, classes * rows, width)
    to_prefix = (together @ prefix_k.transpose(-1, -2)).view(groups, heads, classes, rows, -1).transpose(1, 2)
    to_own = (q @ k.transpose(-1, -2)).masked_fill(~mask, float("-inf"))
    scores = torch.cat([to_prefix, to_own], dim=-1).float() / math.sqrt(width)
    on_prefix, on_own = scores.softmax(-1).to(v.dtype).split([prefix_k.shape[-2], k.shape[-2]], dim=-1)
    on_prefix = on_prefix.transpose(1, 2).reshape(groups, heads, classes * rows, -1)
    from_prefix = (on_prefix @ prefix_v).view(groups, heads, classes, rows, width).transpose(1, 2)
    return from_prefix + on_own @ v
