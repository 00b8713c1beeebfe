"""INTERIM text tower (trimmed path only), until the towers agent's lands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from torch import Tensor


@dataclass(frozen=True)
class ClassPrompts:
    tokens: Tensor
    eot: Tensor
    n_ctx: int
    n_prefix: int
    name_len: Tensor
    truncated: int = 0

    def __len__(self):
        return len(self.tokens)

    def select(self, index):
        index = torch.as_tensor(index).to(self.tokens.device)
        return replace(self, tokens=self.tokens[index], eot=self.eot[index], name_len=self.name_len[index])


class TextTower(nn.Module):
    def __init__(self, clip, tokenizer):
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.tokenizer = tokenizer
        self.width = clip.positional_embedding.shape[1]
        self.layers = len(clip.transformer.resblocks)
        self.heads = clip.transformer.resblocks[0].attn.num_heads
        self.context_length = clip.positional_embedding.shape[0]

    def tokenize(self, texts, truncate=False):
        rows = []
        for t in texts:
            ids = self.tokenizer.encode(t)
            if len(ids) + 2 > self.context_length and not truncate:
                raise ValueError(f"{t!r} has {len(ids)} tokens, more than fit into {self.context_length} positions")
            rows.append([49406, *ids[: self.context_length - 2], 49407])
        out = torch.zeros(len(rows), self.context_length, dtype=torch.long)
        for i, r in enumerate(rows):
            out[i, : len(r)] = torch.tensor(r)
        return out.to(self.positional_embedding.device)

    def embed_words(self, words):
        ids = torch.tensor(self.tokenizer.encode(words), device=self.positional_embedding.device)
        with torch.no_grad():
            return self.token_embedding(ids).float()

    def class_prompts(self, classnames, n_ctx=0, words="", suffix="."):
        texts = [f"{words} {name}{suffix}".strip() for name in classnames]
        out = self.prompts_from_texts(texts, n_ctx)
        n_words = len(self.tokenizer.encode(words)) if words else 0
        return replace(out, n_prefix=1 + n_ctx + n_words,
                       name_len=torch.tensor([len(self.tokenizer.encode(n)) for n in classnames], device=out.tokens.device))

    def prompts_from_texts(self, texts, n_ctx=0, truncate=False):
        rows, truncated = [], 0
        for t in texts:
            ids = self.tokenizer.encode(t)
            if len(ids) + 2 + n_ctx > self.context_length:
                if not truncate:
                    raise ValueError(f"{t!r} with {n_ctx} context tokens does not fit into {self.context_length} positions")
                ids, truncated = ids[: self.context_length - 2 - n_ctx], truncated + 1
            rows.append([49406, *[343] * n_ctx, *ids, 49407])
        out = torch.zeros(len(rows), self.context_length, dtype=torch.long)
        for i, r in enumerate(rows):
            out[i, : len(r)] = torch.tensor(r)
        out = out.to(self.positional_embedding.device)
        eot = out.argmax(1)
        return ClassPrompts(out, eot, n_ctx, 1 + n_ctx, eot - 1 - n_ctx, truncated)

    def forward(self, prompts, ctx=None, deep=(), *, position="end", token_weights=None, share_prefix=True, trim=True,
                return_tokens=False, chunk_tokens=None, checkpoint=False):
        n, c = prompts.n_ctx, len(prompts)
        length = int(prompts.eot.max()) + 1
        x = self.token_embedding(prompts.tokens[:, :length]).float()
        if token_weights is not None:
            x = x * token_weights[:, :length, None]
        per_image = ctx is not None and ctx.ndim == 4
        if per_image:
            b = ctx.shape[0]
            x = x[None].expand(b, -1, -1, -1)
            lead = ctx.expand(b, c, -1, -1)
        elif ctx is not None:
            lead = ctx.expand(c, -1, -1)
        eot = prompts.eot
        if ctx is not None:
            rest = x[..., 1 + n:, :]
            if position == "end":
                x = torch.cat([x[..., :1, :], lead, rest], -2)
            else:
                half = n // 2 if position == "middle" else 0
                rows = []
                for i in range(c):
                    m = int(prompts.name_len[i])
                    rows.append(torch.cat([x[i, :1], lead[i, :half], rest[i, :m], lead[i, half:], rest[i, m:]], 0))
                x = torch.stack(rows)
        x = x + self.positional_embedding[:length].float()
        shape = x.shape
        x = x.reshape(-1, length, self.width)
        mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        for i, block in enumerate(self.transformer.resblocks):
            if 1 <= i <= len(deep):
                d = deep[i - 1]
                d = d.expand(*shape[:-2], n, self.width).reshape(-1, n, self.width).to(x.dtype)
                x = torch.cat([x[:, :1], d, x[:, 1 + n:]], 1)
            x = block(x, attn_mask=mask)
        x = self.ln_final(x) @ self.text_projection
        x = x.reshape(*shape[:-1], -1)
        index = eot.view(*([1] * (x.ndim - 3)), c, 1, 1).expand(*x.shape[:-2], 1, x.shape[-1])
        feat = x.gather(-2, index).squeeze(-2).float()
        return (feat, x) if return_tokens else feat
