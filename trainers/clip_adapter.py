"""CLIP-Adapter: a bottleneck behind the frozen image tower (Gao et al., IJCV 2024, arXiv 2110.04544)."""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.templates import template_for
from dassl_prompts.classification.trainer import ClassificationTrainer
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.zsclip import FrozenTextModel


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.CLIP_ADAPTER",
        {
            "RATIO": 0.2,  # share of the adapter's output
            "REDUCTION": 4,  # width of the bottleneck: joint width / REDUCTION
            "TEMPLATE": "",  # "" = the dataset's own; e.g. "a photo of a {}."
            "PREC": "amp",  # fp16, fp32, amp; the adapter is fp32 in all of them
        },
    )


class Adapter(nn.Module):
    """``(1 - r) x + r ReLU(U ReLU(D x))`` without bias, D: E -> E / reduction, in fp32."""

    def __init__(self, width: int, ratio: float, reduction: int = 4):
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"RATIO of an adapter is {ratio}; it must lie between 0 and 1")
        if reduction < 1:
            raise ValueError(f"REDUCTION of an adapter is {reduction}; give at least 1")
        self.ratio, hidden = ratio, max(1, width // reduction)
        down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return (1 - self.ratio) * x + self.ratio * self.fc(x)


class CLIPAdapterModel(FrozenTextModel):
    """Adapted image features against the class features of a template."""

    checkpoint_name = "clip_adapter"

    def __init__(self, clip, classnames, template: str, ratio: float = 0.2, reduction: int = 4):
        super().__init__(clip, classnames, [template])
        self.adapter = Adapter(clip.embed_dim, ratio, reduction)

    @property
    def checkpoint_module(self):
        return self.adapter

    def image_features(self, images, prompts):
        with torch.no_grad():
            features = super().image_features(images, prompts)
        return self.adapter(features)


@register_trainer
class CLIPAdapter(ClassificationTrainer):
    """CLIP-Adapter: a bottleneck behind the frozen image tower.

    Cross-entropy over s norm(A(v)) w^T; the adapter is learned, both towers are frozen.
    """

    frozen_image_side = True
    config_node = "CLIP_ADAPTER"
    reading_keys = ("TRAINER.CLIP_ADAPTER.RATIO", "TRAINER.CLIP_ADAPTER.REDUCTION")

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.CLIP_ADAPTER
        template = template_for(cfg, node.TEMPLATE, "TRAINER.CLIP_ADAPTER.TEMPLATE")
        return CLIPAdapterModel(clip, classnames, template, node.RATIO, node.REDUCTION)
