"""Visual attributes of an image: clusters of patch tokens at every layer of the frozen image tower, as retrieval queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dassl_prompts.classification.prompted import Prompts, normalize
from dassl_prompts.trainers.attriprompt.kmeans import kmeans

TOKENS = ("patch", "patch+cls")
SPACES = ("layer", "joint")
METHODS = ("kmeans", "mean", "cls")
QUERIES = ("head", "raw")
#: tokens clustered in one go, in bytes: what a processor's cache holds; a GPU wants few, large calls
CLUSTER_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}


class View(NamedTuple):
    """What AttriPrompt needs to know of images.

    Attributes:
        feature: ``[B, E]`` normalised image features.
        queries: ``[B, L, K, Q]`` unit queries, one set per prompted text layer; Q = E, or the tower's width for raw queries.
    """

    feature: Tensor
    queries: Tensor


def matching_layers(vision_layers: int, text_layers: int, depth: int) -> list[int]:
    """The vision block (from 0) that feeds each of the first ``depth`` text blocks: the nearest proportional one."""
    return [max((2 * (i + 1) * vision_layers + text_layers) // (2 * text_layers) - 1, 0) for i in range(depth)]


class AttributeQueries:
    """Images to :class:`View`.

    Args:
        clip: frozen CLIP with a vision transformer.
        depth: number of prompted text layers, L.
        tokens: "patch", or "patch+cls" to cluster the class token, too.
        space: "layer" clusters the block's output, "joint" what the frozen head makes of it.
        method: "kmeans", "mean" (one query: the mean token) or "cls" (one query: the class token).
        k, iters, metric: see :func:`dassl_prompts.trainers.attriprompt.kmeans.kmeans`.
        query: "head" sends a centroid through the frozen head (``ln_post`` and projection), "raw" takes it as it is, which
            only learned keys can match.
    """

    def __init__(
        self,
        clip,
        depth: int,
        *,
        tokens: str = "patch",
        space: str = "layer",
        method: str = "kmeans",
        k: int = 4,
        iters: int = 10,
        metric: str = "l2",
        query: str = "head",
    ):
        if not clip.is_vit:
            raise ValueError(
                "AttriPrompt clusters the patch tokens of a vision transformer: set MODEL.BACKBONE.NAME to a ViT"
            )
        patches = clip.vision.n_patches + (tokens == "patch+cls")
        if method == "kmeans" and not 1 <= k <= patches:
            raise ValueError(
                f"TRAINER.ATTRIPROMPT.CLUSTER.K is {k}, but {clip.vision.image_size} px images have {patches} tokens to "
                f"cluster: choose 1 to {patches}"
            )
        self.clip = clip
        self.tokens, self.space, self.method, self.query = tokens, space, method, query
        self.k, self.iters, self.metric = k, iters, metric
        layers = matching_layers(clip.vision.layers, clip.text.layers, depth)
        self.blocks = sorted(set(layers))  # vision blocks (from 0) that are looked at
        self.order = [self.blocks.index(i) for i in layers]  # one vision block may feed several text layers

    @property
    def clusters(self) -> int:
        """Queries per layer."""
        return self.k if self.method == "kmeans" else 1

    @property
    def width(self) -> int:
        """Length of a query."""
        return self.clip.vision.width if self.query == "raw" and self.space == "layer" else self.clip.embed_dim

    def __call__(self, images: Tensor, prompts: Prompts | None = None) -> View:
        """Feature and queries of ``images [B, 3, H, W]``; gradients flow to visual prompts through the feature only."""
        return self.view(*self.outputs(images, prompts))

    def view(self, feature: Tensor, outputs: list[Tensor]) -> View:
        """From what :meth:`outputs` returned."""
        with torch.no_grad(), torch.autocast(feature.device.type, enabled=False):
            queries = self.queries(outputs)
        return View(normalize(feature), queries)

    def outputs(self, images: Tensor, prompts: Prompts | None = None) -> tuple[Tensor, list[Tensor]]:
        """Un-normalised feature ``[B, E]`` and the outputs ``[B, 1 + P, d_v]`` of ``self.blocks``.

        One run of the image tower; the tokens of visual prompts are left out.
        """
        learn = prompts is not None and prompts.has_vision
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            vision = (prompts.vision, prompts.vision_deep) if learn else ()
            feature, blocks = self.clip.vision(images, *vision, return_layers=True)
        end = 1 + self.clip.vision.n_patches
        return feature, [blocks[i][:, :end].detach() for i in self.blocks]

    def queries(self, outputs: list[Tensor]) -> Tensor:
        """Unit queries ``[B, L, K, Q]`` from the outputs of ``self.blocks``."""
        return self.block_queries(outputs)[:, self.order]

    def block_queries(self, outputs: list[Tensor]) -> Tensor:
        """Unit queries of each of ``self.blocks``, ``[B, blocks, K, Q]``."""
        stacked = torch.stack(self.centroids(outputs), dim=1)
        if self.query == "head" and self.space == "layer":
            stacked = self.clip.vision.head(stacked)
        return normalize(stacked)

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        """What a :class:`View` without prompts is made of, ``[B, E + blocks K Q]``: the feature, then each block's queries."""
        feature, outputs = self.outputs(images)
        with torch.autocast(feature.device.type, enabled=False):
            return torch.cat([normalize(feature), self.block_queries(outputs).flatten(1)], dim=1)

    def view_of(self, rows: Tensor) -> View:
        """The view that :meth:`rows` holds."""
        feature, queries = rows.split([self.clip.embed_dim, rows.shape[1] - self.clip.embed_dim], dim=1)
        blocks = queries.unflatten(1, (len(self.blocks), self.clusters, self.width))
        return View(feature, blocks[:, self.order])

    def centroids(self, outputs: list[Tensor]) -> list[Tensor]:
        """Per output the centroids ``[B, K, D]``, larger clusters first."""
        if self.method != "kmeans":
            tokens = [self.in_space(x[:, :1] if self.method == "cls" else self.clustered(x)) for x in outputs]
            return [x.mean(dim=1, keepdim=True) for x in tokens]
        batch = len(outputs[0])
        size = outputs[0].numel() * 4
        group = max(1, CLUSTER_BYTES.get(outputs[0].device.type, CLUSTER_BYTES["cpu"]) // size)
        result = []
        for start in range(0, len(outputs), group):
            parts = [self.in_space(self.clustered(x)) for x in outputs[start : start + group]]
            tokens = torch.cat(parts) if len(parts) > 1 else parts[0]
            result += kmeans(tokens, self.k, self.iters, self.metric).centroids.split(batch)
        return result

    def clustered(self, output: Tensor) -> Tensor:
        """The tokens to cluster."""
        return output if self.tokens == "patch+cls" else output[:, 1:]

    def in_space(self, tokens: Tensor) -> Tensor:
        """Tokens as they are clustered, in fp32."""
        return normalize(self.clip.vision.head(tokens)) if self.space == "joint" else tokens.float()

    def labels(self, output: Tensor) -> Tensor:
        """Which cluster each clustered token of one layer belongs to, ``[B, P]``, for drawing."""
        if self.method != "kmeans":
            return torch.zeros(output.shape[0], self.clustered(output).shape[1], dtype=torch.int64)
        return kmeans(self.in_space(self.clustered(output)), self.k, self.iters, self.metric).labels
