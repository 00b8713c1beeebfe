"""DPC: dual-prompt collaboration (Li et al., CVPR 2025, arXiv 2503.13443) on the four backbones of the paper, and on five
more, each of which shows what a new backbone takes.

The second stage itself is in trainers/dpc/stage2.py. A key left at its "preset" value takes the choice of ``PRESET``; what a
backbone has otherwise is in ``preset_overrides``. docs/dpc.md has the presets and the register of differences between the paper
and its released code.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from dassl_prompts.engine import register_trainer
from dassl_prompts.trainers.coop import CoOp
from dassl_prompts.trainers.coprompt import CoPrompt
from dassl_prompts.trainers.dpc.loss import symmetric_contrastive
from dassl_prompts.trainers.dpc.settings import extend_cfg
from dassl_prompts.trainers.dpc.stage2 import DPC
from dassl_prompts.trainers.ivlp import IVLP, language_prompt
from dassl_prompts.trainers.kgcoop import KgCoOp
from dassl_prompts.trainers.maple import MaPLe
from dassl_prompts.trainers.prograd import ProGrad
from dassl_prompts.trainers.promptkd.trainer import PromptKD, distillation_loss
from dassl_prompts.trainers.promptsrc import GaussianAggregation, PromptSRC, consistency_losses
from dassl_prompts.trainers.tcp import TCP

__all__ = [
    "DPC",
    "DPC_CoOp",
    "DPC_CoPrompt",
    "DPC_IVLP",
    "DPC_KgCoOp",
    "DPC_MaPLe",
    "DPC_ProGrad",
    "DPC_PromptKD",
    "DPC_PromptSRC",
    "DPC_TCP",
    "extend_cfg",
    "symmetric_contrastive",
]


@register_trainer
class DPC_CoOp(DPC):
    """DPC on CoOp: a second prompt for the base classes, the first kept for new ones."""

    backbone = CoOp
    frozen_image_side = True
    official_fill_leaves_out = 1  # CoOp's version of the released code never draws the last class either


@register_trainer
class DPC_MaPLe(DPC):
    """DPC on MaPLe: a second prompt for the base classes, the first kept for new ones.

    omega_b 1.0, at which the paper finds MaPLe best, is a weight in the literal readings and a factor 1 in the released one.
    """

    backbone = MaPLe
    own_keys = frozenset({"MAPLE_MIX"})
    preset_overrides = {
        "mixture": {"OMEGA_B": 1.0},
        "through_mixture": {"OMEGA_B": 1.0},
        "released": {"GRAD_SCALE": 1.0},
    }


@register_trainer
class DPC_IVLP(DPC):
    """DPC on IVLP: a second prompt for the base classes, the first kept for new ones."""

    backbone = IVLP
    frozen_image_side = True


@register_trainer
class DPC_KgCoOp(DPC):
    """DPC on KgCoOp: a second prompt for the base classes, the first kept for new ones."""

    backbone = KgCoOp
    frozen_image_side = True


@register_trainer
class DPC_ProGrad(DPC):
    """DPC on ProGrad: a second prompt for the base classes, the first kept for new ones."""

    backbone = ProGrad
    frozen_image_side = True


@register_trainer
class DPC_TCP(DPC):
    """DPC on TCP: a second prompt for the base classes, the first kept for new ones.

    Mixes the context and the class-aware tokens, not the network that makes them.
    """

    backbone = TCP
    frozen_image_side = True


@register_trainer
class DPC_CoPrompt(DPC):
    """DPC on CoPrompt: a second prompt for the base classes, the first kept for new ones.

    The adapters follow P' on base classes and P on new ones.
    """

    backbone = CoPrompt


@register_trainer
class DPC_PromptSRC(DPC):
    """DPC on PromptSRC: a second prompt for the base classes, the first kept for new ones.

    Keeps PromptSRC's consistency terms on the anchors; averages P' over epochs only with ``GPA``.
    """

    backbone = PromptSRC
    default_scl_weight = 1.0
    own_keys = frozenset({"LOSS.SCL_W", "GPA"})

    def build_model(self):
        super().build_model()
        node = self.cfg.TRAINER.PROMPTSRC
        self.aggregation = GaussianAggregation(self.cfg.OPTIM.MAX_EPOCH, node.GPA_MEAN, node.GPA_STD)

    def backbone_terms(self, images, image_features, text, weights):
        node, tuned = self.cfg.TRAINER.PROMPTSRC, self.model.tuned
        d_text, d_image, d_logits = consistency_losses(
            image_features, text, tuned.frozen_image_features(images), tuned.text_target, tuned.scale
        )
        total = node.TEXT_LOSS_WEIGHT * d_text + node.IMAGE_LOSS_WEIGHT * d_image + d_logits
        return {"loss_scl": weights["SCL_W"] * total}

    def after_epoch(self):
        if self.dpc.gpa:
            self.aggregation.after_epoch(self.epoch, self.model.learnable())
        super().after_epoch()

    def extra_state(self):
        return {"aggregation": self.aggregation.state_dict()}

    def load_extra_state(self, state):
        self.aggregation.load_state_dict(state["aggregation"])


@register_trainer
class DPC_PromptKD(DPC):
    """DPC on PromptKD: a second prompt for the base classes, the first kept for new ones.

    PromptKD has no text prompts: stage 2 starts from the teacher's and learns them for the teacher's text tower.
    """

    backbone = PromptKD
    own_keys = frozenset({"LOSS.KD_W", "MINER", "PROJECTOR_BN"})
    stage1_data = {"DATASET.SUBSAMPLE_CLASSES": "all", "DATASET.NUM_SHOTS": 0}  # distilled on all unlabelled images
    preset_overrides = {
        "released": {
            "MIX_SCOPE": "text",
            "NEW_TEXT": "tuned",
            "DEEP_INIT": "noise",
            "MINER": "teacher_untuned",
            "NEG_TRANSFORM": "test",
            "XD_RULE": "parallel",
        }
    }

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        model = super().build_net(cfg, classnames, clip)
        model.parallel.VPT_image_trans.frozen_statistics = cls.settings(cfg).projector_bn == "frozen"
        return model

    @classmethod
    def prepare_backbone(cls, net):
        net.add_text_prompts()
        return net

    def stage1_state(self):
        """The student's tensors, and the teacher's text prompts that the model already holds."""
        text = {
            k: v for k, v in self.model.tuned.state_dict().items() if k.startswith(("prompt_learner.", "text_encoder."))
        }
        return {**super().stage1_state(), **text}

    def check_stage1_classes(self, known):
        # the student was distilled on images of all classes, of which this run has the first half
        super().check_stage1_classes(known[: len(self.dm.dataset.classnames)])

    def miner_scores(self, images):
        if self.dpc.miner == "tuned":
            return super().miner_scores(images)
        tuned = self.model.tuned
        text = tuned.teacher_text if self.dpc.miner == "teacher" else self.untuned_text
        return None, tuned.teacher.logits(tuned.teacher_image_features(images), text)

    @cached_property
    def untuned_text(self) -> Tensor:
        """Class features of the teacher whose first text layer lost its tuned context, as in the released code: it stays
        at its initial words."""
        teacher = self.model.tuned.teacher
        prompts = teacher.emit()
        words, _ = language_prompt(teacher.clip.text, len(prompts.text), self.cfg.TRAINER.PROMPTKD.CTX_INIT)
        return teacher.encode_classes(replace(prompts, text=words.to(prompts.text)))

    def backbone_terms(self, images, image_features, text, weights):
        node, model = self.cfg.TRAINER.PROMPTKD, self.model
        teacher = model.tuned.teacher_logits(model.tuned.teacher_image_features(images))
        kd = distillation_loss(model.logits(image_features, text), teacher, node.TEMPERATURE)
        return {"loss_kd": weights["KD_W"] * node.KD_WEIGHT * kd}
