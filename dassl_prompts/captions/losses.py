"""Losses of few-shot image-text retrieval (DCAR and its baselines), on normalised features and outside
autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS = ("both", "i2t", "t2i")
WEIGHT_MODES = ("prob", "logit", "loss")


def full(x: Tensor) -> Tensor:
    """At least fp32: products of half precision at inverse temperature 100 have steps of 0.06."""
    return x if x.dtype == torch.float64 else x.float()


def contrastive(
    images: Tensor, texts: Tensor, scale: Tensor, groups: Tensor | None = None, direction: str = "both"
) -> Tensor:
    """InfoNCE between paired ``[B, E]`` features (L_con).

    Args:
        images, texts: row i of one belongs to row i of the other.
        scale: inverse temperature, exp(logit_scale).
        groups: ``[B]`` ids of equal captions: pairs with the same id share the target mass evenly. None: all
            differ.
        direction: "i2t" classifies captions per image, "t2i" images per caption, "both" takes the mean.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = full(scale) * full(images) @ full(texts).t()
        if groups is None:
            target = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
        else:
            target = (groups[:, None] == groups[None, :]).to(logits.dtype)
            target = target / target.sum(1, keepdim=True)
        i2t, t2i = F.cross_entropy(logits, target), F.cross_entropy(logits.t(), target)
    return {"both": 0.5 * (i2t + t2i), "i2t": i2t, "t2i": t2i}[direction]


def category_loss(
    images: Tensor,
    candidates: Tensor,
    weights: Tensor,
    valid: Tensor,
    scale: Tensor,
    mode: str = "prob",
) -> Tensor:
    """Weighted contrast of each image with its own candidate captions (L_cate).

    Args:
        images: ``[B, E]``.
        candidates: ``[B, 1+K, E]``; index 0 is the positive caption.
        weights: ``[B, 1+K]``, 1 + alpha where the caption's category is the image's, else 1.
        valid: ``[B, 1+K]`` bool; False marks candidates that do not take part (padding, equal to the
            positive).
        scale: inverse temperature.
        mode: where the weight enters. "prob": multiplies the exponentials, in numerator and denominator.
            "logit": multiplies the cosines before the temperature. "loss": multiplies the terms -log
            sigmoid(s_0 - s_m) of the candidates' mean.
    """
    with torch.autocast(images.device.type, enabled=False):
        cosines = torch.einsum("be,bke->bk", full(images), full(candidates))
        weights, scale = full(weights), full(scale)
        if mode == "loss":
            terms = F.softplus(scale * (cosines[:, 1:] - cosines[:, :1]))
            factor = weights[:, 1:] * valid[:, 1:]
            return ((factor * terms).sum(1) / factor.sum(1).clamp(min=1e-6)).mean()
        scores = scale * cosines * weights if mode == "logit" else scale * cosines + weights.log()
        scores = scores.masked_fill(~valid, -torch.inf)
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))
