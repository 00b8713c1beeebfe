"""Texts that share their prefix up to one block of the text tower and have tokens of their own in it from there on (TCP).

Below that block the prefix is computed once for all texts; from it on only SOT is shared, which sees nothing but itself, and every
text carries its own slots. Exact: no position is computed twice, none is left out that something sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from dassl_prompts.models.blocks import attend_last_rows, attend_with_prefix, finish, project, run_block
from dassl_prompts.models.class_prompts import ClassPrompts


def first_class_wise(ctx: Tensor | None, deep: Sequence[Tensor | None]) -> int:
    """The first block whose slots are overwritten text by text, where that is the only thing in which the prefixes differ.

    0: there is none, or the context itself is per text, or something is per image.
    """
    if any(t.ndim == 4 for t in (ctx, *deep) if t is not None) or (ctx is not None and ctx.ndim == 3):
        return 0
    return next((i for i, t in enumerate(deep, start=1) if t is not None and t.ndim == 3), 0)


def class_wise_features(
    tower,
    prompts: ClassPrompts,
    ctx: Tensor | None,
    deep: Sequence[Tensor | None],
    weights: Tensor | None,
    chunks: Sequence[Tensor | None],
    checkpoint: bool,
) -> Tensor:
    """Text features ``[C, E]``; arguments as in ``TextTower.forward``.

    Args:
        chunks: texts to evaluate together; ``[None]`` is all at once.
    """
    start = first_class_wise(ctx, deep)
    n_prefix = min(prompts.n_prefix, 1 + prompts.n_ctx) if weights is not None else prompts.n_prefix
    kv, x = tower.prefix(prompts, ctx, deep, n_prefix, False, upto=start)
    sot, fixed = x[:, :1], x[:, 1:]
    sot_kv = []
    for block in tower.blocks[start:]:
        sot_kv += project(block, sot, "kv")
        sot = run_block(block, sot, causal=True)

    def run(part, own_deep, w, fixed, *kv):
        below, above = kv[: 2 * start], kv[2 * start :]
        x = tower.embed_suffix(part, n_prefix, w)
        layout = part.layout(n_prefix)
        for block, prefix_k, prefix_v in zip(tower.blocks[:start], below[::2], below[1::2]):
            q, k, v = project(block, x)
            x = finish(block, x, attend_with_prefix(q, k, v, prefix_k, prefix_v, layout))
        return above_start(tower, part, own_deep, start, layout.pad(x)[0], fixed[0], above)

    out = []
    for index in chunks:
        part, w = prompts, weights
        own = list(deep)
        if index is not None:
            part, w = prompts.select(index), None if weights is None else weights[index]
            own = [t[index] if t is not None and t.ndim == 3 and len(t) > 1 else t for t in deep]
        if checkpoint and torch.is_grad_enabled():
            out.append(recompute(run, part, own, w, fixed, *kv, *sot_kv, use_reentrant=False))
        else:
            out.append(run(part, own, w, fixed, *kv, *sot_kv))
    if chunks[0] is None:
        return out[0]
    return torch.cat(out)[torch.cat(list(chunks)).argsort(stable=True)]


def above_start(tower, prompts, deep, start: int, suffix: Tensor, fixed: Tensor, sot_kv: Sequence[Tensor]) -> Tensor:
    """Features ``[C, E]`` from the input of block ``start`` on.

    Args:
        suffix: ``[C, S, d]``, rows behind the prefix, padded. fixed: ``[P', d]``, rows of the prefix behind the slots that are
            overwritten. sot_kv: keys and values of SOT from block ``start`` on, interleaved.
    """
    count, blocks = len(prompts), tower.blocks[start:]
    layout = prompts.layout(1)
    x = torch.cat([fixed.expand(count, *fixed.shape), suffix], dim=1)
    for i, (block, k_sot, v_sot) in enumerate(zip(blocks, sot_kv[::2], sot_kv[1::2]), start=start):
        slots = deep[i - 1] if i <= len(deep) else None
        if slots is not None:
            behind = x if i == start else layout.pad(x)[0][:, slots.shape[-2] :]
            x = torch.cat([slots.expand(count, *slots.shape[-2:]).to(x.dtype), behind], dim=1)
            x = layout.pack(x[None])
        if i == tower.layers - 1:
            k, v = project(block, x, "kv")
            last = x[:, layout.used.sum(1).cumsum(0) - 1]
            (q,) = project(block, last, "q")
            return tower._project(finish(block, last, attend_last_rows(q, k, v, k_sot, v_sot, layout)))[0]
        q, k, v = project(block, x)
        x = finish(block, x, attend_with_prefix(q, k, v, k_sot, v_sot, layout))
    raise AssertionError("a tower has a last block")
