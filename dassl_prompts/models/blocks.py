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
            raise ValueError(
                f"block {i} is a {type(block).__name__}: only CLIP's plain residual attention blocks are supported"
            )


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


class Layout:
    """Where the rows of C sequences of different length lie: packed without gaps for the matrix products, padded for attention.

    Attributes:
        cells: ``[R]``, place of each packed row among the C * S padded ones.
        rows: ``[C * S]``, packed row of each padded place (any row where there is none: it is masked).
        used: ``[C, S]``, which padded places hold a row.
        visible: ``[R, S]``, which places of its own sequence a packed row may see under the causal mask.
        dense: nothing is padded.
    """

    def __init__(self, lengths: Tensor, longest: int):
        places = torch.arange(longest, device=lengths.device)
        self.count, self.longest = len(lengths), longest
        self.used = places < lengths[:, None]
        self.cells = self.used.flatten().nonzero().squeeze(1)
        self.rows = torch.zeros(self.count * longest, dtype=torch.long, device=lengths.device)
        self.rows[self.cells] = torch.arange(len(self.cells), device=lengths.device)
        self.visible = places <= (self.cells % longest)[:, None]
        self.dense = len(self.cells) == self.count * longest

    def pad(self, x: Tensor) -> Tensor:
        """Packed ``[..., R, e]`` to ``[..., C, S, e]``."""
        x = x if self.dense else x.index_select(-2, self.rows)
        return x.unflatten(-2, (self.count, self.longest))

    def pack(self, x: Tensor) -> Tensor:
        """Padded ``[..., C, S, e]`` to ``[..., R, e]``."""
        x = x.flatten(-3, -2)
        return x if self.dense else x.index_select(-2, self.cells)


def joint_softmax(to_prefix: Tensor, to_own: Tensor, mask: Tensor, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Attention weights over prefix and own places together, from fp32 scores."""
    to_own = to_own.masked_fill(~mask, float("-inf")).expand(*to_prefix.shape[:-1], -1)
    scores = torch.cat([to_prefix, to_own], dim=-1) / math.sqrt(width)
    return scores.softmax(-1).to(dtype).split([to_prefix.shape[-1], to_own.shape[-1]], dim=-1)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """``q k^T`` in fp32: half-precision scores would round by several percent after the exponential."""
    with torch.autocast(q.device.type, enabled=False):
        return q.float() @ k.float().transpose(-1, -2)


def attend_with_prefix(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, layout: Layout) -> Tensor:
    """Causal attention of C sequences that share one prefix, without copying the prefix's keys and values.

    Args:
        q, k, v: ``[G, H, R, e]``, packed rows of the sequences in each of G groups; ``[1, H, R, e]`` if the same in all.
        prefix_k, prefix_v: ``[G, H, P, e]``, seen by every row of the group.

    Returns:
        ``[G, H, R, e]``.
    """
    to_own = layout.pack(scores(layout.pad(q), layout.pad(k)))
    on_prefix, on_own = joint_softmax(scores(q, prefix_k), to_own, layout.visible, q.shape[-1], v.dtype)
    return on_prefix @ prefix_v + layout.pack(layout.pad(on_own) @ layout.pad(v))


def attend_last_rows(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, layout: Layout) -> Tensor:
    """As :func:`attend_with_prefix` for the last row of each sequence, ``q`` ``[G, H, C, e]``, which sees all of it."""
    to_own = scores(q.unsqueeze(-2), layout.pad(k)).squeeze(-2)
    on_prefix, on_own = joint_softmax(scores(q, prefix_k), to_own, layout.used, q.shape[-1], v.dtype)
    return on_prefix @ prefix_v + (on_own.unsqueeze(-2) @ layout.pad(v)).squeeze(-2)


def is_quick_gelu(block: nn.Module) -> bool:
    """Whether a block's activation is OpenAI's QuickGELU instead of GELU."""
    return any(type(module).__name__ == "QuickGELU" for module in block.modules())
