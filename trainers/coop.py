"""CoOp: learned context tokens in front of the class name (Zhou et al., IJCV 2022)."""

from __future__ import annotations

import torch
import torch.nn as nn

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts
from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.engine.config import refuse_pairs

POSITIONS = ("end", "middle", "front")


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.COOP",
        {
            "N_CTX": 16,  # number of context tokens
            "CSC": False,  # class-specific context
            "CTX_INIT": "",  # words whose token embeddings start the context; then N_CTX is their number
            "PREC": "amp",  # fp16, fp32, amp
            "CLASS_TOKEN_POSITION": "end",  # end, middle or front
        },
    )


def initial_context(text, n_ctx: int, words: str = "", n_classes: int | None = None) -> torch.Tensor:
    """Layer-0 context ``[n, d_t]`` (``[C, n, d_t]`` for class-specific ones): word embeddings or N(0, 0.02^2).

    As in CoOp, initial words fix the number of tokens and give a shared context.

    Raises:
        ValueError: no token.
    """
    if words:
        return text.embed_words(words)
    if n_ctx < 1:
        raise ValueError(f"N_CTX is {n_ctx}: a context has at least one token")
    shape = (n_ctx, text.width) if n_classes is None else (n_classes, n_ctx, text.width)
    return torch.empty(shape).normal_(std=0.02)


def tell_word_count(text, node, name: str) -> None:
    """Say that initial words overrule ``N_CTX``, as they do in CoOp."""
    count = len(text.encode_ids(node.CTX_INIT.replace("_", " "))) if node.CTX_INIT else node.N_CTX
    if count != node.N_CTX:
        print(f"{name}.CTX_INIT {node.CTX_INIT!r} gives {count} context tokens, {name}.N_CTX {node.N_CTX} is not used")


class PromptLearner(nn.Module):
    """Holds ``ctx``: ``[n, d_t]``, or ``[C, n, d_t]`` with class-specific contexts."""

    def __init__(self, ctx: torch.Tensor):
        super().__init__()
        self.ctx = nn.Parameter(ctx.clone().float())


class CoOpModel(PromptedCLIP):
    """Text prompts ``[SOT] ctx name . [EOT]``; the image tower stays as it is."""

    def __init__(self, clip, classnames, n_ctx=16, ctx_init="", csc=False, position="end"):
        super().__init__(clip, classnames)
        if position not in POSITIONS:
            raise ValueError(f"TRAINER.COOP.CLASS_TOKEN_POSITION is {position!r}; choose one of {', '.join(POSITIONS)}")
        per_class = len(classnames) if csc and not ctx_init else None
        ctx, fixed = self.initial(n_ctx, ctx_init.replace("_", " "), per_class)
        self.class_position = position
        self.class_prompts = clip.text.class_prompts(self.classnames, n_ctx=ctx.shape[-2], words=fixed)
        self.prompt_learner = PromptLearner(ctx)

    def initial(self, n_ctx: int, words: str, n_classes: int | None) -> tuple[torch.Tensor, str]:
        """What the context starts from, and the words that stand fixed between it and the class name."""
        return initial_context(self.clip.text, n_ctx, words, n_classes), ""

    @property
    def checkpoint_module(self):
        return self.prompt_learner

    @property
    def class_tensors(self):
        return frozenset({"ctx"} if self.prompt_learner.ctx.ndim == 3 else ())

    def emit(self) -> Prompts:
        return Prompts(text=self.prompt_learner.ctx)


@register_trainer
class CoOp(ClassificationTrainer):
    """CoOp: learned context tokens in front of the class name.

    Cross-entropy over s V T^T; only ``ctx`` is learned.
    """

    frozen_image_side = True
    config_node = "COOP"
    reading_keys = ("TRAINER.COOP.CSC", "TRAINER.COOP.CLASS_TOKEN_POSITION")

    @classmethod
    def check_method(cls, cfg):
        node = method_node(cfg, "COOP")
        remedy = (
            'initial words give one context for all classes; set CTX_INIT "" for contexts of their own, or CSC False'
        )
        refuse_pairs(cfg, "TRAINER.COOP", [(node.CSC and bool(node.CTX_INIT), "CSC", "CTX_INIT", remedy)])

    @classmethod
    def class_specific(cls, cfg):
        return "TRAINER.COOP.CSC True" if method_node(cfg, "COOP").CSC else ""

    @classmethod
    def model_class(cls):
        return CoOpModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        tell_word_count(clip.text, cfg.TRAINER.COOP, "TRAINER.COOP")
        return cls.model_class()(clip, classnames, **coop_arguments(cfg))


def coop_arguments(cfg) -> dict:
    """Arguments of :class:`CoOpModel` from ``cfg.TRAINER.COOP``."""
    node = cfg.TRAINER.COOP
    return {
        "n_ctx": node.N_CTX,
        "ctx_init": node.CTX_INIT,
        "csc": node.CSC,
        "position": node.CLASS_TOKEN_POSITION,
    }
