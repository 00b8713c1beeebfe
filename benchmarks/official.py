"""The computation of the official repositories, rebuilt on open_clip's own blocks as the other side of a benchmark."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dassl_prompts.classification.prompted import normalize


class Official:
    """The forward pass of the official repositories on an open_clip model."""

    def __init__(self, model):
        self.model = model

    @staticmethod
    def blocks(transformer, x: Tensor, overwrite: Callable[[int, Tensor], Tensor], mask=None) -> Tensor:
        batch_first = getattr(transformer, "batch_first", True)
        for i, block in enumerate(transformer.resblocks):
            x = overwrite(i, x)
            y = x if batch_first else x.transpose(0, 1)
            y = block(y, attn_mask=mask)
            x = y if batch_first else y.transpose(0, 1)
        return x

    def text(self, tokens: Tensor, ctx=None, deep=()) -> Tensor:
        """Normalised ``[C, E]`` at 77 positions."""
        m = self.model
        x = m.token_embedding(tokens)
        if ctx is not None:
            x = torch.cat([x[:, :1], ctx.expand(len(x), *ctx.shape[-2:]), x[:, 1 + ctx.shape[-2] :]], dim=1)
        x = x + m.positional_embedding

        def overwrite(i, x):
            if 1 <= i <= len(deep):
                d = deep[i - 1]
                return torch.cat([x[:, :1], d.to(x.dtype).expand(len(x), *d.shape), x[:, 1 + len(d) :]], dim=1)
            return x

        x = self.blocks(m.transformer, x, overwrite, m.attn_mask.to(x.dtype))
        return normalize(m.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ m.text_projection)

    def image(self, images: Tensor, visual=None, deep=(), normalised=True) -> Tensor:
        """Normalised ``[B, E]`` with visual tokens at the end."""
        v = self.model.visual
        x = v.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1) + v.positional_embedding
        if visual is not None:
            x = torch.cat([x, visual.expand(len(x), *visual.shape)], dim=1)

        def overwrite(i, x):
            if 1 <= i <= len(deep):
                d = deep[i - 1]
                return torch.cat([x[:, : -len(d)], d.to(x.dtype).expand(len(x), *d.shape)], dim=1)
            return x

        x = v.ln_post(self.blocks(v.transformer, v.ln_pre(x), overwrite)[:, 0]) @ v.proj
        return normalize(x) if normalised else x
