"""CLIP's text tower with prompt slots, evaluated exactly but without the work that cannot change the result.

The tower is causal, so nothing behind the EOT token matters: sequences are cut to the longest EOT. And whatever stands in front
of the class names is the same for all classes: its keys and values are computed once and every class's few remaining tokens
attend to them (shared prefix). Deep prompts that the next block overwrites need no output, and what a class's own tokens bring
to the first block is the same for all images. All of it leaves values and gradients unchanged up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from dassl_prompts.engine import distributed
from dassl_prompts.models.blocks import (
    attend_last_rows,
    attend_with_prefix,
    check_blocks,
    finish,
    layer_norm,
    project,
    run_block,
    run_rows,
)
from dassl_prompts.models.class_prompts import (
    EOT,
    PLACEHOLDER,
    SOT,
    ClassPrompts,
    arrangement,
    common_prefix,
    select_texts,
)
from dassl_prompts.models.class_wise import class_wise_features, first_class_wise

POSITIONS = ("end", "middle", "front")
#: tokens evaluated at once when their activations are not kept
CHUNK_TOKENS = 65536


class TextTower(nn.Module):
    """The text side of a CLIP.

    Args:
        clip: an ``open_clip.model.CLIP``; its modules are used, not copied.
        tokenizer: CLIP's BPE tokenizer.
    """

    def __init__(self, clip: nn.Module, tokenizer):
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.tokenizer = tokenizer
        self.context_length, self.width = clip.positional_embedding.shape
        self.layers = len(self.blocks)
        self.heads = self.blocks[0].attn.num_heads
        check_blocks(self.blocks)
        if getattr(clip, "attn_mask", 0) is None or getattr(clip, "text_pool_type", "argmax") not in ("argmax", "eos"):
            raise ValueError("only CLIP's causal text tower, read at EOT, is supported; this model's is another")

    @property
    def blocks(self):
        return self.transformer.resblocks

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix weights; layer norms and embeddings may be fp32 beside half ones."""
        return self.blocks[0].attn.in_proj_weight.dtype

    # -- token ids ------------------------------------------------------------------------------------------------

    def encode_ids(self, text: str) -> list[int]:
        """BPE ids without SOT and EOT."""
        return self.tokenizer.encode(text)

    def embed_words(self, words: str) -> Tensor:
        """Token embeddings ``[n, d_t]`` of ``words``, fp32, without gradient."""
        ids = torch.tensor(self.encode_ids(words), device=self.positional_embedding.device)
        with torch.no_grad():
            return self.token_embedding(ids).float()

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> Tensor:
        """Token ids ``[N, 77]``; see :meth:`prompts_from_texts`."""
        return self.prompts_from_texts(texts, truncate=truncate).tokens

    def class_prompts(
        self, classnames: Sequence[str], n_ctx: int = 0, words: str = "", suffix: str = "."
    ) -> ClassPrompts:
        """``SOT, n_ctx slots, words, name, suffix, EOT`` for every class name.

        Raises:
            ValueError: a prompt has more tokens than positions; names the class.
        """
        lead = f"{words} " if words else ""
        prompts = self.prompts_from_texts([f"{lead}{name}{suffix}" for name in classnames], n_ctx)
        lengths = torch.tensor([len(self.encode_ids(name)) for name in classnames], device=prompts.tokens.device)
        return replace(prompts, name_len=lengths)

    def prompts_from_texts(self, texts: Sequence[str], n_ctx: int = 0, truncate: bool = False) -> ClassPrompts:
        """``SOT, n_ctx slots, text, EOT`` for every text.

        Args:
            truncate: cut a text that is too long (EOT stays, ``truncated`` counts them) instead of refusing it.

        Raises:
            ValueError: no text, or one that does not fit; names it.
        """
        if not texts:
            raise ValueError("there is no text to tokenize")
        room = self.context_length - 2 - n_ctx
        if room < 1:
            raise ValueError(f"{n_ctx} context tokens leave no room for words in {self.context_length} positions")
        rows, truncated = [], 0
        for text in texts:
            ids = self.encode_ids(text)
            if len(ids) > room:
                if not truncate:
                    raise ValueError(
                        f"{text!r} has {len(ids)} tokens; with {n_ctx} context tokens only {room} fit into "
                        f"{self.context_length} positions"
                    )
                ids, truncated = ids[:room], truncated + 1
            rows.append([SOT, *[PLACEHOLDER] * n_ctx, *ids, EOT])
        tokens = torch.zeros(len(rows), self.context_length, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        device = self.positional_embedding.device
        eot = torch.tensor([len(row) - 1 for row in rows])
        return ClassPrompts(
            tokens.to(device), eot.to(device), n_ctx, common_prefix(rows), (eot - 1 - n_ctx).to(device), truncated
        )

    # -- features -------------------------------------------------------------------------------------------------

    def encode_embeddings(self, x: Tensor, eot: Tensor) -> Tensor:
        """Text features ``[N, E]``, fp32, of token embeddings ``[N, L, d]`` without positions, read at ``eot`` ``[N]``."""
        x = (x.float() + self.positional_embedding[: x.shape[1]].float()).to(self.dtype)
        for block in self.blocks[:-1]:
            x = run_block(block, x, causal=True)
        return self._project(run_rows(self.blocks[-1], x, eot))

    def forward(
        self,
        prompts: ClassPrompts,
        ctx: Tensor | None = None,
        deep: Sequence[Tensor | None] = (),
        *,
        position: str = "end",
        token_weights: Tensor | None = None,
        share_prefix: bool = True,
        trim: bool = True,
        return_tokens: bool = False,
        chunk_tokens: int | None = None,
        checkpoint: bool = False,
        accumulate: bool = False,
    ):
        """Text features, not normalised, fp32.

        Args:
            prompts: C texts with ``n_ctx`` slots.
            ctx: vectors for the slots: None (the placeholder tokens stay), ``[n, d]`` shared by all texts, ``[C, n, d]``
                one context per text, ``[B, 1, n, d]`` one per image.
            deep: tensors of the same kinds; ``deep[i]`` overwrites the slots at the input of block i + 1, or as many of the
                first ones as it has rows; None leaves them as they are. The prefix is shared below the first one per text.
            position: where the class name stands: behind the context, in its middle, or in front of it.
            token_weights: ``[C, 77]`` factors on the token embeddings behind the slots, before the positional embedding.
            share_prefix: evaluate what all texts begin with once; where that is not possible (context per text, name not
                at the end, all tokens asked for) it has no effect.
            trim: cut to the longest EOT; with False all 77 positions are evaluated.
            return_tokens: also return all positions, normed and projected, ``[C, L, E]``.
            chunk_tokens: evaluate at most about this many tokens at once; default one pass when activations are kept.
            checkpoint: recompute activations of each chunk in the backward pass.
            accumulate: ``deep[i]`` overwrites nothing but is put in behind SOT: every block adds tokens and keeps the others.

        Returns:
            ``[C, E]``, or ``[B, C, E]`` for contexts per image.

        Raises:
            ValueError: more deep prompts than blocks, deep prompts with a name that is not at the end.
        """
        self._check(prompts, ctx, deep, position)
        if not return_tokens and (own := distributed.part(self, prompts)):
            index = torch.arange(own.start, own.stop, device=prompts.tokens.device)
            ctx, token_weights, *deep = distributed.enter(ctx, token_weights, *deep)
            ctx, *deep = (t[0] if t is not None and t.ndim == 3 and len(t) == 1 else t for t in (ctx, *deep))
            *given, weights = select_texts(index, prompts, ctx, deep, token_weights)
            how = {"position": position, "share_prefix": share_prefix, "trim": trim, "chunk_tokens": chunk_tokens}
            how |= {"token_weights": weights, "checkpoint": checkpoint, "accumulate": accumulate}
            return distributed.run(self, own, len(prompts), *given, dim=-2, **how)
        if chunk_tokens is None and (checkpoint or not torch.is_grad_enabled()):
            chunk_tokens = CHUNK_TOKENS
        if accumulate and return_tokens:
            raise ValueError("accumulate moves the tokens apart, so return_tokens cannot be had with it")
        per_text = any(t.ndim == 3 for t in (ctx, *deep) if t is not None)
        split = share_prefix and trim and position == "end" and not return_tokens and prompts.n_prefix > prompts.n_ctx
        if split and per_text and first_class_wise(ctx, deep) and not accumulate:
            chunks = self._chunks(prompts, 1, 1, chunk_tokens)
            return class_wise_features(self, prompts, ctx, deep, token_weights, chunks, checkpoint)
        if split and not per_text and prompts.n_prefix > 1:
            return self._shared(prompts, ctx, deep, token_weights, chunk_tokens, checkpoint, accumulate)
        length = prompts.length if trim else self.context_length
        parts = self._chunks_plain(prompts, length, ctx, deep, chunk_tokens)
        run = lambda index: self._plain(*index, position, length, return_tokens, accumulate)
        done = []
        for index in parts:
            some = (
                (prompts, ctx, deep, token_weights)
                if index is None
                else select_texts(index, prompts, ctx, deep, token_weights)
            )
            kept = checkpoint and torch.is_grad_enabled()
            done.append(recompute(run, some, use_reentrant=False) if kept else run(some))
        features = done[0][0] if len(done) == 1 else torch.cat([f for f, _ in done], dim=-2)
        if not return_tokens:
            return features
        return features, done[0][1] if len(done) == 1 else torch.cat([t for _, t in done], dim=-3)

    def _check(self, prompts: ClassPrompts, ctx: Tensor | None, deep: Sequence[Tensor], position: str) -> None:
        if position not in POSITIONS:
            raise ValueError(f"position is {position!r}; choose one of {', '.join(POSITIONS)}")
        if len(deep) >= self.layers:
            raise ValueError(
                f"{len(deep)} deep prompts need a prompt depth of {len(deep) + 1}, the tower has {self.layers} layers"
            )
        if deep and position != "end":
            raise ValueError(f"deep prompts need the context in front of the class name, not position {position!r}")
        for layer, vectors in enumerate((ctx, *deep)):
            if vectors is not None and vectors.ndim == 3 and len(vectors) not in (1, len(prompts)):
                raise ValueError(f"there are {len(vectors)} contexts for {len(prompts)} texts")
            if vectors is None or vectors.shape[-2:] == (prompts.n_ctx, self.width):
                continue
            if layer == 0 or vectors.shape[-1] != self.width or not 0 < vectors.shape[-2] < prompts.n_ctx:
                raise ValueError(
                    f"context of shape {tuple(vectors.shape)} does not fit {prompts.n_ctx} slots of width {self.width}"
                )

    def _project(self, x: Tensor) -> Tensor:
        """``ln_final`` and the projection into the joint space."""
        x = layer_norm(self.ln_final, x)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x).float()
        return (x @ self.text_projection).float()

    def _embed(self, tokens: Tensor, start: int, weights: Tensor | None = None) -> Tensor:
        """Token plus positional embeddings of ``tokens`` ``[..., L]`` that stand at positions start .. start + L - 1."""
        x = self.token_embedding(tokens).float()
        if weights is not None:
            x = x * weights[..., None]
        return x + self.positional_embedding[start : start + tokens.shape[-1]].float()

    # -- one sequence per text ------------------------------------------------------------------------------------

    def _plain(self, prompts, ctx, deep, weights, position, length, return_tokens, accumulate):
        """Every text with ``length`` positions: ``([..., C, E], [..., C, L, E] or None)``."""
        n, tokens = prompts.n_ctx, prompts.tokens[:, :length]
        per_image = any(t.ndim == 4 for t in (ctx, *deep) if t is not None)
        x = self.token_embedding(tokens).float()
        if weights is not None:
            behind = torch.arange(length, device=x.device) > n
            x = x * torch.where(behind, weights[:, :length], 1.0)[..., None]
        if ctx is not None:
            x = torch.cat([*self._lead(x[:, :1], ctx, len(x)), self._follow(x[:, 1 + n :], ctx, len(x))], dim=-2)
        elif per_image:
            x = x.expand(next(t for t in deep if t is not None and t.ndim == 4).shape[0], *x.shape)
        if position != "end":
            order = arrangement(prompts, position, length)
            x = x.gather(-2, order[..., None].expand(x.shape))
        x = (x + self.positional_embedding[:length].float()).to(self.dtype)
        lead_shape, eot = x.shape[:-2], prompts.eot.expand(x.shape[:-2]).reshape(-1)
        x = x.reshape(-1, length, self.width)
        for i, block in enumerate(self.blocks):
            if 1 <= i <= len(deep) and deep[i - 1] is not None:
                m = deep[i - 1].shape[-2]
                vectors = deep[i - 1].expand(*lead_shape, m, self.width).reshape(-1, m, self.width).to(x.dtype)
                x = torch.cat([x[:, :1], vectors, x[:, 1 if accumulate else 1 + m :]], dim=1)
                eot = eot + m if accumulate else eot
            last = i == self.layers - 1
            x = run_rows(block, x, eot) if last and not return_tokens else run_block(block, x, causal=True)
        if not return_tokens:
            return self._project(x).view(*lead_shape, -1), None
        out = self._project(x)
        features = out[torch.arange(len(out), device=out.device), eot]
        return features.view(*lead_shape, -1), out.view(*lead_shape, length, -1)

    def _chunks_plain(self, prompts, length: int, ctx, deep, chunk_tokens: int | None) -> list[Tensor | None]:
        """Texts to evaluate together, in order."""
        images = next((t.shape[0] for t in (ctx, *deep) if t is not None and t.ndim == 4), 1)
        if chunk_tokens is None:
            return [None]
        size = max(1, chunk_tokens // (length * images))
        if len(prompts) <= size:
            return [None]
        return list(torch.arange(len(prompts), device=prompts.tokens.device).split(size))

    def _lead(self, sot: Tensor, ctx: Tensor, count: int) -> list[Tensor]:
        """SOT and context for every text: ``[C, 1, d]`` and ``[C, n, d]``, with B in front for contexts per image."""
        shape = (ctx.shape[0], count) if ctx.ndim == 4 else (count,)
        return [sot.expand(*shape, 1, self.width), ctx.float().expand(*shape, *ctx.shape[-2:])]

    def _follow(self, rest: Tensor, ctx: Tensor, count: int) -> Tensor:
        return rest.expand(ctx.shape[0], *rest.shape) if ctx.ndim == 4 else rest

    # -- one prefix for all texts ---------------------------------------------------------------------------------

    def _shared(self, prompts, ctx, deep, weights, chunk_tokens, checkpoint, accumulate) -> Tensor:
        """Prefix once (per image), then every text's own tokens against its keys and values."""
        per_image = any(t.ndim == 4 for t in (ctx, *deep) if t is not None)
        n_prefix = min(prompts.n_prefix, 1 + prompts.n_ctx) if weights is not None else prompts.n_prefix
        kv, _ = self.prefix(prompts, ctx, deep, n_prefix, accumulate, upto=self.layers)
        groups = kv[0].shape[0]
        parts = self._chunks(prompts, n_prefix, groups, chunk_tokens)
        out = []
        for index in parts:
            part, w = (
                (prompts, weights)
                if index is None
                else (prompts.select(index), None if weights is None else weights[index])
            )
            if checkpoint and torch.is_grad_enabled():
                out.append(recompute(self._suffix, part, n_prefix, w, *kv, use_reentrant=False))
            else:
                out.append(self._suffix(part, n_prefix, w, *kv))
        features = out[0]
        if parts[0] is not None:
            features = torch.cat(out, dim=1)[:, torch.cat(parts).argsort(stable=True)]
        return features if per_image else features[0]

    def prefix(
        self, prompts, ctx, deep, n_prefix: int, accumulate: bool, upto: int
    ) -> tuple[list[Tensor], Tensor | None]:
        """Keys and values ``[G, H, P, e]`` of the prefix in the first ``upto`` blocks, interleaved k, v, k, v, ..., and its
        rows ``[G, P', d]`` at the input of the next one without the slots that are overwritten there (None: there is no next).

        G is the number of images for contexts per image, else 1. Slots that the next block overwrites are seen by others, but
        what they become themselves is thrown away: of them only keys and values are computed.
        """
        n = prompts.n_ctx
        x = self.token_embedding(prompts.tokens[:1, :n_prefix]).float()
        groups = next((t.shape[0] for t in (ctx, *deep) if t is not None and t.ndim == 4), 1)
        grouped = lambda t: (t[:, 0] if t.ndim == 4 else t[None]).expand(groups, -1, -1)
        x = x.expand(groups, -1, -1)
        if ctx is not None:
            x = torch.cat([x[:, :1], grouped(ctx).float(), x[:, 1 + n :]], dim=1)
        x = (x + self.positional_embedding[:n_prefix].float()).to(self.dtype)
        kv = []
        for i, block in enumerate(self.blocks[:upto]):
            if 1 <= i <= len(deep) and deep[i - 1] is not None:  # the slots to overwrite were left out below
                x = torch.cat([x[:, :1], grouped(deep[i - 1]).to(x.dtype), x[:, 1:]], dim=1)
            k, v = project(block, x, "kv")
            kv += [k, v]
            if i == self.layers - 1:
                return kv, None
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            if i < len(deep) and deep[i] is not None and not accumulate:
                behind = 1 + deep[i].shape[-2]
                x, seen = torch.cat([x[:, :1], x[:, behind:]], dim=1), torch.cat([seen[:1], seen[behind:]])
            (q,) = project(block, x, "q")
            x = finish(block, x, F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
        return kv, x

    def embed_suffix(self, prompts, n_prefix: int, weights: Tensor | None) -> Tensor:
        """Embeddings ``[1, R, d]`` of the positions behind the prefix, packed."""
        length = prompts.length
        w = None if weights is None else weights[:, n_prefix:length]
        x = self._embed(prompts.tokens[:, n_prefix:length], n_prefix, w)
        return prompts.layout(n_prefix).pack(x).to(self.dtype)[None]

    def _suffix(self, prompts, n_prefix: int, weights: Tensor | None, *kv: Tensor) -> Tensor:
        """Features ``[G, C, E]`` of the positions behind the prefix."""
        layout = prompts.layout(n_prefix)
        x = self.embed_suffix(prompts, n_prefix, weights)  # one row for all groups until it has seen the prefix
        for block, prefix_k, prefix_v in zip(self.blocks[:-1], kv[::2], kv[1::2]):
            q, k, v = project(block, x)
            x = finish(block, x, attend_with_prefix(q, k, v, prefix_k, prefix_v, layout))
        k, v = project(self.blocks[-1], x, "kv")  # of the last block only the EOT rows are needed
        x = x[:, layout.used.sum(1).cumsum(0) - 1]
        (q,) = project(self.blocks[-1], x, "q")
        return self._project(finish(self.blocks[-1], x, attend_last_rows(q, k, v, *kv[-2:], layout)))

    def _chunks(
        self, prompts: ClassPrompts, n_prefix: int, groups: int, chunk_tokens: int | None
    ) -> list[Tensor | None]:
        """Texts to evaluate together, the short ones first; ``[None]`` is all at once."""
        if chunk_tokens is None:
            return [None]
        longest = (prompts.length - n_prefix) * groups
        if len(prompts) * longest <= chunk_tokens:
            return [None]
        return list(prompts.eot.argsort(stable=True).split(max(1, chunk_tokens // longest)))
