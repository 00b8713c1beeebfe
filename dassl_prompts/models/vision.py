"""CLIP's image towers: the vision transformer with prompt slots, and the ResNet as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.engine import distributed
from dassl_prompts.models.blocks import check_blocks, layer_norm, run_block, run_rows


def square(size) -> int:
    """Side of a square given as int or pair."""
    return size if isinstance(size, int) else int(size[0])


class VisionTower(nn.Module):
    """The vision transformer of a CLIP.

    Args:
        visual: an ``open_clip`` VisionTransformer with OpenAI's architecture; its modules are used, not copied.

    Raises:
        ValueError: the transformer has parts that OpenAI's does not have.
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
            raise ValueError(
                "image towers with attention pooling or average pooling are not supported, only CLIP's class token"
            )
        check_blocks(visual.transformer.resblocks)
        self.conv1 = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre, self.ln_post = visual.ln_pre, visual.ln_post
        self.transformer = visual.transformer
        self.proj = visual.proj
        self.width = visual.conv1.out_channels
        self.layers = len(self.blocks)
        self.patch_size = visual.conv1.kernel_size[0]
        self.image_size = square(visual.image_size)
        self.n_patches = (self.image_size // self.patch_size) ** 2

    @property
    def blocks(self):
        return self.transformer.resblocks

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def forward(
        self,
        images: Tensor,
        prompts: Tensor | None = None,
        deep: Sequence[Tensor] = (),
        return_layers: bool = False,
        return_tokens: bool = False,
    ):
        """Image features ``[B, E]``, not normalised, fp32.

        Args:
            images: ``[B, 3, S, S]``, normalised.
            prompts: tokens ``[n, d_v]`` or ``[B, n, d_v]`` put behind the patches, after the positional embedding.
            deep: ``deep[i]`` overwrites them at the input of block i + 1.
            return_layers: also the outputs of all blocks, ``[B, 1 + P + n, d_v]`` each.
            return_tokens: also all rows of the last block in the joint space, ``[B, 1 + P + n, E]``.

        Raises:
            ValueError: images of another size, more deep prompts than blocks.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}, this tower takes {self.image_size} x {self.image_size}"
            )
        if len(deep) >= self.layers:
            raise ValueError(
                f"{len(deep)} deep prompts need a prompt depth of {len(deep) + 1}, the tower has {self.layers} layers"
            )
        if own := distributed.part(self, images):
            images, prompts, *deep = distributed.enter(images, prompts, *deep)
            cut = lambda t: t[own] if t is not None and t.ndim == 3 and len(t) > 1 else t
            given = (images[own], cut(prompts), [cut(t) for t in deep], return_layers, return_tokens)
            return distributed.run(self, own, len(images), *given)
        x, n = self._embed(images, prompts)
        outputs = []
        for i, block in enumerate(self.blocks):
            if 1 <= i <= len(deep):
                x = torch.cat(
                    [x[:, : x.shape[1] - n], deep[i - 1].expand(x.shape[0], n, self.width).to(x.dtype)], dim=1
                )
            if i == self.layers - 1 and not (return_layers or return_tokens):
                return self.head(run_rows(block, x))
            x = run_block(block, x, causal=False)
            outputs.append(x)
        if return_layers:
            return self.head(x[:, 0]), outputs
        tokens = self.head(x)
        return tokens[:, 0], tokens

    def _embed(self, images: Tensor, prompts: Tensor | None) -> tuple[Tensor, int]:
        """Input of the first block ``[B, 1 + P + n, d_v]`` and n."""
        x = self.conv1(images.to(self.dtype)).flatten(2).transpose(1, 2)
        x = x.to(self.dtype)  # autocast leaves bf16 here; the residual stream keeps the weights' precision, as in CLIP
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        n = 0
        if prompts is not None:
            n = prompts.shape[-2]
            x = torch.cat([x, prompts.expand(x.shape[0], n, self.width).to(x.dtype)], dim=1)
        return layer_norm(self.ln_pre, x), n

    def head(self, x: Tensor) -> Tensor:
        """``ln_post`` and the projection of any tokens: ``[..., d_v] -> [..., E]``, fp32."""
        return (layer_norm(self.ln_post, x.to(self.dtype)) @ self.proj).float()


class ResNetTower(nn.Module):
    """The modified ResNet of RN50-style CLIPs; it has no prompt slots."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.image_size = square(visual.image_size)
        self.layers, self.width = 0, 0

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def forward(self, images: Tensor, prompts: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Image features ``[B, E]``, not normalised, fp32.

        Raises:
            ValueError: prompts were given.
        """
        if prompts is not None or len(deep):
            raise ValueError("a ResNet image tower takes no prompts; set MODEL.BACKBONE.NAME to a ViT")
        return distributed.by_rows(self.visual, x=images.to(self.dtype)).float()
