"""TCP: textual-based class-aware prompt tuning (Yao et al., CVPR 2024, arXiv 2311.18231).

What the frozen CLIP says about a class is turned into tokens that replace the context from one text block on.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts
from dassl_prompts.classification.templates import TCP_STUDENT_TEMPLATES, TCP_TEMPLATES, student_of, template_for
from dassl_prompts.classification.trainer import ClassificationTrainer
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.coop import initial_context
from dassl_prompts.trainers.kgcoop import knowledge_distance, template_features


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.TCP",
        {
            "W": 8.0,  # weight of the distance to the hand-written prompt; a constant of the official code
            "LAYER": 8,  # text block, counted from 0, at whose input the class-aware tokens replace the context
            "TEMPLATE": "",  # hand-written prompt; "" = the dataset's own
            "STUDENT": "",  # "X X X X {}.": the text behind the context, whose first N_CTX words it overwrites; "" = the dataset's
        },
    )


class QuickGELU(nn.Module):
    """``x sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class PromptLearner(nn.Module):
    """Holds ``ctx`` ``[n, d_t]`` and the embedding of textual knowledge: Linear(E, E/4) - QuickGELU - Linear(E/4, n d_t)."""

    def __init__(self, ctx: Tensor, embed_dim: int):
        super().__init__()
        self.ctx = nn.Parameter(ctx.clone().float())
        hidden = max(1, embed_dim // 4)
        layers = OrderedDict(
            linear1=nn.Linear(embed_dim, hidden), relu=QuickGELU(), linear2=nn.Linear(hidden, ctx.numel())
        )
        self.meta_net = nn.Sequential(layers)

    def forward(self, target: Tensor) -> Tensor:
        """Class-aware tokens ``[C, n, d_t]`` of frozen class features ``[C, E]``."""
        with torch.autocast(target.device.type, enabled=False):
            return self.meta_net(target.float()).view(len(target), *self.ctx.shape)


def student_words(template: str, n_ctx: int) -> tuple[str, str]:
    """What stands between the context and the class name, and behind the name, in a student text.

    Raises:
        ValueError: fewer than ``n_ctx`` words in front of the name.
    """
    lead, behind = template.split("{}")
    words = lead.split()
    if len(words) < n_ctx:
        raise ValueError(
            f"TRAINER.COOP.N_CTX is {n_ctx}, but the student text {template!r} has {len(words)} words to overwrite: "
            "give TRAINER.TCP.STUDENT"
        )
    return " ".join(words[n_ctx:]), behind


class TCPModel(PromptedCLIP):
    """Text prompts ``[SOT] ctx name . [EOT]`` whose context becomes class-aware at the input of block ``layer``.

    Args:
        template: hand-written prompt of the textual knowledge w. student: the text that ctx overwrites the first words of.
    """

    def __init__(self, clip, classnames, template: str, student: str, n_ctx=4, ctx_init="", layer=8):
        super().__init__(clip, classnames)
        if not 1 <= layer < clip.text.layers:
            raise ValueError(
                f"TRAINER.TCP.LAYER is {layer}, but this backbone's text tower has the blocks 0 to {clip.text.layers - 1}: "
                f"give 1 to {clip.text.layers - 1}"
            )
        self.template, self.layer = template, layer
        ctx = initial_context(clip.text, n_ctx, ctx_init.replace("_", " "))
        words, behind = student_words(student, len(ctx))
        self.class_prompts = clip.text.class_prompts(self.classnames, len(ctx), words, behind)
        self.prompt_learner = PromptLearner(ctx, clip.embed_dim)

    @property
    def checkpoint_module(self):
        return self.prompt_learner

    @cached_property
    def target(self) -> Tensor:
        """Textual knowledge w ``[C, E]``: computed at first use and kept."""
        return template_features(self.clip, self.classnames, self.template)

    def emit(self) -> Prompts:
        tokens = self.prompt_learner(self.target)
        return Prompts(text=self.prompt_learner.ctx, text_deep=(*[None] * (self.layer - 1), tokens))


@register_trainer
class TCP(ClassificationTrainer):
    """TCP: context tokens with an embedding of what the hand-written prompt says of the class.

    L = CE + W (1 - mean_c cos(t_c, w_c)); ``ctx`` and the embedding of textual knowledge are learned.
    """

    frozen_image_side = True
    config_node = "COOP"
    reading_keys = ("TRAINER.TCP.LAYER",)
    told_keys = ("TRAINER.TCP",)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER.COOP.CSC or cfg.TRAINER.COOP.CLASS_TOKEN_POSITION != "end":
            raise ValueError(
                "TCP shares its context and puts it in front of the name: CSC False, CLASS_TOKEN_POSITION end"
            )

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node, coop = cfg.TRAINER.TCP, cfg.TRAINER.COOP
        template = template_for(cfg, node.TEMPLATE, "TRAINER.TCP.TEMPLATE", TCP_TEMPLATES)
        own = node.STUDENT or student_of(cfg.DATASET.get("TEMPLATE", ""))
        student = template_for(cfg, own, "TRAINER.TCP.STUDENT", TCP_STUDENT_TEMPLATES)
        return TCPModel(clip, classnames, template, student, coop.N_CTX, coop.CTX_INIT, node.LAYER)

    def regularisers(self, images, image, text):
        return {"loss_kg": self.cfg.TRAINER.TCP.W * knowledge_distance(text, self.model.target)}
