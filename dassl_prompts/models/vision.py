"""INTERIM vision tower, until the towers agent's lands."""

from __future__ import annotations

import torch
import torch.nn as nn


class VisionTower(nn.Module):
    def __init__(self, visual):
        super().__init__()
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.layers = len(visual.transformer.resblocks)
        self.patch_size = visual.conv1.kernel_size[0]
        self.image_size = visual.image_size[0] if isinstance(visual.image_size, (tuple, list)) else visual.image_size
        self.n_patches = (self.image_size // self.patch_size) ** 2

    def forward(self, images, prompts=None, deep=(), return_layers=False, return_tokens=False):
        v = self.visual
        x = v.conv1(images).flatten(2).transpose(1, 2)
        b = len(x)
        x = torch.cat([v.class_embedding.expand(b, 1, -1).to(x.dtype), x], 1) + v.positional_embedding
        n = 0
        if prompts is not None:
            n = prompts.shape[-2]
            x = torch.cat([x, prompts.expand(b, -1, -1).to(x.dtype)], 1)
        x = v.ln_pre(x)
        layers = []
        for i, block in enumerate(v.transformer.resblocks):
            if 1 <= i <= len(deep):
                x = torch.cat([x[:, :-n], deep[i - 1].expand(b, -1, -1).to(x.dtype)], 1)
            x = block(x)
            layers.append(x)
        feat = self.head(x[:, 0])
        if return_layers:
            return feat, layers
        if return_tokens:
            return feat, self.head(x)
        return feat

    def head(self, x):
        return (self.visual.ln_post(x) @ self.visual.proj).float()
