"""DePT: decoupled prompt tuning, a second head for what is special to the base classes (Zhang et al., CVPR 2024,
arXiv 2309.07439), on top of five prompt learners.

A channel-adjusted transfer (CAT) head beside the image-text matching (ITM) head keeps base-specific knowledge out of the prompts.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.class_bound import ClassBoundTrainer, rows_among
from dassl_prompts.classification.prompted import normalize
from dassl_prompts.engine import add_defaults, compute_accuracy, register_trainer
from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.engine.config import one_of
from dassl_prompts.trainers.cocoop import CoCoOp
from dassl_prompts.trainers.coop import CoOp
from dassl_prompts.trainers.kgcoop import KgCoOp
from dassl_prompts.trainers.maple import MaPLe
from dassl_prompts.trainers.promptsrc import PromptSRC

#: of the CAT head in a checkpoint
HEAD = ("linear_probe_proj.", "film_lp_img.", "film_lp_text.")


def extend_cfg(cfg):
    add_defaults(cfg, "OPTIM", {"LR_EXP": 6.5})  # DePT: rate of the new layers, in multiples of LR
    add_defaults(
        cfg,
        "TRAINER.LINEAR_PROBE",
        {
            "TYPE": "linear",  # the only kind
            "WEIGHT": 0.7,  # lambda: share of the CAT head in the objective and in the scores of base classes
            "TEST_TIME_FUSION": True,  # False: base classes are scored by the CAT head alone
        },
    )
    add_defaults(cfg, "TRAINER.FILM", {"LINEAR_PROBE": True})  # False: no channel adjustment in front of the classifier
    add_defaults(
        cfg,
        "TRAINER.DEPT",
        {
            "FUSION": "logits",  # what is averaged in testing: logits (official code) or probabilities (paper)
            "REGULARISERS": "full",  # the backbone's own terms: full (official code) or scaled by 1 - lambda (paper)
        },
    )


class FiLM(nn.Module):
    """``gamma * x + beta`` per channel, the identity at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class CATHead:
    """Mixin for a ``PromptedCLIP``: the CAT head beside its own logits.

    Attributes:
        weight: lambda. fuse: False scores base classes by the CAT head alone. probabilities: what is averaged.
        trained: classes of the run that the loaded checkpoint comes from.
    """

    weight, fuse, probabilities = 0.7, True, False

    def __init__(self, clip, *args, **kwargs):
        super().__init__(clip, *args, **kwargs)
        self.trained: list[str] = []
        self.film_lp_img, self.film_lp_text = FiLM(clip.embed_dim), FiLM(clip.embed_dim)
        self.linear_probe_proj = nn.Linear(clip.embed_dim, len(self.classnames))

    @property
    def checkpoint_module(self):
        return self

    @property
    def has_head(self) -> bool:
        """Whether the classes are those that the head was trained on."""
        return self.linear_probe_proj is not None

    def drop_head(self) -> None:
        """Classes that the head does not know are scored by the cosines alone."""
        self.linear_probe_proj = self.film_lp_img = self.film_lp_text = None

    def cat_logits(self, images: Tensor, texts: Tensor | None = None) -> Tensor:
        """Of un-normalised image features ``[B, E]``, behind those of ``texts`` ``[B, E]`` if there are any (2B rows)."""
        with torch.autocast(images.device.type, enabled=False):
            rows = self.film_lp_img(images.float())
            if texts is not None:
                rows = torch.cat([self.film_lp_text(texts.float()), rows])
            return self.linear_probe_proj(rows)

    def forward(self, images: Tensor) -> Tensor:
        prompts = self.emit()
        features = self.image_features(images, prompts)
        image = normalize(features)
        matching = self.logits(image, self.classes_for(image, prompts))
        if not self.has_head:
            return matching
        own = self.cat_logits(features)
        if not self.fuse:
            return own
        if self.probabilities:
            return (self.weight * own.softmax(-1) + (1 - self.weight) * matching.softmax(-1)).log()
        return (1 - self.weight) * matching + self.weight * own


