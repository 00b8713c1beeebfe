"""KgCoOp: CoOp held near the hand-written prompt (Yao et al., CVPR 2023, arXiv 2303.13283)."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.prompted import normalize
from dassl_prompts.classification.templates import KGCOOP_TEMPLATES, template_for
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.coop import CoOp, CoOpModel, coop_arguments


def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.COOP", {"W": 8.0})  # KgCoOp's weight of the distance to the hand-written prompt
    add_defaults(cfg, "TRAINER.KGCOOP", {"TEMPLATE": ""})  # "" = the dataset's own; e.g. "a photo of a {}."


@torch.no_grad()
def template_features(clip, classnames: list[str], template: str) -> Tensor:
    """Normalised features ``[C, E]`` of ``template`` with every class name; of the frozen CLIP, in its own precision."""
    with torch.autocast(clip.logit_scale.device.type, enabled=False):
        return normalize(clip.text(clip.text.prompts_from_texts([template.format(name) for name in classnames])))


def knowledge_distance(text: Tensor, target: Tensor) -> Tensor:
    """``1 - mean_c cos(t_c, w_c)`` of normalised class features ``[C, E]``; half the mean squared distance."""
    with torch.autocast(text.device.type, enabled=False):
        return 1.0 - F.cosine_similarity(text.float(), target.float(), dim=-1).mean()


class KgCoOpModel(CoOpModel):
    """CoOp's model, which also knows what the frozen CLIP says to the hand-written prompt ``template``."""

    def __init__(self, clip, classnames, template: str, **kwargs):
        super().__init__(clip, classnames, **kwargs)
        self.template = template

    @cached_property
    def target(self) -> Tensor:
        """Frozen class features ``[C, E]``, w; computed at first use and kept."""
        return template_features(self.clip, self.classnames, self.template)


@register_trainer
class KgCoOp(CoOp):
    """KgCoOp: CoOp held near the hand-written prompt.

    L = CE + W (1 - mean_c cos(t_c, w_c)) over all classes of the run; only ``ctx`` is learned.
    """

    frozen_image_side = True

    @classmethod
    def model_class(cls):
        return KgCoOpModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        template = template_for(cfg, cfg.TRAINER.KGCOOP.TEMPLATE, "TRAINER.KGCOOP.TEMPLATE", KGCOOP_TEMPLATES)
        return cls.model_class()(clip, classnames, template, **coop_arguments(cfg))

    def regularisers(self, images, image, text):
        return {"loss_kg": self.cfg.TRAINER.COOP.W * knowledge_distance(text, self.model.target)}
