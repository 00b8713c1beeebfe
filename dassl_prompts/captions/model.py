"""A frozen CLIP with prompts for captions instead of class names."""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.prompted import Prompts, normalize


class RetrievalModel(nn.Module):
    """Encodes images and captions with the prompts that :meth:`emit` gives.

    A method sets ``n_ctx``, the number of prompt slots in front of every caption, registers its learnable
    tensors and implements :meth:`emit`. Everything outside ``clip`` is learned and checkpointed.

    Args:
        clip: a model from :func:`dassl_prompts.models.load_clip`; shared and never changed.
    """

    checkpoint_name = "prompt_learner"
    n_ctx = 0

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def emit(self) -> Prompts:
        """The prompt vectors that the current parameters stand for; none by default."""
        return Prompts()

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), frozen, fp32."""
        return self.clip.logit_scale.float().exp()

    @property
    def checkpoint_module(self) -> nn.Module:
        """What the optimiser and the checkpoint see."""
        return self

    #: captions are no classes: no tensor belongs to one
    class_tensors: frozenset[str] = frozenset()
    classnames: tuple[str, ...] = ()

    def frozen_digests(self) -> dict[str, str]:
        """What the frozen networks are that the learned tensors belong to, by name."""
        return {"backbone": self.clip.digest, "activation": self.clip.activation}

    @property
    def image_side_is_frozen(self) -> bool:
        """Whether image features never change, so that they are computed once."""
        return not self.emit().has_vision

    def tokenize(self, captions: list[str]):
        """Captions behind the prompt slots: SOT, slots, text, EOT; too long ones are cut, EOT stays,
        ``.truncated`` counts them.
        """
        return self.clip.text.prompts_from_texts(captions, n_ctx=self.n_ctx, truncate=True)

    def encode_images(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Normalised ``[B, E]``."""
        if prompts.has_vision:
            return normalize(self.clip.vision(images, prompts.vision, prompts.vision_deep))
        return normalize(self.clip.encode_image(images))

    def encode_captions(self, captions, prompts: Prompts, weights: Tensor | None = None) -> Tensor:
        """Normalised ``[B, E]``.

        Args:
            captions: what :meth:`tokenize` gave, or a selection of it.
            weights: ``[B, 77]`` factors of the token embeddings.
        """
        return normalize(self.clip.text(captions, prompts.text, prompts.text_deep, token_weights=weights))

    def refine_images(self, features: Tensor) -> Tensor:
        """Learned change of normalised image features ``[B, E]``; none by default."""
        return features

    def forward(self, images: Tensor, captions) -> tuple[Tensor, Tensor]:
        """Features of both sides of a batch."""
        prompts = self.emit()
        return self.refine_images(self.encode_images(images, prompts)), self.encode_captions(captions, prompts)


class ResidualAdapter(nn.Module):
    """``norm((1 - r) x + r MLP(x))`` with a bottleneck of two layers without bias (CLIP-Adapter's shape).

    Args:
        width: E. hidden: of the bottleneck. ratio: r.
    """

    def __init__(self, width: int, hidden: int, ratio: float):
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"RATIO of a residual adapter is {ratio}; it must lie between 0 and 1")
        self.ratio = ratio
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return normalize((1 - self.ratio) * x + self.ratio * self.mlp(x))


class Normalised(nn.Module):
    """``norm(module(x))`` in fp32."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return normalize(self.module(x.float()))


def caa_module(width: int, kind: str, hidden: int, ratio: float) -> nn.Module:
    """The trainable box behind the frozen text features of captions and negatives, ``[..., E] -> [..., E]``
    normalised.
    """
    if kind == "adapter":
        return ResidualAdapter(width, hidden, ratio)
    if kind == "linear":
        return Normalised(nn.Linear(width, width, bias=False))
    if kind == "mlp":
        return Normalised(
            nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False))
        )
    return Normalised(nn.Identity())