class DePT(ClassBoundTrainer):
    """L = (1 - lambda) CE(z_ITM, y) + lambda CE(z_CAT, [y; y]) + the backbone's regularisers.

    Mixin in front of a prompt learner: subclass both, register. The new layers have a rate of their own.
    """

    told_keys = ("TRAINER.LINEAR_PROBE", "TRAINER.DEPT")

    @classmethod
    def model_class(cls):
        own = super().model_class()
        return type(f"DePT{own.__name__}", (CATHead, own), {"checkpoint_name": dept_folder(own.checkpoint_name)})

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        probe, node = cfg.TRAINER.LINEAR_PROBE, cfg.TRAINER.DEPT
        one_of(probe.TYPE, ("linear",), "TRAINER.LINEAR_PROBE.TYPE")
        one_of(node.FUSION, ("logits", "probabilities"), "TRAINER.DEPT.FUSION")
        one_of(node.REGULARISERS, ("full", "scaled"), "TRAINER.DEPT.REGULARISERS")
        if not 0 <= probe.WEIGHT <= 1:
            raise ValueError(f"TRAINER.LINEAR_PROBE.WEIGHT is {probe.WEIGHT}; it must lie between 0 and 1")

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        model, probe = super().build_net(cfg, classnames, clip), cfg.TRAINER.LINEAR_PROBE
        model.weight, model.fuse = probe.WEIGHT, probe.TEST_TIME_FUSION
        model.probabilities = cfg.TRAINER.DEPT.FUSION == "probabilities"
        if not cfg.TRAINER.FILM.LINEAR_PROBE:
            model.film_lp_img, model.film_lp_text = nn.Identity(), nn.Identity()
        if cfg.DATASET.SUBSAMPLE_CLASSES == "new":
            model.drop_head()
        return model

    def parameter_groups(self, module):
        """The backbone's tensors at LR, the head's at LR * LR_EXP; in the warm-up epoch both at its constant rate."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        rate = self.cfg.OPTIM.LR
        return [
            {"params": [p for name, p in named if not name.startswith(HEAD)], "lr": rate},
            {"params": [p for name, p in named if name.startswith(HEAD)], "lr": rate * self.cfg.OPTIM.LR_EXP},
        ]

    @classmethod
    def load_state(cls, model, state, source):
        """The head's rows are found by class name; where a class was not trained on, the head has no say."""
        state = strip_module(state)
        weight = state.get("linear_probe_proj.weight")
        if model.has_head and weight is not None:
            count = len(model.classnames)
            rows = rows_among(model.classnames, model.trained) if model.trained else torch.arange(count)
            if (rows < 0).any() or (not model.trained and len(weight) != count):
                print(
                    f"{source}: its CAT head knows other classes than these {count}, which are scored by cosines alone"
                )
                model.drop_head()
            else:
                state = {k: v[rows] if k.startswith("linear_probe_proj.") else v for k, v in state.items()}
        super().load_state(model, state, source)

    def loss(self, images, labels):
        model, weight = self.model, self.cfg.TRAINER.LINEAR_PROBE.WEIGHT
        prompts = model.emit()
        image_features = model.image_features(images, prompts)
        image = normalize(image_features)
        text_features = model.text_features(model.prompts_for(image, prompts))
        text = normalize(text_features)
        logits = model.logits(image, text)
        own = text_features[labels] if text_features.ndim == 2 else text_features[torch.arange(len(labels)), labels]
        terms = {
            "loss_itm": (1 - weight) * F.cross_entropy(logits, labels),
            "loss_cat": weight * F.cross_entropy(model.cat_logits(image_features, own), labels.repeat(2)),
        }
        share = 1 - weight if self.cfg.TRAINER.DEPT.REGULARISERS == "scaled" else 1.0
        terms |= {name: share * term for name, term in self.regularisers(images, image, text).items()}
        return {"loss": sum(terms.values()), **terms, "acc": compute_accuracy(logits, labels)[0]}


def dept_folder(name: str) -> str:
    """Under which name the official code registers the model that its backbone registers as ``name``."""
    return "PromptLearner" if name == "prompt_learner" else name


@register_trainer
class DePT_CoOp(DePT, CoOp):
    """DePT on CoOp: a second head for what is special to the base classes."""

    frozen_image_side = True


@register_trainer
class DePT_CoCoOp(DePT, CoCoOp):
    """DePT on CoCoOp: a second head for what is special to the base classes."""

    frozen_image_side = True


@register_trainer
class DePT_KgCoOp(DePT, KgCoOp):
    """DePT on KgCoOp: a second head for what is special to the base classes."""

    frozen_image_side = True


@register_trainer
class DePT_MaPLe(DePT, MaPLe):
    """DePT on MaPLe: a second head for what is special to the base classes."""


@register_trainer
class DePT_PromptSRC(DePT, PromptSRC):
    """DePT on PromptSRC: a second head for what is special to the base classes."""
