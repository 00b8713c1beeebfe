"""Token features of CLIP for composed retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.models.tokens import TextTokens, TokenEncoder


class ClipTokens(TokenEncoder):
    """All tokens of CLIP's towers through ``ln_final``/``ln_post`` and the contrastive projections.

    Text attention is causal, so the rows behind EOT are defined but mean nothing: they count as padding.

    Args:
        clip: a ViT CLIP from ``load_clip``.

    Raises:
        ValueError: a ResNet CLIP, whose attention pooling has no token features.
    """

    def __init__(self, clip: nn.Module):
        super().__init__()
        if not clip.is_vit:
            raise ValueError(
                "composed retrieval needs the patch tokens of a ViT: choose e.g. ViT-B/32 or ViT-L/14 instead of a ResNet"
            )
        self.clip, self.digest = clip, clip.digest
        self.activation, self.activation_source = clip.activation, clip.activation_source
        self.width, self.image_size = clip.embed_dim, clip.image_size
        self.n_image, self.max_text = clip.vision.n_patches + 1, clip.text.context_length
        self.tune("none")
        self.eval()

    def text_tokens(self, captions: Sequence[str], trim: bool = True) -> TextTokens:
        prompts = self.clip.text.prompts_from_texts(list(captions), truncate=True)
        tokens = self.clip.text(prompts, trim=trim, return_tokens=True)[1]
        pad = torch.arange(tokens.shape[1], device=tokens.device) > prompts.eot[:, None]
        return TextTokens(tokens, prompts.eot, pad)

    def image_tokens(self, images: Tensor) -> Tensor:
        return self.clip.vision(images, return_tokens=True)[1]

    def image_features(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)

    def text_parameters(self) -> Iterator[nn.Parameter]:
        return self.clip.text.parameters()

    def image_parameters(self) -> Iterator[nn.Parameter]:
        return self.clip.vision.parameters()
