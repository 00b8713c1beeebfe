"""DPC's objective: a symmetric contrastive loss over aligned (image, class) pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def symmetric_contrastive(
    images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor, duplicates="official"
) -> Tensor:
    """Symmetric InfoNCE over N aligned pairs.

    Args:
        images, texts: normalised features ``[N, E]``; row i of both belongs to pair i.
        labels: ``[N]`` classes; pairs may share one.
        scale: exp(logit_scale).
        duplicates: what the other pairs of the same class are. ``official``: negatives like all others (for text features
            that depend on the class alone this equals uniform soft targets). ``mask``: left out of the denominator.
            ``multipos``: positives, -log of their summed probability. ``unique``: as ``official``, on batches without repeats.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * images.float() @ texts.float().t()
    target = torch.arange(len(labels), device=logits.device)
    same = labels[:, None] == labels[None, :]
    if duplicates == "mask":
        others = same & ~torch.eye(len(labels), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(others, float("-inf"))
    if duplicates == "multipos":
        nll = lambda s: -(s.log_softmax(1).masked_fill(~same, float("-inf")).logsumexp(1)).mean()
        return 0.5 * (nll(logits) + nll(logits.t()))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))
