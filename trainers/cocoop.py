"""CoCoOp: context tokens shifted per image by a small network on the image feature (Zhou et al., CVPR
2022)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts
from dassl_prompts.classification.trainer import ClassificationTrainer
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.coop import initial_context, tell_word_count


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.COCOOP",
        {
            "N_CTX": 16,  # number of context tokens
            "CTX_INIT": "",  # words whose token embeddings start the context; then N_CTX is their number
            "PREC": "amp",  # fp16, fp32, amp
        },
    )


class PromptLearner(nn.Module):
    """Holds ``ctx`` ``[n, d_t]`` and the meta-network Linear(E, E/16) - ReLU - Linear(E/16, d_t)."""

    def __init__(self, ctx: Tensor, embed_dim: int):
        super().__init__()
        self.ctx = nn.Parameter(ctx.clone().float())
        hidden = max(1, embed_dim // 16)
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(embed_dim, hidden),
                relu=nn.ReLU(inplace=True),
                linear2=nn.Linear(hidden, ctx.shape[-1]),
            )
        )


class CoCoOpModel(PromptedCLIP):
    """``ctx_b = ctx + meta_net(V_b)`` for image b, so every image is scored against its own class features.

    The official code loops over images and encodes C prompts for each. Here the contexts of the whole batch
    go through the text tower at once as ``[B, 1, n, d_t]``; only the class suffixes are repeated per image.
    """

    def __init__(self, clip, classnames, n_ctx=16, ctx_init=""):
        super().__init__(clip, classnames)
        ctx = initial_context(clip.text, n_ctx, ctx_init.replace("_", " "))
        self.class_prompts = clip.text.class_prompts(self.classnames, n_ctx=ctx.shape[0])
        self.prompt_learner = PromptLearner(ctx, clip.embed_dim)

    @property
    def checkpoint_module(self):
        return self.prompt_learner

    def emit(self) -> Prompts:
        """The context before it is shifted by an image."""
        return Prompts(text=self.prompt_learner.ctx)

    def condition(self, features: Tensor) -> Prompts:
        """Contexts ``[B, 1, n, d_t]`` for normalised image features ``[B, E]``."""
        with torch.autocast(features.device.type, enabled=False):
            shift = self.prompt_learner.meta_net(features.float())
            return Prompts(text=(self.prompt_learner.ctx + shift[:, None])[:, None])

    def prompts_for(self, images: Tensor, prompts: Prompts) -> Prompts:
        return self.condition(images)


@register_trainer
class CoCoOp(ClassificationTrainer):
    """CoCoOp: context tokens shifted per image by a small network.

    Cross-entropy over ``s V_b T(V_b)^T``; ``ctx`` and the meta-network are learned.
    """

    frozen_image_side = True
    config_node = "COCOOP"

    @classmethod
    def model_class(cls):
        return CoCoOpModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.COCOOP
        tell_word_count(clip.text, node, "TRAINER.COCOOP")
        return cls.model_class()(clip, classnames, node.N_CTX, node.CTX_INIT)
