"""Prompted vision-language fusion of PVLF (ACML 2024), of which TransAgg (BMVC 2023) is a special case.

Text tokens, learnable prompts and image tokens share one small transformer; the fused image and text rows are
mapped to a fusion feature, and three data-dependent weights combine it with the encoders' global features
into one query vector::

    tokens, eot, pad, image -> FusionTransformer -> h_t, h_v -> AdaptiveAggregation -> q, ||q|| = 1

TransAgg is PVLF-Shallow with one prompt row (its separator). Parameter names follow TransAgg's code, so that
its checkpoints can be read by renaming a prefix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.engine.config import one_of

BLOCKS = ("pre_ln", "paper_literal", "post_ln")
MASK_MODES = ("bool", "official_bias", "none")
PROMPT_MODES = ("deep", "shallow", "none")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
SEPARATOR_STD = 1.0  # TransAgg initialises its separator with a standard normal


class FusionAttention(nn.Module):
    """Multi-head attention with an explicit additive or boolean key mask; parameters as in
    ``nn.MultiheadAttention``.

    PyTorch's module treats a float key mask as a bias in some code paths and as a mask in others, which makes
    TransAgg's features depend on the torch version. Here the mask means one thing.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"FUSION.HEADS is {heads}, which does not divide the fusion width {width}")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """``queries`` [B,Q,d] attend to ``keys`` [B,L,d]; ``mask`` [B,1,1,L] is boolean (True = visible) or
        an additive bias."""
        width = queries.shape[-1]
        w_q, w_kv = self.in_proj_weight.split([width, 2 * width])
        b_q, b_kv = self.in_proj_bias.split([width, 2 * width])
        k, v = F.linear(keys, w_kv, b_kv).chunk(2, dim=-1)
        q, k, v = (self._heads(x) for x in (F.linear(queries, w_q, b_q), k, v))
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FusionBlock(nn.Module):
    """One fusion layer in one of three readings of eqs. (10)-(11); the default is TransAgg's pre-LN layer.

    ``pre_ln``         u' = u + MSA(LN1 u);        out = u' + FFN(LN2 u')
    ``paper_literal``  u' = MSA(u) + LN1 u;        out = FFN(LN2 u') + LN2 u'
    ``post_ln``        u' = LN1(u + MSA u);        out = LN2(u' + FFN u')
    """

    def __init__(self, width: int, heads: int, ff_dim: int, dropout: float, act: str, block: str):
        super().__init__()
        self.block = one_of(block, BLOCKS, "FUSION.BLOCK")
        self.act = ACTIVATIONS[one_of(act, ACTIVATIONS, "FUSION.ACT")]
        self.self_attn = FusionAttention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, ff_dim), nn.Linear(ff_dim, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """[B,L,d] -> [B,L,d], or [B,R,d] when only the ``rows`` [B,R] (long) of the output are wanted.

        Rows only interact through attention's keys and values, so computing a few of them is exact.
        """
        keys = self.norm1(x) if self.block == "pre_ln" else x
        u = take_rows(x, rows)
        attended = self.dropout(self.self_attn(take_rows(keys, rows), keys, mask))
        if self.block == "pre_ln":
            u = u + attended
            return u + self._feed_forward(self.norm2(u))
        if self.block == "paper_literal":
            u = self.norm2(attended + self.norm1(u))
            return self._feed_forward(u) + u
        u = self.norm1(u + attended)
        return self.norm2(u + self._feed_forward(u))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.act(self.linear1(x)))))


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """``x`` [B,L,d] at ``rows`` [B,R] -> [B,R,d]; all rows for None."""
    return x if rows is None else x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it is in half precision, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FusionTransformer(nn.Module):
    """Text, prompt and image tokens in one transformer (PVLF eqs. 8-12).

    Args:
        width: width d of the joint space.
        prompt_length: p learnable rows; ``prompt_mode`` 'deep' gives the first ``prompt_depth`` layers rows
            of their own and lets the last of them flow through any further layer, 'shallow' gives rows to
            layer 1 only, whatever the depth; 'none' uses no prompts.
        separator: one further learnable row between text and prompts (TransAgg's).
        max_text, max_image: longest sequences, needed by ``pos_embed`` only.
        block, mask_mode: see the module's constants. ``official_bias`` adds +1 to the attention logits of
            padding, which is what TransAgg's code does on the torch it pins; ``bool`` hides padding. Prompts
            are never masked.
        final_norm: LayerNorm after the last layer. type_embed: one learned vector each for text, prompts and
            image.
    """

    def __init__(
        self,
        width: int,
        *,
        num_layers: int = 2,
        heads: int = 8,
        ff_dim: int = 2048,
        dropout: float = 0.5,
        act: str = "gelu",
        block: str = "pre_ln",
        mask_mode: str = "bool",
        final_norm: bool = False,
        separator: bool = False,
        type_embed: bool = False,
        pos_embed: bool = False,
        max_text: int = 77,
        max_image: int = 0,
        prompt_length: int = 25,
        prompt_mode: str = "deep",
        prompt_depth: int = 2,
        prompt_std: float = 0.02,
    ):
        super().__init__()
        self.width, self.mask_mode = width, one_of(mask_mode, MASK_MODES, "FUSION.MASK_MODE")
        depth = prompt_depth_of(prompt_mode, prompt_length, prompt_depth, num_layers)
        first = FusionBlock(width, heads, ff_dim, dropout, act, block)
        self.layers = nn.ModuleList([first])
        for _ in range(num_layers - 1):
            layer = FusionBlock(width, heads, ff_dim, dropout, act, block)
            layer.load_state_dict(first.state_dict())  # TransAgg's layers start as copies of one
            self.layers.append(layer)
        self.prompts = nn.ParameterList(
            [nn.Parameter(torch.randn(prompt_length, width) * prompt_std) for _ in range(depth)]
        )
        self.sep_token = nn.Parameter(torch.randn(1, 1, width) * SEPARATOR_STD) if separator else None
        self.norm = nn.LayerNorm(width) if final_norm else None
        self.type_embed = nn.Parameter(torch.randn(3, width) * 0.02) if type_embed else None
        self.text_pos = nn.Parameter(torch.randn(max_text, width) * 0.02) if pos_embed else None
        self.image_pos = nn.Parameter(torch.randn(max_image, width) * 0.02) if pos_embed else None
        if pos_embed and not max_image:
            raise ValueError("FUSION.POS_EMBED needs the number of image tokens (max_image)")

    @property
    def n_learned(self) -> int:
        """Learnable rows between text and image."""
        return (self.sep_token is not None) + (len(self.prompts[0]) if len(self.prompts) else 0)

    def forward(
        self, text: Tensor, text_row: Tensor, pad: Tensor, image: Tensor, rows_only: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Fused text and image rows.

        Args:
            text: [B,Lt,d] token features. text_row: [B] position of the global text row (EOT for CLIP, 0 for
                BLIP).
            pad: [B,Lt] True where a text row is padding. image: [B,Lv,d], row 0 is the class token.
            rows_only: compute only the two rows that are returned in the last layer (exact, about half the
                work).

        Returns:
            ``(h_t, h_v)``, both [B,d].
        """
        n_text = text.shape[1]
        mask = self._mask(pad, image.shape[1])
        image_row = n_text + self.n_learned
        rows = torch.stack([text_row, torch.full_like(text_row, image_row)], dim=1)
        x = self._sequence(text, image)
        for index, layer in enumerate(self.layers):
            if 0 < index < len(self.prompts):
                x = self._overwrite(x, self.prompts[index], n_text)
            last = index == len(self.layers) - 1
            x = layer(x, mask, rows if last and rows_only else None)
        x = x if rows_only else take_rows(x, rows)
        x = x if self.norm is None else self.norm(x)
        return x[:, 0], x[:, 1]

    def _sequence(self, text: Tensor, image: Tensor) -> Tensor:
        """``[text; separator; prompts of layer 1; image]``."""
        batch = len(text)
        learned = [] if self.sep_token is None else [self.sep_token[0]]
        learned += list(self.prompts[:1])
        middle = torch.cat(learned).to(text.dtype) if learned else text.new_zeros(0, self.width)
        if self.text_pos is not None:
            text = text + self.text_pos[: text.shape[1]].to(text.dtype)
            image = image + self.image_pos[: image.shape[1]].to(image.dtype)
        if self.type_embed is not None:
            kinds = self.type_embed.to(text.dtype)
            text, middle, image = text + kinds[0], middle + kinds[1], image + kinds[2]
        return torch.cat([text, middle.expand(batch, -1, -1), image], dim=1)

    def _overwrite(self, x: Tensor, prompts: Tensor, n_text: int) -> Tensor:
        start = n_text + (self.sep_token is not None)
        fresh = prompts.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, :start], fresh, x[:, start + len(prompts) :]], dim=1)

    def _mask(self, pad: Tensor, n_image: int) -> Tensor | None:
        if self.mask_mode == "none":
            return None
        pad = F.pad(pad, (0, self.n_learned + n_image), value=False)[:, None, None, :]
        return ~pad if self.mask_mode == "bool" else pad.float()


