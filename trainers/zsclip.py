"""Zero-shot CLIP with hand-written templates: one per dataset (ZeroshotCLIP) or an ensemble (ZeroshotCLIP2).

Source: Radford et al. 2021; the seven selected ImageNet templates and the per-dataset wordings are CoOp's.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts, normalize
from dassl_prompts.classification.templates import ENSEMBLE_TEMPLATES, template_for
from dassl_prompts.classification.trainer import ClassificationTrainer
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.engine.config import refuse_pairs


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.ZSCLIP",
        {
            "PREC": "amp",
            "TEMPLATE": "",  # "" = the dataset's own template; e.g. "a photo of a {}."
        },
    )


class ZeroshotModel(PromptedCLIP):
    """Class features are the normalised mean of the normalised features of every template."""

    def __init__(self, clip, classnames, templates: list[str]):
        super().__init__(clip, classnames)
        self.prompts_per_template = [
            clip.text.prompts_from_texts([template.format(name) for name in self.classnames]) for template in templates
        ]

    def emit(self) -> Prompts:
        return Prompts()

    def encode_classes(self, prompts, index=None):
        views = self.prompts_per_template
        if index is not None:
            views = [view.select(index) for view in views]
        features = sum(normalize(self.clip.text(view)) for view in views) / len(views)
        return normalize(features)


class FrozenTextModel(ZeroshotModel):
    """What classifiers on top of frozen features score against: the template's class features, computed once and kept."""

    @cached_property
    def text(self) -> Tensor:
        """Normalised ``[C, E]``."""
        with torch.no_grad(), torch.autocast(self.scale.device.type, enabled=False):
            return super().encode_classes(Prompts())

    def encode_classes(self, prompts, index=None):
        return self.text if index is None else self.text[index.to(self.text.device)]


@register_trainer
class ZeroshotCLIP(ClassificationTrainer):
    """Zero-shot CLIP with the dataset's template.

    Evaluation only: one template per dataset.
    """

    frozen_image_side = True
    config_node = "ZSCLIP"

    @classmethod
    def check_method(cls, cfg):
        remedy = "it learns nothing that weights could start; leave INIT_WEIGHTS empty"
        refuse_pairs(cfg, "MODEL", [(bool(cfg.MODEL.INIT_WEIGHTS), "INIT_WEIGHTS", "TRAINER.NAME", remedy)])

    @classmethod
    def templates(cls, cfg) -> list[str]:
        return [template_for(cfg, cfg.TRAINER.ZSCLIP.TEMPLATE, "TRAINER.ZSCLIP.TEMPLATE")]

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        return ZeroshotModel(clip, classnames, cls.templates(cfg))

    def register_net(self):
        # Dassl asks for at least the name of a model to switch modes; there is nothing to optimise.
        self.register_model("zero_shot", self.model)

    def before_train(self):
        raise ValueError(f"{type(self).__name__} has nothing to train: run it with --eval-only or --no-train")


@register_trainer
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with an ensemble of templates.

    Evaluation only: CoOp's seven selected templates, and the dataset's own where it is not ImageNet's.
    """

    frozen_image_side = True

    @classmethod
    def templates(cls, cfg) -> list[str]:
        own_words = cfg.TRAINER.ZSCLIP.TEMPLATE and cfg.DATASET.NAME.startswith("ImageNet")
        remedy = "ImageNet's ensemble has no template of the dataset; use ZeroshotCLIP for one template"
        refuse_pairs(cfg, "TRAINER.ZSCLIP", [(bool(own_words), "TEMPLATE", "TRAINER.NAME", remedy)])
        templates = list(ENSEMBLE_TEMPLATES)
        own = super().templates(cfg)
        return templates if cfg.DATASET.NAME.startswith("ImageNet") else templates + own
