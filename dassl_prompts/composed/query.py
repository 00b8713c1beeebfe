"""Query features of composed retrieval: a fused query, or one of the training-free baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.models.tokens import TokenEncoder

#: (captions, token maps of the references [B, n_image, d]) -> query features [B, d]
QueryFunction = Callable[[Sequence[str], Tensor], Tensor]


def image_only(encoder: TokenEncoder) -> QueryFunction:
    """The reference's feature; the caption is ignored."""
    return lambda captions, images: F.normalize(images[:, 0].float(), dim=-1)


def text_only(encoder: TokenEncoder) -> QueryFunction:
    """The caption's feature; the reference is ignored."""
    return lambda captions, images: F.normalize(encoder.text_tokens(captions).features.float(), dim=-1)


def image_text_sum(encoder: TokenEncoder, normalize_first: bool = False, weight: float = 0.5) -> QueryFunction:
    """Sum of both features, of the un-normalised ones (CLIP4Cir, SEARLE's authors) or the normalised ones
    (Pic2Word).

    Args:
        weight: share of the text, 0 to 1; at one half it is the plain sum, to the bit.
    """

    def query(captions: Sequence[str], images: Tensor) -> Tensor:
        text, image = encoder.text_tokens(captions).features.float(), images[:, 0].float()
        if normalize_first:
            text, image = F.normalize(text, dim=-1), F.normalize(image, dim=-1)
        return F.normalize(2 * weight * text + 2 * (1 - weight) * image, dim=-1)

    return query


#: the sums, whose parts may be weighted, and whether these are normalised first
SUMS = {"image+text": False, "image+text, normalised": True}
BASELINES: dict[str, Callable[[TokenEncoder], QueryFunction]] = {
    "image": image_only,
    "text": text_only,
    **{name: partial(image_text_sum, normalize_first=first) for name, first in SUMS.items()},
}


def mean_over_wordings(query: QueryFunction, wordings: Sequence[Sequence[str]], images: Tensor) -> Tensor:
    """Query features [B, d] averaged over each query's wordings (FashionIQ's two caption orders) and
    normalised.

    Args:
        wordings: B tuples of equal length. images: [B, n_image, d].
    """
    counts = torch.tensor([len(texts) for texts in wordings], device=images.device)
    owner = torch.repeat_interleave(torch.arange(len(wordings), device=images.device), counts)
    features = query([text for texts in wordings for text in texts], images[owner])
    total = torch.zeros(len(wordings), features.shape[1], device=features.device).index_add_(0, owner, features)
    return total if int(counts.max()) == 1 else F.normalize(total, dim=-1)
