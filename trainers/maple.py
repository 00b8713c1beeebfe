"""MaPLe: deep text prompts, and visual prompts coupled to them by linear maps (Khattak et al., CVPR 2023)."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts
from dassl_prompts.classification.trainer import ClassificationTrainer
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.ivlp import check_depth, language_prompt, random_tokens, refuse_unused_prompts


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.MAPLE",
        {
            "N_CTX": 2,  # tokens per layer in either tower
            "CTX_INIT": "a photo of a",  # starts the first text layer; words beyond N_CTX stay as fixed words
            "PREC": "amp",  # fp16, fp32, amp
            "PROMPT_DEPTH": 9,  # layers with own tokens; 1 = shallow
        },
    )


class MultiModalPromptLearner(nn.Module):
    """Text tokens c_0 .. c_{J-1} and couplings W_0 .. W_{J-1} that turn them into visual tokens.

    ``ctx`` and ``compound_prompts_text`` are ``[n, d_t]``; ``proj`` and ``compound_prompt_projections`` map
    d_t to d_v. As in the official code, the couplings of the deeper layers all start equal.
    """

    def __init__(self, ctx: torch.Tensor, depth: int, vision_width: int):
        super().__init__()
        n_ctx, text_width = ctx.shape
        self.ctx = nn.Parameter(ctx.clone().float())
        self.proj = nn.Linear(text_width, vision_width)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(random_tokens(n_ctx, text_width)) for _ in range(depth - 1)
        )
        coupling = nn.Linear(text_width, vision_width)
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(coupling) for _ in range(depth - 1))

    def forward(self) -> Prompts:
        deep = tuple(self.compound_prompts_text)
        # fp32 also under autocast: the couplings are tiny, and half products would limit what the prompts can
        # learn
        with torch.autocast(self.ctx.device.type, enabled=False):
            coupled = tuple(layer(tokens) for layer, tokens in zip(self.compound_prompt_projections, deep))
            return Prompts(self.ctx, deep, self.proj(self.ctx), coupled)


class MaPLeModel(PromptedCLIP):
    """CLIP with coupled prompts in both towers."""

    checkpoint_name = "MultiModalPromptLearner"

    def __init__(self, clip, classnames, n_ctx=2, ctx_init="a photo of a", depth=9, node="MAPLE"):
        super().__init__(clip, classnames)
        if not clip.is_vit:
            raise ValueError(f"TRAINER.{node} puts prompts into a vision transformer; set MODEL.BACKBONE.NAME to a ViT")
        check_depth(f"TRAINER.{node}.PROMPT_DEPTH", depth, min(clip.text.layers, clip.vision.layers), least=1)
        ctx, words = language_prompt(clip.text, n_ctx, ctx_init)
        self.class_prompts = clip.text.class_prompts(self.classnames, n_ctx=n_ctx, words=words)
        self.prompt_learner = MultiModalPromptLearner(ctx, depth, clip.vision.width)

    def emit(self) -> Prompts:
        return self.prompt_learner()


@register_trainer
class MaPLe(ClassificationTrainer):
    """MaPLe: deep text prompts, and visual prompts coupled to them by linear maps.

    Cross-entropy over s V T^T; text tokens and couplings are learned.
    """

    config_node = "MAPLE"
    reading_keys = ("TRAINER.MAPLE.CTX_INIT",)

    @classmethod
    def model_class(cls):
        return MaPLeModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.MAPLE
        return cls.model_class()(clip, classnames, node.N_CTX, node.CTX_INIT, node.PROMPT_DEPTH)

    @classmethod
    def load_state(cls, model, state, source):
        refuse_unused_prompts(model, state, source, "TRAINER.MAPLE.PROMPT_DEPTH")
        super().load_state(model, state, source)