def prompt_depth_of(mode: str, length: int, depth: int, num_layers: int) -> int:
    """Number of layers that own prompts.

    Raises:
        ValueError: naming the key that does not fit.
    """
    one_of(mode, PROMPT_MODES, "PROMPT.MODE")
    if num_layers < 1:
        raise ValueError(f"FUSION.NUM_LAYERS is {num_layers}; at least one layer is needed")
    if length < 0:
        raise ValueError(f"PROMPT.LENGTH is {length}; it cannot be negative")
    if mode == "deep" and not 0 <= depth <= num_layers:
        raise ValueError(f"PROMPT.DEPTH is {depth}; it must lie between 0 and FUSION.NUM_LAYERS = {num_layers}")
    if mode == "none" or length == 0:
        return 0
    return 1 if mode == "shallow" else depth


class AdaptiveAggregation(nn.Module):
    """Weighted sum of text, fused and image features with weights computed from the pair (PVLF eq. 13)::

        f_u = W2 Drop(ReLU(W1 [h_v; h_t] + b1)) + b2,   w = W3 f_u + b3,   q = w_0 t + w_1 f_u + w_2 v

    ``t`` and ``v`` are the encoders' un-normalised globals (``residual='encoder'``) or the fused rows; the
    MLP reads the fused rows or, as the paper's symbols can also be read, the encoders' globals
    (``mlp_input='encoder'``). The weights are TransAgg's order.

    Args:
        hidden_mult: hidden width of the MLP in multiples of ``width``.
        weight_act: 'none' (official), 'softmax' or 'sigmoid' over the three weights.
        weight_bias: initial bias of the three weights; None keeps PyTorch's random one.
        normalize_inputs: L2-normalise t and v before the sum.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden_mult: int = 8,
        dropout: float = 0.5,
        mlp_input: str = "fused",
        residual: str = "encoder",
        weight_act: str = "none",
        weight_bias: tuple[float, float, float] | None = None,
        normalize_inputs: bool = False,
    ):
        super().__init__()
        self.mlp_input = one_of(mlp_input, ("fused", "encoder"), "AGG.MLP_INPUT")
        self.residual = one_of(residual, ("encoder", "fused"), "AGG.RESIDUAL")
        self.weight_act = one_of(weight_act, ("none", "softmax", "sigmoid"), "AGG.WEIGHT_ACT")
        self.normalize_inputs = normalize_inputs
        self.combiner_layer = nn.Linear(2 * width, hidden_mult * width)
        self.dropout = nn.Dropout(dropout)
        self.output_layer = nn.Linear(hidden_mult * width, width)
        self.weighted_layer = nn.Linear(width, 3)
        if weight_bias is not None:
            with torch.no_grad():
                self.weighted_layer.bias.copy_(torch.tensor(weight_bias))

    def forward(self, fused_text: Tensor, fused_image: Tensor, text: Tensor, image: Tensor) -> Tensor:
        """Four [B,d] features -> L2-normalised fp32 query [B,d]."""
        pair = (fused_image, fused_text) if self.mlp_input == "fused" else (image, text)
        hidden = F.relu(self.combiner_layer(torch.cat(pair, dim=-1)))
        fused = self.output_layer(self.dropout(hidden))
        weights = at_least_fp32(self.weighted_layer(fused))
        if self.weight_act == "softmax":
            weights = weights.softmax(dim=-1)
        elif self.weight_act == "sigmoid":
            weights = weights.sigmoid()
        t, v = (text, image) if self.residual == "encoder" else (fused_text, fused_image)
        t, fused, v = at_least_fp32(t), at_least_fp32(fused), at_least_fp32(v)
        if self.normalize_inputs:
            t, v = F.normalize(t, dim=-1), F.normalize(v, dim=-1)
        query = weights[:, :1] * t + weights[:, 1:2] * fused + weights[:, 2:] * v
        return F.normalize(query, dim=-1)


class ComposedQueryEncoder(nn.Module):
    """Token features of a reference image and a caption -> query vector in the joint space."""

    def __init__(self, fusion: FusionTransformer, aggregation: AdaptiveAggregation):
        super().__init__()
        self.fusion, self.aggregation = fusion, aggregation

    def forward(self, text: Tensor, text_row: Tensor, pad: Tensor, image: Tensor) -> Tensor:
        """Shapes as in :meth:`FusionTransformer.forward`; returns [B,d], L2-normalised fp32."""
        h_t, h_v = self.fusion(text, text_row, pad, image)
        t = text[torch.arange(len(text), device=text.device), text_row]
        return self.aggregation(h_t, h_v, t, image[:, 0])


def focal_info_nce(
    query: Tensor,
    target: Tensor,
    *,
    tau: float = 0.01,
    alpha: float = 1.0,
    gamma: float = 2.0,
    symmetric: bool = False,
    target_ids: Tensor | None = None,
) -> Tensor:
    """Focal loss on the in-batch softmax from queries to targets (PVLF eqs. 14-15); gamma 0 is cross-entropy
    (TransAgg).

    Args:
        query, target: [B,d], L2-normalised; row i of ``target`` is the answer of row i of ``query``.
        symmetric: average with the direction from targets to queries.
        target_ids: [B] ids; other rows with the same target id are left out of the softmax. None compares
            with all rows.

    Returns:
        Mean over the batch, fp32.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = at_least_fp32(query) @ at_least_fp32(target).T / tau
    if target_ids is not None:
        same = target_ids[:, None] == target_ids[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, float("-inf"))
    loss = _focal(logits, alpha, gamma)
    return (loss + _focal(logits.T, alpha, gamma)) / 2 if symmetric else loss


def _focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    labels = torch.arange(len(logits), device=logits.device)
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    if gamma == 0:
        return alpha * cross_entropy.mean()
    # 1 - p without cancellation; the clamp keeps the derivative of x^gamma finite where p rounds to one.
    miss = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(logits.dtype).tiny)
    return alpha * (miss**gamma * cross_entropy).mean()
