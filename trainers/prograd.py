"""ProGrad: prompt-aligned gradients (Zhu et al., ICCV 2023, arXiv 2205.14865).

CoOp's context is updated only in directions that do not work against what zero-shot CLIP knows.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.templates import PROGRAD_TEMPLATES, template_for
from dassl_prompts.engine import add_defaults, compute_accuracy, register_trainer
from dassl_prompts.engine.config import one_of
from dassl_prompts.trainers.coop import CoOp, CoOpModel, coop_arguments
from dassl_prompts.trainers.kgcoop import template_features

#: values of CTX_INIT that stand for the words of the dataset's template; the official scripts pass True
FROM_TEMPLATE = ("template", "True")


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "LOSS",
        {
            "NAME": "prograd",  # prograd projects gradients; kd mixes the two losses (the paper's baseline)
            "T": 1.0,  # temperature of the distillation from zero-shot CLIP
            "LAMBDA": 1.0,  # prograd: share of the conflicting component that is taken out
            "ALPHA": 0.0,  # kd: weight of the distillation, 1 - ALPHA that of cross-entropy
        },
    )
    add_defaults(cfg, "TRAINER.PROGRAD", {"TEMPLATE": ""})  # "" = the dataset's own; e.g. "a photo of a {}."


def right_aligned_context(text, n_ctx: int, words: str) -> tuple[Tensor, str]:
    """Layer-0 context ``[n, d_t]`` whose last vectors are the embeddings of ``words`` and whose first are zero.

    As in the official code as many vectors are taken as ``words`` has blanks-separated words: what more tokens it has
    (commas are tokens) stays behind the context as fixed words, which are returned as well.

    Raises:
        ValueError: more words than context tokens, or a rest that is not made of whole words.
    """
    embedded, split = text.embed_words(words), words.split()
    k, rest = len(split), len(embedded) - len(split)
    if k > n_ctx:
        raise ValueError(f"TRAINER.COOP.N_CTX is {n_ctx}, but the initial words {words!r} are {k}: give at least {k}")
    left = " ".join(split[k - rest :]) if rest else ""
    if rest and not torch.equal(text.embed_words(left), embedded[k:]):
        raise ValueError(
            f"{words!r} cannot start the context: CLIP's tokenizer splits its last words; choose simpler ones"
        )
    return torch.cat([embedded.new_zeros(n_ctx - k, embedded.shape[1]), embedded[:k]]), left


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 mean_i sum_c -softmax(z^t_i / T)_c log softmax(z_i / T)_c`` of logits ``[B, C]``; its gradient is KL's."""
    soft = (teacher / temperature).softmax(-1)
    return temperature**2 * F.cross_entropy(student / temperature, soft)


def project(own: Tensor, general: Tensor, strength: float) -> Tensor:
    """``own`` without its component against ``general``: g_d - lambda (g_d . u) u with u = g_g / |g_g| where that product is
    negative, else g_d. A vanishing g_g (student equal to teacher) leaves g_d, where the official code divides by zero.
    """
    norm = general.norm()
    unit = general / norm.clamp_min(torch.finfo(general.dtype).tiny)
    along = (own * unit).sum()
    conflict = (along < 0) & (norm > 0)
    return torch.where(conflict, own - strength * along * unit, own)


class ProGradModel(CoOpModel):
    """CoOp's model with a right-aligned initial context, and its teacher: zero-shot CLIP with ``template``."""

    def __init__(self, clip, classnames, template: str, **kwargs):
        super().__init__(clip, classnames, **kwargs)
        self.template = template

    def initial(self, n_ctx, words, n_classes):
        if not words:
            return super().initial(n_ctx, words, n_classes)
        return right_aligned_context(self.clip.text, n_ctx, words)

    @cached_property
    def teacher_text(self) -> Tensor:
        """The teacher's class features ``[C, E]``: computed at first use and kept."""
        return template_features(self.clip, self.classnames, self.template)

    def teacher_logits(self, image: Tensor) -> Tensor:
        """``[B, C]`` from normalised image features, which no prompt changes."""
        return self.logits(image.detach(), self.teacher_text)


@register_trainer
class ProGrad(CoOp):
    """ProGrad: CoOp whose steps never go against the hand-written prompt.

    The step of CE where it conflicts with that of L_kl, made orthogonal to it; L_kl itself is never followed.
    """

    frozen_image_side = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        one_of(cfg.LOSS.NAME, ("prograd", "kd"), "LOSS.NAME")
        if cfg.LOSS.T <= 0:
            raise ValueError(f"LOSS.T is {cfg.LOSS.T}; a temperature is positive")

    @classmethod
    def model_class(cls):
        return ProGradModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        template = template_for(cfg, cfg.TRAINER.PROGRAD.TEMPLATE, "TRAINER.PROGRAD.TEMPLATE", PROGRAD_TEMPLATES)
        words = cfg.TRAINER.COOP.CTX_INIT.replace("_", " ")
        if words in FROM_TEMPLATE:
            words = template.split("{}")[0].strip()
        return cls.model_class()(clip, classnames, template, **{**coop_arguments(cfg), "ctx_init": words})

    def loss(self, images, labels):
        image, text = self.model.features(images)
        logits, loss = self.model.logits(image, text), self.cfg.LOSS
        ce = F.cross_entropy(logits, labels)
        kl = distillation(logits, self.model.teacher_logits(image), loss.T)
        total = ce if loss.NAME == "prograd" else (1 - loss.ALPHA) * ce + loss.ALPHA * kl
        return {"loss": total, "loss_ce": ce, "loss_kl": kl, "acc": compute_accuracy(logits, labels)[0]}

    def update(self, terms):
        if self.cfg.LOSS.NAME == "kd":
            super().update(terms)
            return
        self.detect_anomaly(torch.stack([terms["loss_ce"], terms["loss_kl"]]))
        learned = [p for p in self.model.checkpoint_module.parameters() if p.requires_grad]
        own = torch.autograd.grad(self.scaled(terms["loss_ce"]), learned, retain_graph=True)
        general = torch.autograd.grad(self.scaled(terms["loss_kl"]), learned)
        for parameter, g_d, g_g in zip(learned, own, general):
            parameter.grad = project(g_d, g_g, self.cfg.LOSS.LAMBDA)
        self.apply_gradients()
