"""Token features of CLIP and BLIP in the joint space, as composed retrieval fuses them.

Every token of a tower's last layer goes through the tower's own final norm and contrastive projection, so
text and image tokens have the width of the joint space and no new projection is learned. Features are not
normalised.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.engine.config import one_of

TUNING_MODES = ("none", "text", "both")
#: all of CLIP4Cir, SEARLE and TransAgg use CLIP's statistics, for BLIP too
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class TextTokens(NamedTuple):
    """Tokens [B, L, d], position of the global token [B], padding [B, L] (True where a token is padding)."""

    tokens: Tensor
    row: Tensor
    pad: Tensor

    @property
    def features(self) -> Tensor:
        """Global features [B, d]."""
        return self.tokens[torch.arange(len(self.row), device=self.row.device), self.row]


class TokenEncoder(nn.Module):
    """A pair of towers. Attributes: ``width`` d, ``image_size`` in pixels, ``n_image`` and ``max_text``
    tokens."""

    width: int
    image_size: int
    n_image: int
    max_text: int
    #: of the weights as they were loaded
    digest = ""
    #: of a CLIP: "quickgelu" or "gelu", and who says so
    activation = activation_source = ""
    #: which towers are trained, see :meth:`tune`
    tuning = "none"
    #: whether dropout also acts in the training of a head on frozen towers
    frozen_dropout = False

    @abstractmethod
    def text_tokens(self, captions: Sequence[str], trim: bool = True) -> TextTokens:
        """Token features of captions; too long ones are cut.

        Args:
            trim: leave out columns that are padding in every row. Their features are only needed where
                padding is not hidden.
        """

    @abstractmethod
    def image_tokens(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, n_image, d]; row 0 is the global feature."""

    @abstractmethod
    def text_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the text side that 'text' and 'both' train."""

    @abstractmethod
    def image_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the image side that 'both' trains."""

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, d], the global features."""
        return self.image_tokens(images)[:, 0]

    def tune(self, mode: str) -> list[nn.Parameter]:
        """Freeze everything but what ``mode`` trains; returns what it trains.

        Raises:
            ValueError: unknown mode.
        """
        self.tuning = one_of(mode, TUNING_MODES, "BACKBONE.TUNE")
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        trained = list(self.text_parameters()) if mode != "none" else []
        trained += list(self.image_parameters()) if mode == "both" else []
        for parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def train(self, mode: bool = True):
        """Dropout acts in the text tower only, and only while it is trained or with :attr:`frozen_dropout`."""
        super().train(mode and (self.tuning != "none" or self.frozen_dropout))
        return self

    def image_fingerprint(self) -> str:
        """Digest of the image side's weights: cached features are valid for one value of it."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.image_size}".encode())
        for parameter in self.image_parameters():
            array = parameter.detach().float().cpu().contiguous().numpy()
            digest.update(str(array.shape).encode())
            digest.update(memoryview(array).cast("B"))
        return digest.hexdigest()
