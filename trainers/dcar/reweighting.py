"""Dynamic token re-weighting (DCAR): how much each caption token says about its image.

w_j = |S(token_j, blank image) - S(token_j, image)|: with a CLIP-like critic an estimate of the pointwise
mutual information of token and image. The formula is the paper's (its architecture figure); normalisation and
the choice of features are ours. Everything here is per *content* token: ``[B, L]`` with position j for the
j-th token behind SOT and the prompt slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dassl_prompts.captions.bpe import word_index
from dassl_prompts.captions.features import encode_sorted
from dassl_prompts.classification.prompted import Prompts, normalize

NORMS = ("mean1", "softmax", "minmax", "residual", "none")
IMAGE_FEATS = ("global", "patch_max", "patch_mean")
BLANKS = ("white", "black", "mean")
#: |dS| below this is rounding: an image equal to the blank one differs from it by as much, depending on its batch
SILENT = 1e-4


def blank_image(kind: str, size: int, mean, std) -> Tensor:
    """``[1, 3, size, size]`` after normalisation; "mean" is zero there."""
    level = {"white": 1.0, "black": 0.0}.get(kind)
    if level is None:
        return torch.zeros(1, 3, size, size)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std))
    return ((level - mean) / std).expand(1, 3, size, size).clone()


def similarity(tokens: Tensor, image: Tensor, kind: str = "global") -> Tensor:
    """S(token, image) ``[B, L]``.

    Args:
        tokens: normalised token features ``[B, L, E]``.
        image: normalised image features ``[B, E]``, for the patch kinds ``[B, P, E]``; B may be 1.
        kind: "global", "patch_max" or "patch_mean".
    """
    # differences of these are small: half precision would leave little of them
    with torch.autocast(tokens.device.type, enabled=False):
        if kind == "global":
            return (tokens @ image.unsqueeze(-1)).squeeze(-1)
        scores = tokens @ image.transpose(-1, -2)
        return scores.amax(-1) if kind == "patch_max" else scores.mean(-1)


def token_weights(
    delta: Tensor,
    content: Tensor,
    norm: str = "mean1",
    clamp: tuple[float, float] = (0.2, 3.0),
    beta: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """Weights ``[B, L]`` from |dS|; 1 wherever ``content`` is False and for captions whose dS says nothing
    (not above :data:`SILENT`).

    Args:
        delta: non-negative ``[B, L]``.
        content: True at content tokens.
        norm: "mean1" divides by the caption's mean; "softmax" is n softmax(scale dS); "minmax" maps to 0..1;
            "residual" is 1 + beta minmax; "none" is the bare formula.
        clamp: bounds of the result, except for "none".
        beta: factor of "residual".
        scale: inverse temperature of "softmax".
    """
    with torch.no_grad():
        delta = delta.float()
        count = content.sum(1, keepdim=True).clamp(min=1)
        low = delta.masked_fill(~content, torch.inf).amin(1, keepdim=True)
        high = delta.masked_fill(~content, -torch.inf).amax(1, keepdim=True)
        mean = delta.masked_fill(~content, 0.0).sum(1, keepdim=True) / count
        if norm == "mean1":
            weights, says = delta / mean, mean > SILENT
        elif norm == "softmax":
            weights, says = count * (scale * delta).masked_fill(~content, -torch.inf).softmax(1), mean > SILENT
        elif norm == "none":
            return torch.where(content & (mean > SILENT), delta, 1.0)
        else:
            weights, says = (delta - low) / (high - low), high - low > SILENT
            weights = 1 + beta * weights if norm == "residual" else weights
        return torch.where(content & says, weights.clamp(*clamp), 1.0)


def group_means(values: Tensor, groups: Tensor, content: Tensor) -> Tensor:
    """Mean of ``values [B, L]`` over tokens of the same group (word) in a caption; ``groups [B, L]`` counts
    from 0.
    """
    groups = groups.masked_fill(~content, values.shape[1] - 1)
    masked = values.masked_fill(~content, 0.0)
    sums = torch.zeros_like(values).scatter_add_(1, groups, masked)
    counts = torch.zeros_like(values).scatter_add_(1, groups, content.to(values.dtype))
    return torch.where(content, (sums / counts.clamp(min=1)).gather(1, groups), values)


def place_weights(weights: Tensor, eot: Tensor, n_ctx: int, length: int) -> Tensor:
    """Content weights ``[B, L]`` at the token positions ``[B, length]`` of prompted captions; 1 at SOT,
    slots, EOT, padding.

    Args:
        eot: ``[B]`` position of EOT, 1 + n_ctx + number of content tokens that fitted.
    """
    start = 1 + n_ctx
    placed = weights.new_ones(len(weights), length)
    fits = min(weights.shape[1], length - start)
    placed[:, start : start + fits] = weights[:, :fits]
    position = torch.arange(length, device=weights.device)
    return torch.where(position < eot[:, None], placed, 1.0)


class VocabularyWeights:
    """Image-independent weights: the training average of the weights per token id; unseen ids have weight 1.

    Args:
        ids: content token ids ``[N, L]``.
        weights: their weights ``[N, L]``.
        content: True at content tokens.
        vocab_size: number of token ids.
    """

    def __init__(self, ids: Tensor, weights: Tensor, content: Tensor, vocab_size: int):
        sums = torch.zeros(vocab_size, device=weights.device).index_add_(0, ids[content], weights[content])
        counts = torch.zeros_like(sums).index_add_(0, ids[content], torch.ones_like(weights[content]))
        self.table = torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)

    def __call__(self, ids: Tensor, content: Tensor) -> Tensor:
        """Weights ``[B, L]`` of captions with these content ids."""
        return torch.where(content, self.table[ids], 1.0)


class TokenReweighter:
    """Pair weights from a CLIP: its token features, its image features, and those of a blank image.

    Args:
        clip: frozen CLIP.
        node: the keys of ``TRAINER.DCAR.DTR``.
        mean, std: pixel statistics of the inputs.
    """

    def __init__(self, clip, node, mean, std):
        self.clip, self.node = clip, node
        self._blank_pixels = blank_image(node.BLANK, clip.image_size, mean, std)
        self._blank: Tensor | None = None
        self._isolated: Tensor | None = None

    def content(self, captions) -> Tensor:
        """``[B, L]`` bool: which of the L positions behind the slots hold a content token of the caption."""
        counts = captions.eot - 1 - captions.n_ctx
        return torch.arange(max(int(counts.max()), 1), device=counts.device) < counts[:, None]

    def ids(self, captions) -> Tensor:
        """Content token ids ``[B, L]``, padded with whatever follows."""
        start = 1 + captions.n_ctx
        return captions.tokens[:, start : start + self.content(captions).shape[1]]

    @torch.no_grad()
    def image_features(self, images: Tensor, prompts: Prompts = Prompts()) -> Tensor:
        """Normalised ``[B, E]``, or patch tokens ``[B, P, E]``."""
        if self.node.IMAGE_FEAT == "global":
            if prompts.has_vision:
                return normalize(self.clip.vision(images, prompts.vision, prompts.vision_deep))
            return normalize(self.clip.encode_image(images))
        tokens = self.clip.vision(images, prompts.vision, prompts.vision_deep, return_tokens=True)[1]
        return normalize(tokens[:, 1 : 1 + self.clip.vision.n_patches])

    @torch.no_grad()
    def blank_features(self, prompts: Prompts = Prompts()) -> Tensor:
        """The same of the blank image; without prompts a constant."""
        pixels = self._blank_pixels.to(self.clip.logit_scale.device)
        if prompts.has_vision:
            return self.image_features(pixels, prompts)
        if self._blank is None:
            self._blank = self.image_features(pixels)
        return self._blank

    @torch.no_grad()
    def token_features(self, captions, prompts: Prompts = Prompts()) -> Tensor:
        """Normalised features ``[B, L, E]`` of the content tokens."""
        if self.node.TOKEN_FEAT == "isolated":
            return self._vocabulary(self.ids(captions))
        tokens = self.clip.text(captions, prompts.text, prompts.text_deep, return_tokens=True)[1]
        start = 1 + captions.n_ctx
        return normalize(tokens[:, start : start + self.content(captions).shape[1]])

    def _vocabulary(self, ids: Tensor) -> Tensor:
        """Features of each token alone, SOT token EOT; computed once per id."""
        if self._isolated is None:
            self._isolated = torch.full(
                (len(self.clip.text.token_embedding.weight), self.clip.embed_dim),
                torch.nan,
                device=ids.device,
            )
        unique = ids.unique()
        new = unique[self._isolated[unique, 0].isnan()]
        if len(new):
            sot, eot = self.clip.tokenize([""])[0, :2]
            tokens = torch.zeros(len(new), self.clip.text.context_length, dtype=torch.long, device=ids.device)
            tokens[:, 0], tokens[:, 1], tokens[:, 2] = sot, new, eot
            self._isolated[new] = normalize(self.clip.encode_text(tokens))
        return self._isolated[ids]

    @torch.no_grad()
    def weights(self, captions, tokens: Tensor, images: Tensor, blank: Tensor) -> Tensor:
        """Pair weights ``[B, L]`` from token features ``[B, L, E]`` and image features of the pairs."""
        node = self.node
        content = self.content(captions)
        if node.IMAGE_FEAT == "global":
            delta = similarity(tokens, blank - images).abs()
        else:
            delta = (similarity(tokens, blank, node.IMAGE_FEAT) - similarity(tokens, images, node.IMAGE_FEAT)).abs()
        if node.GROUP_WORDS:
            delta = group_means(delta, word_index(self.ids(captions)), content)
        scale = float(self.clip.logit_scale.float().exp())
        return token_weights(delta, content, node.NORM, tuple(node.CLAMP), node.BETA, scale)

    def pair_weights(self, captions, images: Tensor, prompts: Prompts = Prompts()) -> Tensor:
        """Pair weights ``[B, L]`` of captions with the images of these features (see :meth:`image_features`)."""
        return self.weights(captions, self.token_features(captions, prompts), images, self.blank_features(prompts))

    def all_pair_weights(self, captions, images: Tensor, batch_size: int = 256, prompts: Prompts = Prompts()) -> Tensor:
        """The same for a whole set, in length-sorted batches; ``[N, L]`` with 1 behind shorter captions."""
        length = self.content(captions).shape[1]

        def encode(index):
            weights = self.pair_weights(captions.select(index), images[index], prompts)
            return torch.nn.functional.pad(weights, (0, length - weights.shape[1]), value=1.0)

        return encode_sorted(captions.eot, encode, batch_size)
